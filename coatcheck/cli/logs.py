"""`logs`: what the workers of the local stack have to say about one run."""

from typing import Annotated

import typer

from coatcheck.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir, Run

app = typer.Typer()


@app.command()
def logs(
    run: Run,
    *,
    every: Annotated[bool, typer.Option("--all", help="All runs of that name, not only the latest.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print what the workers have logged about a run, all of them together, in order.

    Reads the log files in the data folder, so it needs no server; those of other machines are where you collect them.

    Example: coatcheck logs customer-search
    """
    from coatcheck.cli.log_reading import show_logs  # noqa: PLC0415

    show_logs(run, every=every, as_json=as_json, data_dir=data_dir)
