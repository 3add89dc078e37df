"""Where files go: a folder, or object storage by its URL. A file there is whole or it is not there."""

import io
import os
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol
from urllib.parse import urlsplit

from coatcheck.errors import CoatcheckError, DependencyDownError

PATIENCE_SECONDS: Final = 60.0
"""How long a request is repeated."""
SCHEMES: Final = ("s3", "gs", "az")
DEFAULT_DESTINATION: Final = "data/training"
"""Seed 004, Training Data Store."""
_EXTRA_HINT: Final = "object storage needs the extra `archive`: pip install 'coatcheck[archive]'"


class DestinationError(CoatcheckError):
    """The destination cannot be written to, as far as can be told for good."""

    code = "export.destination"


class DestinationDownError(DependencyDownError):
    """The object storage does not answer."""


class Destination(Protocol):
    """A place for files, by relative POSIX path."""

    def put(self, path: str, source: Path | bytes) -> None:
        """Store bytes, or those of a file, under `path`, at once, in place of what was there.

        Raises:
            DestinationError: it is refused.
            DestinationDownError: no answer.
        """

    def get(self, path: str) -> bytes | None:
        """A file's bytes; `None` when it is not there. Raises as `put` does."""

    def get_range(self, path: str, start: int, length: int) -> bytes | None:
        """At most `length` of a file's bytes, from one that it has on; otherwise as `get`."""

    def entries(self, folder: str) -> list[str]:
        """Names of files and folders in a folder, sorted; none when it is not there. Raises as `put` does."""


class Folder:
    """A local folder. What `put` has returned for survives the machine's end."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, path: str, source: Path | bytes) -> None:
        """Write beside the target, flush to the disk, rename; raises as `Destination.put` does."""
        target = self._root / path
        try:
            try:
                _write(target, source)
            except FileNotFoundError:  # its folder, as a rule: only once in a thousand writes
                _make_folder(target.parent)
                _write(target, source)
        except OSError as error:
            raise DestinationError(f"cannot write {target}: {error.strerror}") from error

    def get(self, path: str) -> bytes | None:
        """Read a file; raises as `Destination.get` does."""
        return self.get_range(path, 0, -1)

    def get_range(self, path: str, start: int, length: int) -> bytes | None:
        """Read a part of a file; raises as `Destination.get` does."""
        try:
            with (self._root / path).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DestinationError(f"cannot read {self._root / path}: {error.strerror}") from error

    def entries(self, folder: str) -> list[str]:
        """List a folder, without what is being written; raises as `Destination.entries` does."""
        try:
            return sorted(path.name for path in (self._root / folder).iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DestinationError(f"cannot read {self._root / folder}: {error.strerror}") from error


class ObjectStorage:
    """A bucket, or a part of one. Credentials come from the variables of its vendor, such as `AWS_ACCESS_KEY_ID`."""

    def __init__(self, url: str, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        try:
            from obstore.store import from_url  # noqa: PLC0415  16 MB that a folder does not need
        except ImportError as error:
            raise DestinationError(f"{url}: obstore is not installed", hint=_EXTRA_HINT) from error
        with _storage_errors(url):
            self._store = from_url(url, retry_config={"retry_timeout": timedelta(seconds=patience_seconds)})
        self._url = url

    def put(self, path: str, source: Path | bytes) -> None:
        """Upload in parts; the object appears when the last one is there. Raises as `Destination.put` does."""
        from obstore import put  # noqa: PLC0415

        with _storage_errors(self._place(path)):
            put(self._store, path, source)

    def get(self, path: str) -> bytes | None:
        """Download; raises as `Destination.get` does."""
        from obstore import get  # noqa: PLC0415

        try:
            with _storage_errors(self._place(path)):
                return bytes(get(self._store, path).bytes())
        except FileNotFoundError:
            return None

    def get_range(self, path: str, start: int, length: int) -> bytes | None:
        """Download a part; raises as `Destination.get_range` does."""
        from obstore import get_range, head  # noqa: PLC0415
        from obstore.exceptions import GenericError  # noqa: PLC0415

        try:
            with _storage_errors(self._place(path)):
                end = min(start + length, head(self._store, path)["size"])
                # No bytes at all are not a range that may be asked for.
                return bytes(get_range(self._store, path, start=start, end=end)) if start < end else b""
        except FileNotFoundError:
            return None
        except DestinationDownError as error:
            if not isinstance(error.__cause__, GenericError):
                raise
            # Some S3-compatible servers answer a range with the whole object, which the library refuses.
            return None if (data := self.get(path)) is None else data[start : start + length]

    def entries(self, folder: str) -> list[str]:
        """List what has this beginning; raises as `Destination.entries` does."""
        from obstore import list_with_delimiter  # noqa: PLC0415

        with _storage_errors(self._place(folder)):
            found = list_with_delimiter(self._store, folder)
        paths = [*found["common_prefixes"], *(item["path"] for item in found["objects"])]
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def _place(self, path: str) -> str:
        return f"{self._url.rstrip('/')}/{path}"


def open_destination(where: str, *, patience_seconds: float = PATIENCE_SECONDS) -> Destination:
    """A folder, or `s3://bucket/path`, `gs://bucket/path`, `az://account/container/path`.

    Args:
        where: Path or URL.
        patience_seconds: How long a request to object storage is repeated.

    Raises:
        DestinationError: the URL's scheme is not known, or the storage's settings are incomplete.
    """
    parts = urlsplit(where)
    if parts.scheme in SCHEMES:
        return ObjectStorage(where, patience_seconds=patience_seconds)
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


def _write(target: Path, source: Path | bytes) -> None:
    part = target.with_name(f".{secrets.token_hex(8)}.part")  # a second writer has one of its own
    try:
        with part.open("xb") as writing, _opened(source) as reading:
            shutil.copyfileobj(reading, writing)
            writing.flush()
            os.fsync(writing.fileno())
        part.replace(target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    _flush_folder(target.parent)


def _opened(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _make_folder(folder: Path) -> None:
    """Make it and what is missing above it, each on the disk before a file in it is."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """A rename is on the disk once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
