"""Which paths may lie beside each other in a workspace, and how many bytes: checked before anything is written.

Stricter than a Linux disk is, so that what is checked in here is the same tree on a system where upper and lower case
or the forms of Unicode do not count: of two such names the second is refused, also when only their folders differ so.
"""

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Final

from coatcheck.errors import ArtifactInvalidError
from coatcheck.workspace.tree import MAX_FILE_BYTES
from schemas.deliverable import MAX_ARTIFACT_BYTES, MAX_ARTIFACTS, check_artifact_path

LITTER: Final = frozenset({".git", ".venv", "__pycache__", "node_modules"})
"""Folders (and files) of tools, in lower case: installed, compiled or kept by them, never a deliverable."""
_COMPILED: Final = ".pyc"


def is_litter(path: str) -> bool:
    """Whether a path belongs to a tool and not to the work."""
    folded = path.lower()
    return folded.endswith(_COMPILED) or not LITTER.isdisjoint(folded.split("/"))


def is_plain(path: str) -> bool:
    """Whether a path means the same file on any system."""
    try:
        return check_artifact_path(path) == path
    except ValueError:
        return False


def checked_path(path: str) -> str:
    """The path, if it is plain.

    Raises:
        ArtifactInvalidError: it is not.
    """
    try:
        plain = check_artifact_path(path)
    except ValueError as error:
        raise ArtifactInvalidError(str(error), hint="a path looks like 'backend/src/app.py'") from error
    if plain != path:
        raise ArtifactInvalidError(f"the path {path!r} is not plain", hint=f"write {plain!r}")
    return path


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Check the files of one stage.

    Args:
        sizes: Path → bytes.

    Raises:
        ArtifactInvalidError: too many files, too many bytes, or one file is too large.
    """
    if len(sizes) > MAX_ARTIFACTS:
        raise ArtifactInvalidError(
            f"{len(sizes):,} files; a stage has at most {MAX_ARTIFACTS:,}", hint="leave out what can be made again"
        )
    for path, size in sizes.items():
        if size > MAX_FILE_BYTES:
            raise ArtifactInvalidError(
                f"{path!r} has {size:,} bytes; a file has at most {MAX_FILE_BYTES:,}", hint="split it, or leave it out"
            )
    if (total := sum(sizes.values())) > MAX_ARTIFACT_BYTES:
        raise ArtifactInvalidError(
            f"{total:,} bytes of files; a stage has at most {MAX_ARTIFACT_BYTES:,}",
            hint="leave out what can be made again",
        )


class Names:
    """The names that are taken in one stage's folder."""

    def __init__(self, *, files: Iterable[str] = (), folders: Iterable[str] = ()) -> None:
        self._spelling: dict[str, str] = {}
        self._files: set[str] = set()
        self._folders: set[str] = set()
        for path in folders:
            self._take_folders(f"{path}/")
        for path in files:
            self.take(path)

    def take(self, path: str) -> None:
        """Take a file's name, again or for the first time.

        Raises:
            ArtifactInvalidError: it is taken in another spelling, it is a folder, or it leads through a file.
        """
        self._take_folders(path)
        self._spell(path)
        if path in self._folders:
            raise ArtifactInvalidError(f"{path!r} is a folder", hint="write to another path")
        self._files.add(path)

    def _take_folders(self, path: str) -> None:
        folder = path.rpartition("/")[0]
        if not folder or folder in self._folders:
            return
        self._take_folders(folder)
        self._spell(folder)
        if folder in self._files:
            raise ArtifactInvalidError(
                f"{folder!r} is a file, but {path!r} needs it as a folder", hint="write to another path"
            )
        self._folders.add(folder)

    def _spell(self, path: str) -> None:
        other = self._spelling.setdefault(unicodedata.normalize("NFC", path.casefold()), path)
        if other != path:
            raise ArtifactInvalidError(
                f"{path!r} and {other!r} differ only in upper and lower case or in the form of their characters",
                hint="take the spelling that is there, or another name",
            )
