"""Options that many commands have."""

from pathlib import Path
from typing import Annotated

import typer

DataDir = Annotated[
    Path,
    typer.Option(
        "--data-dir", envvar="COATCHECK_DATA_DIR", help="Data, logs, keys and status of the stack.", file_okay=False
    ),
]
DEFAULT_DATA_DIR = Path(".coatcheck")

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="COATCHECK_CONFIG",
        help="Own roles and pipelines. [default: ./coatcheck.toml if it exists]",
        dir_okay=False,
    ),
]
"""`coatcheck.toml`; `session.config_file` finds it when the option is not given."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]

Run = Annotated[str, typer.Argument(metavar="RUN", help="A feature, a workflow id or a run key.")]
"""The run that a command is about; `runs` says what each form means."""
