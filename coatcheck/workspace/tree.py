"""`ConfinedTree`: file operations that cannot leave one folder, whatever lies in it.

No path is ever resolved and then opened: between the two, a process of the agent could put a symbolic link there. Every
operation walks from the folder down, one name at a time, each relative to the descriptor of the folder before and
without following links (`openat` with `O_NOFOLLOW`), and looks at what it has opened (`fstat`), not at a name. A file
with a second name (a hard link) is not read, since the other name may be outside; writing replaces the name only.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from coatcheck.errors import ArtifactInvalidError
from schemas.deliverable import MAX_PATH_BYTES

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
"""One file; it is held in memory whole."""
MAX_ENTRIES: Final = 100_000
"""What one walk looks at: ten times the files of a deliverable, so that litter does not hide the files."""

_OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""`O_NONBLOCK`: opening a FIFO that nobody writes to would wait for ever."""
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_REFUSALS: Final = {
    errno.ENOENT: "there is no such file",
    errno.ENOTDIR: "a part of it is a file or a symbolic link, not a folder",
    errno.EISDIR: "it is a folder",
    errno.ELOOP: "a part of it is a symbolic link",
    errno.EMLINK: "a part of it is a symbolic link",
    errno.ENXIO: "it is not a regular file",
    errno.ENODEV: "it is not a regular file",
    errno.EOPNOTSUPP: "it is not a regular file",
    errno.ENAMETOOLONG: "a name in it is too long",
    errno.EILSEQ: "this file system takes no such name",
    errno.EACCES: "it is not accessible",
    errno.EPERM: "it is not accessible",
}
"""What a hostile or mistaken path can cause. Anything else (a full disk) is a fault of the machine and is raised."""


class Entry(NamedTuple):
    """Something in the tree, as its directory lists it."""

    path: str
    """Relative to where the walk began; bytes that are not UTF-8 are surrogates."""
    mode: int
    """`st_mode`, of a link itself."""
    bytes: int
    links: int
    """How many names it has."""


