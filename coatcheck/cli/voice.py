"""How the command line talks: short, exact, with a hint where a mistake is likely."""

import sys
from typing import Final

from coatcheck.errors import CoatcheckError, ConfigError, DependencyDownError

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_MISUSE: Final = 2
EXIT_DEPENDENCY_DOWN: Final = 3


class MisuseError(CoatcheckError):
    """The command cannot be carried out as it was given."""

    code = "cli.misuse"


def tell(line: str) -> None:
    """Say something to the person; stdout stays for data."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def complain(error: CoatcheckError) -> int:
    """Tell an error and its hint; returns the exit code that goes with it."""
    for line in str(error).splitlines() if isinstance(error, ConfigError) else [str(error)]:
        tell(f"error: {line}")
    if error.hint:
        tell(f"hint: {error.hint}")
    if isinstance(error, MisuseError | ConfigError):
        return EXIT_MISUSE
    return EXIT_DEPENDENCY_DOWN if isinstance(error, DependencyDownError) else EXIT_FAILED
