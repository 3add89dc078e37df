"""The program `coatcheck`. Each module named in `GROUPS` is a group of commands with a `typer` app of its own.

stdout carries data, stderr talk. Exit codes: 0 ok, 1 failed, 2 misuse, 3 a dependency is down, 130 Ctrl-C.
"""

import contextlib
import os
import sys
from importlib import import_module
from typing import Final

import typer

from coatcheck.cli.voice import EXIT_FAILED, complain, tell
from coatcheck.errors import CoatcheckError

GROUPS: Final = (
    "demo",
    "stack",
    "pipeline",
    "programs",
    "questions",
    "ledger",
    "records",
    "events",
    "archive",
    "logs",
    "agents",
    "benchmark",
    "judging",
    "tools",
    "configuration",
    "operations",
)
"""Modules of commands, in the order of `--help`."""
EXIT_INTERRUPTED: Final = 130
DEBUG_VARIABLE: Final = "COATCHECK_DEBUG"


def build() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        name="coatcheck",
        help="Feature requests through a team of LLM agents, durably.",
        rich_markup_mode=None,  # plain help: rich would take longer to import than the help takes to write
        pretty_exceptions_enable=False,
        context_settings={"max_content_width": 110},
    )
    for group in GROUPS:
        app.add_typer(import_module(f"coatcheck.cli.{group}").app)
    return app


def main() -> None:
    """Run the command line and leave the process with its exit code.

    `os._exit` after flushing, since the interpreter's own exit sometimes aborts in Temporal's core (sdk-python#300).
    """
    code = _run(sys.argv[1:] or ["--help"])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # whoever read it has gone
            stream.flush()
    os._exit(code)


def _run(arguments: list[str]) -> int:
    """Carry out a command line; whatever goes wrong is one line on stderr and an exit code."""
    try:
        code = build()(arguments, standalone_mode=False)
    except CoatcheckError as error:
        return complain(error)
    except typer.TyperException as error:
        tell(f"error: {_lower(error.format_message())}")
        tell("hint: `coatcheck --help` lists the commands, `coatcheck COMMAND --help` explains one")
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else EXIT_FAILED
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        tell(f"error: unexpected {type(error).__name__}: {error}")
        tell(f"hint: this is a fault of coatcheck's own; {DEBUG_VARIABLE}=1 shows where it comes from")
        return EXIT_FAILED
    return code if isinstance(code, int) else 0


def _lower(message: str) -> str:
    """`Missing argument 'RUN'.` → `missing argument 'RUN'`."""
    return (message[:1].lower() + message[1:]).replace("Value error, ", "").rstrip(".")
