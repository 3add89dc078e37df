"""Where the files go: a folder, or object storage by its URL. A file there is whole or it is not there."""

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from coatcheck.errors import CoatcheckError, DependencyDownError

PATIENCE_SECONDS: Final = 60.0
"""How long a request is repeated."""
SCHEMES: Final = ("s3", "gs", "az")
DEFAULT_DESTINATION: Final = "data/training"
"""Seed 004, Training Data Store."""


class DestinationError(CoatcheckError):
    """The destination cannot be written to, as far as can be told for good."""

    code = "export.destination"


class DestinationDownError(DependencyDownError):
    """The object storage does not answer."""


class Destination(Protocol):
    """A place for files, by relative POSIX path."""

    def put(self, path: str, source: Path) -> None:
        """Store a file's bytes under `path`, at once, in place of what was there.

        Raises:
            DestinationError: it is refused.
            DestinationDownError: no answer.
        """

    def get(self, path: str) -> bytes | None:
        """A small file's bytes; `None` when it is not there. Raises as `put` does."""


class Folder:
    """A local folder. What `put` has returned for survives the machine's end."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, path: str, source: Path) -> None:
        """Write beside the target, flush to the disk, rename; raises as `Destination.put` does."""
        target = self._root / path
        part = target.with_name(f".{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as reading, part.open("wb") as writing:
                shutil.copyfileobj(reading, writing)
                writing.flush()
                os.fsync(writing.fileno())
            part.replace(target)
            _flush_folder(target.parent)
        except OSError as error:
            raise DestinationError(f"cannot write {target}: {error.strerror}") from error

    def get(self, path: str) -> bytes | None:
        """Read a file; raises as `Destination.get` does."""
        try:
            return (self._root / path).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DestinationError(f"cannot read {self._root / path}: {error.strerror}") from error


class ObjectStorage:
    """A bucket, or a part of one. Credentials come from the variables of its vendor, such as `AWS_ACCESS_KEY_ID`."""

    def __init__(self, url: str, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        from obstore.store import from_url  # noqa: PLC0415  16 MB that a folder does not need

        with _storage_errors(url):
            self._store = from_url(url, retry_config={"retry_timeout": timedelta(seconds=patience_seconds)})
        self._url = url

    def put(self, path: str, source: Path) -> None:
        """Upload in parts; the object appears when the last one is there. Raises as `Destination.put` does."""
        from obstore import put  # noqa: PLC0415

        with _storage_errors(f"{self._url.rstrip('/')}/{path}"):
            put(self._store, path, source)

    def get(self, path: str) -> bytes | None:
        """Download; raises as `Destination.get` does."""
        from obstore import get  # noqa: PLC0415

        try:
            with _storage_errors(f"{self._url.rstrip('/')}/{path}"):
                return bytes(get(self._store, path).bytes())
        except FileNotFoundError:
            return None


def open_destination(where: str) -> Destination:
    """A folder, or `s3://bucket/path`, `gs://bucket/path`, `az://account/container/path`.

    Raises:
        DestinationError: the URL's scheme is not known, or the storage's settings are incomplete.
    """
    parts = urlsplit(where)
    if parts.scheme in SCHEMES:
        return ObjectStorage(where)
    if parts.scheme and "://" in where:
        raise DestinationError(f"{parts.scheme}:// is not known", hint=f"a folder, or {', '.join(SCHEMES)}://…")
    return Folder(Path(where))


@contextmanager
def _storage_errors(what: str) -> Generator[None]:
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError  # noqa: PLC0415

    try:
        yield
    except FileNotFoundError:
        raise
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise DestinationError(f"{what}: refused", hint="are the storage's credentials in the environment?") from error
    except (BaseError, OSError) as error:
        raise DestinationDownError(f"{what}: {_first_line(error)}") from error


def _first_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _flush_folder(folder: Path) -> None:
    """A rename is on the disk once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
