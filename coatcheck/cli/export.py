"""`events export` and `events schema`: training data, and the events' form for those who read them elsewhere."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from coatcheck.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir

app = typer.Typer()
_DAY = ["%Y-%m-%d"]


@app.command()
def export(
    *,
    out: Annotated[
        str, typer.Option(metavar="FOLDER|URL", help="A folder, or s3://…, gs://…, az://…")
    ] = "data/training",
    types: Annotated[
        list[str] | None, typer.Option("--type", metavar="TYPE", help="Only this type; may be repeated. [default: all]")
    ] = None,
    since: Annotated[
        datetime | None, typer.Option("--from", formats=_DAY, metavar="DATE", help="From this day on, UTC.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option("--to", formats=_DAY, metavar="DATE", help="Up to this day, UTC.")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Write training data, by type and day, as CSV and JSON lines; secrets and personal data are taken out.

    Types: agent_events, agent_tasks, tool_executions, workflow_data, sft, preferences. Days that are over and exported
    are not read again, today's files grow.

    Example: coatcheck events export

    Example: coatcheck events export --out s3://bucket/training --type sft --type preferences --from 2026-11-01
    """
    from coatcheck.cli import exporting, session  # noqa: PLC0415

    session.run(
        exporting.export(
            out,
            types=types or [],
            since=since.date() if since else None,
            until=until.date() if until else None,
            as_json=as_json,
            data_dir=data_dir,
        )
    )


@app.command()
def schema(
    *,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write one file per event type below this folder.", file_okay=False),
    ] = None,
) -> None:
    """Print the JSON schema of all events as one union, or write one file per type.

    Example: coatcheck events schema --out docs/reference/events
    """
    from coatcheck.cli import exporting  # noqa: PLC0415

    exporting.schema(out)
