"""The program `coatcheck`. Each module of this package is a group of commands with a `typer` app of its own.

stdout carries data, stderr talk. Exit codes: 0 ok, 1 failed, 2 misuse, 3 a dependency is down.
"""

import sys
from importlib import import_module
from typing import Final

import typer

from coatcheck.cli.voice import complain
from coatcheck.errors import CoatcheckError

GROUPS: Final = ("stack",)
"""Modules of commands, in the order of `--help`."""


def build() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        name="coatcheck", help="Feature requests through a team of LLM agents, durably.", no_args_is_help=True
    )
    for group in GROUPS:
        app.add_typer(import_module(f"coatcheck.cli.{group}").app)
    return app


def main() -> None:
    """Run the command line and leave with its exit code."""
    try:
        build()()
    except CoatcheckError as error:
        sys.exit(complain(error))
