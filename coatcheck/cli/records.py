"""`fetch`, `deliverables`, `similar`, `streams`, `runs`: what was delivered and what ran."""

from pathlib import Path
from typing import Annotated

import typer

from coatcheck.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir

app = typer.Typer()


@app.command()
def fetch(
    message: Annotated[str, typer.Argument(metavar="SUBJECT|STREAM:SEQ", help="A subject, or one message.")],
    *,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the deliverable's files below this folder.", file_okay=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="With --out: overwrite files that are there.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print a deliverable: the markdown, or with --json all of the message.

    Its files are listed on stderr. --out writes them, all or none: each is checked against its sha256 first.

    A subject means the last message under it, of whatever run; STREAM:SEQ is one message for ever.

    What retention has dropped comes from the archive; stderr, or `from` with --json, says so.

    Example: coatcheck fetch agog.deliverables.roy.backend.customer-search

    Example: coatcheck fetch agog_features_backend:1 --json

    Example: coatcheck fetch agog_features_backend:1 --out customer-search
    """
    from coatcheck.cli import reading, session  # noqa: PLC0415

    session.run(reading.fetch(message, out=out, force=force, as_json=as_json, data_dir=data_dir))


@app.command()
def deliverables(
    feature: Annotated[str, typer.Argument(help="Slug of the feature.")],
    *,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """List what all runs of a feature have delivered.

    Example: coatcheck deliverables customer-search
    """
    from coatcheck.cli import reading, session  # noqa: PLC0415

    session.run(reading.deliverables(feature, as_json=as_json, data_dir=data_dir))


@app.command()
def similar(
    message: Annotated[str, typer.Argument(metavar="SUBJECT|STREAM:SEQ", help="A subject, or one message.")],
    *,
    task_type: Annotated[
        str | None, typer.Option("--type", metavar="TASK_TYPE", help="Only deliverables of this type.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, nearest first.")] = 10,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """List what has been written before on something like it: earlier deliverables of other features.

    By a small model on this machine (extra `embeddings`), or by COATCHECK_EMBEDDING_MODEL of an OpenAI-compatible
    endpoint, which then gets the texts.

    Example: coatcheck similar agog.deliverables.cynthia.research.customer-search

    Example: coatcheck similar agog_features_research:7 --type backend --json
    """
    from coatcheck.cli import likeness, session  # noqa: PLC0415

    session.run(likeness.similar(message, task_type=task_type, limit=limit, as_json=as_json, data_dir=data_dir))


@app.command()
def streams(
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 when a stream is missing or its settings have drifted.")
    ] = False,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show the streams' and buckets' state, what is not archived yet, and whether their settings are as declared.

    Example: coatcheck streams --check
    """
    from coatcheck.cli import reading, session  # noqa: PLC0415

    session.run(reading.streams(check=check, as_json=as_json, data_dir=data_dir))


@app.command()
def runs(
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, latest first.")] = 50,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """List the latest runs.

    Example: coatcheck runs --limit 10
    """
    from coatcheck.cli import reading, session  # noqa: PLC0415

    session.run(reading.runs(limit=limit, as_json=as_json, data_dir=data_dir))
