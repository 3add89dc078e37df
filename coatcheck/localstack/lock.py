"""One supervisor per data directory."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from coatcheck.errors import CoatcheckError


class StackLockedError(CoatcheckError):
    """Another supervisor runs this stack."""

    code = "localstack.locked"


@contextlib.contextmanager
def stack_lock(data_dir: Path) -> Iterator[None]:
    """Hold the stack's lock; the kernel gives it back when the process dies, however that happens.

    Raises:
        StackLockedError: another process holds it.
    """
    with (data_dir / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackLockedError(
                f"another `coatcheck up` or `down` works on {data_dir}", hint="see `coatcheck status`"
            ) from None
        yield