class ConfinedTree:
    """Operations below `root`, which must exist and be a folder of ours. Paths are sequences of plain names."""

    def __init__(self, root: Path) -> None:
        self._root = root
        info = root.lstat()
        self._identity = info.st_dev, info.st_ino

    def walk(self, folder: Sequence[str], *, skipped: frozenset[str] = frozenset()) -> Iterator[Entry]:
        """Everything below a folder, each folder before what is in it; links are told and not followed.

        Args:
            folder: Where to begin.
            skipped: Names, in lower case, that are left out with all that is below them.

        Raises:
            ArtifactInvalidError: there is no such folder, or more than `MAX_ENTRIES` are below it.
        """
        with _refusing("/".join(folder)), self._folder(folder) as descriptor:
            for number, entry in enumerate(_walk(descriptor, "", skipped)):
                if number >= MAX_ENTRIES:
                    raise ArtifactInvalidError(f"there are more than {MAX_ENTRIES:,} files and folders")
                yield entry

    def read(self, path: Sequence[str]) -> bytes:
        """The bytes of a regular file.

        Raises:
            ArtifactInvalidError: it is anything else, has a second name, is over `MAX_FILE_BYTES`, or is not there.
        """
        with _refusing("/".join(path)):
            return self._read(path)

    def find(self, path: Sequence[str]) -> bytes | None:
        """As `read`, but `None` when there is no such file."""
        with _refusing("/".join(path)):
            try:
                return self._read(path)
            except FileNotFoundError:
                return None

    def replace(self, path: Sequence[str], data: bytes) -> None:
        """Write a file and its folders: whoever looks sees the old bytes or the new, never a part.

        Raises:
            ArtifactInvalidError: the name is taken by something else than a regular file, or leads through one.
            OSError: the disk is full or broken.
        """
        with _refusing("/".join(path)), self._folder(path[:-1], create=True) as folder:
            _check_replaceable(path, folder)
            temporary = f".{secrets.token_hex(8)}.tmp"
            try:
                with os.fdopen(os.open(temporary, _CREATE, 0o600, dir_fd=folder), "wb") as file:
                    file.write(data)
                os.rename(temporary, path[-1], src_dir_fd=folder, dst_dir_fd=folder)  # never through a link
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
                raise

    def remove(self, path: Sequence[str]) -> None:
        """Remove a file; not an error when it is gone.

        Raises:
            ArtifactInvalidError: it is a folder, or the way leads through a link.
        """
        with _refusing("/".join(path)), self._folder(path[:-1]) as folder, suppress(FileNotFoundError):
            os.unlink(path[-1], dir_fd=folder)

    def make_folder(self, name: str) -> None:
        """Make a folder at the top, unless it is there.

        Raises:
            ArtifactInvalidError: something else has its name.
        """
        with _refusing(name), self._folder([name], create=True):
            pass

    def _read(self, path: Sequence[str]) -> bytes:
        name = "/".join(path)
        with self._folder(path[:-1]) as folder, _open_file(path[-1], folder) as descriptor:
            _check_readable(name, os.fstat(descriptor))
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:  # it grew
            raise _too_large(name, len(data))
        return data

    @contextmanager
    def _folder(self, names: Sequence[str], *, create: bool = False) -> Iterator[int]:
        """The descriptor of a folder, reached one name at a time."""
        descriptor = os.open(self._root, _OPEN_FOLDER)
        try:
            info = os.fstat(descriptor)
            if (info.st_dev, info.st_ino) != self._identity:
                raise ArtifactInvalidError("the workspace's folder has been exchanged for another one")
            for name in names:
                if create:
                    with suppress(FileExistsError):
                        os.mkdir(name, 0o700, dir_fd=descriptor)
                deeper = os.open(name, _OPEN_FOLDER, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = deeper
            yield descriptor
        finally:
            os.close(descriptor)


def _walk(folder: int, prefix: str, skipped: frozenset[str]) -> Iterator[Entry]:
    """Depth first; a path over the limit is told, but not gone into, which also bounds the open descriptors."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in islice(entries, MAX_ENTRIES + 1))
    for name in names:
        if name.lower() in skipped:
            continue
        path = prefix + name
        try:
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
            yield Entry(path, info.st_mode, info.st_size, info.st_nlink)
            if not stat.S_ISDIR(info.st_mode) or len(os.fsencode(path)) > MAX_PATH_BYTES:
                continue
            deeper = os.open(name, _OPEN_FOLDER, dir_fd=folder)
        except (FileNotFoundError, NotADirectoryError):
            continue  # it changed meanwhile
        except PermissionError as error:
            raise ArtifactInvalidError(f"the folder {path!r} cannot be looked into", hint="make it readable") from error
        try:
            yield from _walk(deeper, f"{path}/", skipped)
        finally:
            os.close(deeper)


@contextmanager
def _open_file(name: str, folder: int) -> Iterator[int]:
    descriptor = os.open(name, _OPEN_FILE, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check_readable(name: str, info: os.stat_result) -> None:
    if stat.S_ISDIR(info.st_mode):
        raise ArtifactInvalidError(f"{name!r} is a folder", hint="list_files shows what is in it")
    if not stat.S_ISREG(info.st_mode):
        raise ArtifactInvalidError(f"{name!r} is not a regular file", hint="only regular files are read")
    if info.st_nlink > 1:
        raise ArtifactInvalidError(
            f"{name!r} is a hard link: the same file has another name, perhaps outside", hint="copy it instead"
        )
    if info.st_size > MAX_FILE_BYTES:
        raise _too_large(name, info.st_size)


def _check_replaceable(path: Sequence[str], folder: int) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path[-1], dir_fd=folder, follow_symlinks=False).st_mode):
            raise ArtifactInvalidError(
                f"{'/'.join(path)!r} is a folder, a symbolic link or a device, not a regular file",
                hint="write to another path",
            )


def _too_large(name: str, size: int) -> ArtifactInvalidError:
    return ArtifactInvalidError(
        f"{name!r} has {size:,} bytes; a file has at most {MAX_FILE_BYTES:,}", hint="split it, or leave it out"
    )


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turn what a path can cause into a refusal."""
    try:
        yield
    except OSError as error:
        if (reason := _REFUSALS.get(error.errno or 0)) is None:
            raise
        raise ArtifactInvalidError(
            f"{name!r} cannot be used: {reason}", hint="list_files shows the files that can be read"
        ) from error
