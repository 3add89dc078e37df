"""`config check|show|schema`: a team's own agents and pipelines, as they were understood."""

from pathlib import Path
from typing import Annotated

import typer

from coatcheck.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir

app = typer.Typer()
config = typer.Typer(help="coatcheck.toml: own agents and pipelines.")
app.add_typer(config, name="config")


@config.command()
def check(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="The file. [default: ./coatcheck.toml]", envvar="COATCHECK_CONFIG", dir_okay=False
        ),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Check a coatcheck.toml and print what was understood. Exits with 2 when something in it is wrong.

    Example: coatcheck config check docs/examples/security-review/coatcheck.toml
    """
    from coatcheck.cli import team  # noqa: PLC0415  `--help` must not wait for it
    from coatcheck.cli.session import config_file  # noqa: PLC0415

    team.show(config_file(file), as_json=as_json)


@config.command()
def show(*, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Print the agents and pipelines that are in force in a stack.

    Example: coatcheck config show --json
    """
    from coatcheck.cli import team  # noqa: PLC0415
    from coatcheck.cli.session import load_settings  # noqa: PLC0415

    team.show(load_settings(data_dir).config_file, as_json=as_json)


@config.command()
def schema() -> None:
    """Print the JSON schema of coatcheck.toml, for editors.

    Example: coatcheck config schema
    """
    from coatcheck.cli.output import emit_json  # noqa: PLC0415
    from coatcheck.config import document_schema  # noqa: PLC0415

    emit_json(document_schema())
