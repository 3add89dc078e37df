"""`agents`: what every agent does right now."""

from typing import Annotated

import typer

from coatcheck.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir

app = typer.Typer()


@app.command()
def agents(
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow the changes until Ctrl-C.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show what every agent does: state, feature, stage and round, its models' breakers, its last heartbeat.

    On a terminal `--watch` redraws a table; elsewhere it prints a line per change, with --json an object per change.

    Example: coatcheck agents --watch
    """
    from coatcheck.cli import attendance, session  # noqa: PLC0415

    session.run(attendance.agents(watch=watch, as_json=as_json, data_dir=data_dir))
