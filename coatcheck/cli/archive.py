"""`archive`: how far behind the streams it is, and whether what it keeps is as it was."""

import typer

from coatcheck.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir

app = typer.Typer(
    name="archive",
    no_args_is_help=True,
    help="What outlives retention: `fetch` reads it by itself.\n\nExample: coatcheck archive status",
)


@app.command()
def status(*, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Show where the archive is, and for each stream what is not in it yet and how near retention is to dropping that.

    Exits with 1 when something waits for 10 minutes or 70% of a limit are used, with 3 when nobody serves the archive.

    Example: coatcheck archive status --json
    """
    from coatcheck.cli import archiving, session  # noqa: PLC0415

    session.run(archiving.status(as_json=as_json, data_dir=data_dir))


@app.command()
def verify(*, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Read everything in the archive and compare it with its sha256; needs no server.

    Looks where COATCHECK_ARCHIVE says, by default in the stack's data folder. Exits with 1 when something is missing or
    corrupt, and names it.

    Example: coatcheck archive verify
    """
    from coatcheck.cli import archiving, session  # noqa: PLC0415

    session.run(archiving.verify(as_json=as_json, data_dir=data_dir))
