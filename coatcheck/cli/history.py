"""`events at`: a run's rows as they were after an earlier event."""

from typing import Annotated

import typer

from coatcheck.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir, Run

app = typer.Typer()


@app.command()
def at(
    name: Run,
    *,
    sequence: Annotated[
        int | None, typer.Option(min=1, help="After this sequence of the audit log. [default: the latest]")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show a run as it was: its row, its rounds and what its agents did, rebuilt from its events alone.

    `coatcheck events RUN --json` shows the sequences.

    Example: coatcheck events at customer-search --sequence 120
    """
    from coatcheck.cli import history_reading, session  # noqa: PLC0415

    session.run(history_reading.show_past(name, sequence=sequence, as_json=as_json, data_dir=data_dir))
