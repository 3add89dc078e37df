"""`WorkspaceFolder`: where a worker's workspaces are, each for one attempt; nothing of them outlives it.

A workspace of a process that was killed is found by its lock: the file `lock` beside it is held (`flock`) as long as
the attempt runs and is let go by the system when the process ends, however it ends. The number and start time of a
process would name it too, but not across two containers that share a volume, and not when the clock is set.
"""

import fcntl
import logging
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from coatcheck.workspace.files import Workspace

_LOCK: Final = "lock"
_FILES: Final = "files"
_NAME: Final = re.compile(r"ws-[a-z0-9-]{1,80}")
"""Only what has such a name is ever removed by a sweep."""
_MAX_NAME_CHARACTERS: Final = 60
_OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_log = logging.getLogger(__name__)


class WorkspaceFolder:
    """The folder below which workspaces are made; several workers may share it.

    Args:
        base: Made when it is missing, for this user only.
    """

    def __init__(self, base: Path) -> None:
        self._base = base

    def sweep(self) -> int:
        """Remove what dead processes have left; to be called when a worker starts.

        Returns:
            How many workspaces it removed. Those of living processes, this one's too, are left alone.
        """
        self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
        return sum(_sweep(folder) for folder in sorted(self._base.iterdir()) if _NAME.fullmatch(folder.name))

    @contextmanager
    def open(self, task_key: str, own: str) -> Iterator[Workspace]:
        """A fresh workspace, removed at the end with all that is in it, whatever happened.

        Every call makes another one: two attempts at one task never see each other's files. Blocks for the removal,
        about 50 ms for 1,000 files.

        Args:
            task_key: What it is for; shown in the folder's name.
            own: The stage whose folder is writable.

        Raises:
            ArtifactInvalidError: `own` is no plain name.
            OSError: the disk is full or broken.
        """
        self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder, lock = self._locked(task_key)
        try:
            root = folder / _FILES
            root.mkdir(mode=0o700)
            yield Workspace(root, own=own)
        finally:
            _remove(folder)
            os.close(lock)

    def _locked(self, task_key: str) -> tuple[Path, int]:
        """A new folder and the descriptor of its lock, which is held; a sweep may take a folder before it is locked."""
        readable = re.sub(r"[^a-z0-9]+", "-", task_key.lower())[-_MAX_NAME_CHARACTERS:].strip("-")
        while True:
            folder = self._base / f"ws-{readable}-{secrets.token_hex(6)}"
            folder.mkdir(mode=0o700)
            if (lock := _lock(folder)) is not None:
                return folder, lock


def _lock(folder: Path) -> int | None:
    """Hold the folder's lock; `None` when another process holds it, or has removed the folder."""
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), (folder / _LOCK).lstat()):
            return descriptor
    os.close(descriptor)
    return None


def _sweep(folder: Path) -> bool:
    if (lock := _lock(folder)) is None:
        return False
    try:
        return _remove(folder)
    finally:
        os.close(lock)


def _remove(folder: Path) -> bool:
    """Remove a folder, its lock last; what cannot be removed is logged and left to a later sweep."""
    try:
        top = os.open(folder, _OPEN_FOLDER)
        try:
            _empty(top)
        finally:
            os.close(top)
        (folder / _LOCK).unlink(missing_ok=True)
        folder.rmdir()
    except OSError as error:
        _log.warning("a workspace is left behind: %s", error)
        return False
    return True


def _empty(top: int) -> None:
    """Unlink everything below a folder but its lock, without following links.

    Not `shutil.rmtree`: it fails on folders without permissions and, before Python 3.13, on a thousand nested ones,
    and a program of an agent may have left either. Here each folder's content is moved to the top first, so there is
    no depth.
    """
    while entries := [entry for entry in _list(top) if entry[0] != _LOCK]:
        for name, is_folder in entries:
            if is_folder:
                _raise_children(name, top)
                os.rmdir(name, dir_fd=top)
            else:
                os.unlink(name, dir_fd=top)


def _raise_children(name: str, top: int) -> None:
    """Move what is in a folder of `top` into `top`, under names that nobody has."""
    os.chmod(name, 0o700, dir_fd=top)
    folder = os.open(name, _OPEN_FOLDER, dir_fd=top)
    try:
        for child, is_folder in _list(folder):
            if is_folder:
                os.chmod(child, 0o700, dir_fd=folder)  # a folder that moves is written to
            os.rename(child, f".{secrets.token_hex(16)}", src_dir_fd=folder, dst_dir_fd=top)
    finally:
        os.close(folder)


def _list(folder: int) -> list[tuple[str, bool]]:
    """Name, and whether it is a folder and no link to one."""
    with os.scandir(folder) as entries:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
