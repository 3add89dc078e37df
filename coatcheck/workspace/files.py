"""`Workspace`: the folders that the tools of one agent see, one per stage, its own one writable.

It lives for one attempt of one round: the next attempt repeats the journalled tool calls in a fresh one, which makes
the same tree. Hence nothing here is synced to disk, and every result depends on the tree alone: sorted, and without
times. Everything is checked before the first byte is written. `coatcheck.workspace.tree` keeps all of it inside.

Everything that an agent's path, pattern or patch can cause is an `ArtifactInvalidError` with a text for the agent.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from coatcheck.errors import ArtifactInvalidError
from coatcheck.workspace.names import LITTER, Names, check_sizes, checked_path, is_litter, is_plain
from coatcheck.workspace.patch import apply_unified
from coatcheck.workspace.search import MAX_TEXT_BYTES, LineSearch, Match
from coatcheck.workspace.tree import MAX_FILE_BYTES, ConfinedTree, Entry
from schemas.deliverable import MAX_PATH_BYTES

__all__ = ["MAX_FILE_BYTES", "Match", "Workspace", "WorkspaceFile"]


class WorkspaceFile(NamedTuple):
    """A file that can be read."""

    path: str
    """From the workspace's root, such as `backend/src/app.py`."""
    bytes: int


class Workspace:
    """The stages' folders of one attempt.

    Args:
        root: A folder of ours that exists.
        own: The agent's own stage, whose folder is made.

    Raises:
        ArtifactInvalidError: `own` is no plain name.
    """

    def __init__(self, root: Path, *, own: str) -> None:
        self.root = root
        self.own = _checked_stage(own)
        self._tree = ConfinedTree(root)
        self._tree.make_folder(own)

    def list_files(self, folder: str = "") -> list[WorkspaceFile]:
        """The files below a folder (of all stages for an empty name), in order of their paths.

        Only what `read` can give: no links, no special files, nothing that belongs to a tool (`.git`, `node_modules`).

        Raises:
            ArtifactInvalidError: there is no such folder.
        """
        return sorted(self._files(folder))

    def read(self, path: str) -> bytes:
        """The content of a file.

        Raises:
            ArtifactInvalidError: there is none, it is over `MAX_FILE_BYTES`, or it is a link or a special file.
        """
        return self._tree.read(_parts(path))

    def write(self, path: str, data: bytes) -> None:
        """Make or replace a file of the own stage, whole or not at all.

        Raises:
            ArtifactInvalidError: it is not below the own folder, or the stage would break a limit or a rule of names.
        """
        self._change({path: data})

    def search(self, pattern: str, folder: str = "", *, limit: int = 200) -> list[Match]:
        """The lines that match a regular expression (RE2 syntax), in order of paths and lines.

        Files over 1 MiB and files with NUL bytes are data and are left out.

        Args:
            pattern: For one line at a time.
            folder: As in `list_files`.
            limit: At most so many lines.

        Raises:
            ArtifactInvalidError: the pattern is none, or it needs too much time; or there is no such folder.
        """
        search = LineSearch(pattern, limit=limit)
        for file in self.list_files(folder):
            if search.is_full:
                break
            if file.bytes <= MAX_TEXT_BYTES:
                search.add(file.path, self._content(file.path))
        return search.matches

    def apply_patch(self, patch: str) -> list[str]:
        """Change files of the own stage by a unified diff, all of it or nothing.

        Returns:
            The changed, made and removed paths, in order.

        Raises:
            ArtifactInvalidError: it is no patch, does not fit the files, or breaks a rule of `write`.
        """
        changes = apply_unified(patch, lambda path: self._tree.find(self._own_path(path)))
        self._change(changes)
        return sorted(changes)

    def add_stage(self, stage: str, files: Mapping[str, bytes]) -> None:
        """Put a stage's artifacts into its folder, which must be empty; also the own stage's, of an earlier round.

        Args:
            stage: The name of the folder.
            files: Path below that folder → content.

        Raises:
            ArtifactInvalidError: the files break a limit or a rule of names, or the folder is not empty; nothing was
                written.
        """
        names = Names()
        for path in files:
            names.take(checked_path(path))
        check_sizes({path: len(data) for path, data in files.items()})
        self._tree.make_folder(_checked_stage(stage))
        if next(self._tree.walk([stage]), None) is not None:
            raise ArtifactInvalidError(f"the folder of the stage {stage!r} is not empty")
        for path, data in files.items():
            self._tree.replace([stage, *path.split("/")], data)

    def own_files(self) -> dict[str, bytes]:
        """The files of the own stage: path below its folder → content, in order of the paths.

        What a program left there is taken as it is, or refused: a symbolic link or a hard link could bring in what is
        outside, and without it the files would not be what was tried. Left out are what no content is (sockets,
        FIFOs, devices, empty folders) and what belongs to tools (`.git`, `.venv`, `node_modules`, `__pycache__`,
        `*.pyc`).

        Raises:
            ArtifactInvalidError: a link, a name that means another file on another system, or a limit.
        """
        sizes = self._own_sizes()
        files: dict[str, bytes] = {}
        for path in sorted(sizes):
            files[path] = self._tree.read([self.own, *path.split("/")])
            if len(files[path]) != sizes[path]:
                raise ArtifactInvalidError(f"{path!r} was changed while it was read", hint="a process still writes it")
        return files

    def _files(self, folder: str) -> Iterator[WorkspaceFile]:
        plain = "" if folder == "." else folder.removesuffix("/")
        where = _parts(plain) if plain else []
        for entry in self._tree.walk(where, skipped=LITTER):
            path = "/".join([*where, entry.path])
            if stat.S_ISREG(entry.mode) and entry.links == 1 and _is_readable(path):
                yield WorkspaceFile(path, entry.bytes)

    def _content(self, path: str) -> bytes:
        """Empty when it is not any more what was listed."""
        try:
            return self.read(path)
        except ArtifactInvalidError:
            return b""

    def _change(self, changes: Mapping[str, bytes | None]) -> None:
        """Check everything, then make (bytes) and remove (`None`) files, all or none."""
        paths = {path: self._own_path(path) for path in changes}
        self._check_after({"/".join(paths[path][1:]): data for path, data in changes.items()})
        before = {path: self._tree.find(paths[path]) for path in changes} if len(changes) > 1 else {}
        begun: list[str] = []
        try:
            for path, data in changes.items():
                begun.append(path)
                self._put(paths[path], data)
        except BaseException:
            for path in begun if before else ():
                self._put(paths[path], before[path])
            raise

    def _put(self, path: list[str], data: bytes | None) -> None:
        if data is None:
            self._tree.remove(path)
        else:
            self._tree.replace(path, data)

    def _check_after(self, changes: Mapping[str, bytes | None]) -> None:
        """Check the own stage as it would be; paths are below its folder."""
        sizes, folders = {}, []
        for entry in self._tree.walk([self.own], skipped=LITTER):
            if stat.S_ISDIR(entry.mode):
                folders.append(entry.path)
            elif not is_litter(entry.path):
                sizes[entry.path] = entry.bytes if stat.S_ISREG(entry.mode) else 0
        sizes = {path: size for path, size in sizes.items() if changes.get(path, b"") is not None}
        made = {path: len(data) for path, data in changes.items() if data is not None}
        names = Names(files=sizes, folders=folders)
        for path in made:
            names.take(path)
        check_sizes(sizes | made)

    def _own_sizes(self) -> dict[str, int]:
        """What `own_files` would give: path → bytes."""
        names, sizes = Names(), {}
        for entry in self._tree.walk([self.own], skipped=LITTER):
            if is_litter(entry.path) or not _is_content(entry):
                continue
            names.take(checked_path(entry.path))
            sizes[entry.path] = entry.bytes
        check_sizes(sizes)
        return sizes

    def _own_path(self, path: str) -> list[str]:
        stage, *rest = _parts(path)
        if stage != self.own or not rest:
            raise ArtifactInvalidError(
                f"{path!r} is not in your own folder; the others are read-only",
                hint=f"write to a path such as '{self.own}/app.py'",
            )
        if is_litter("/".join(rest)):
            raise ArtifactInvalidError(
                f"{path!r} belongs to a tool and would not be kept",
                hint=f"left out are {', '.join(sorted(LITTER))} and *.pyc",
            )
        return [stage, *rest]


def _is_content(entry: Entry) -> bool:
    """Whether it belongs to the files of a stage.

    Raises:
        ArtifactInvalidError: it is a link, or a folder too deep to look into.
    """
    if stat.S_ISLNK(entry.mode):
        raise ArtifactInvalidError(f"{entry.path!r} is a symbolic link", hint="only regular files are kept; copy it")
    if stat.S_ISDIR(entry.mode):
        if len(os.fsencode(entry.path)) > MAX_PATH_BYTES:
            checked_path(entry.path)
        return False
    return stat.S_ISREG(entry.mode)


def _checked_stage(stage: str) -> str:
    if "/" in checked_path(stage) or is_litter(stage):
        raise ArtifactInvalidError(f"{stage!r} is no name of a stage", hint="one plain name, such as 'backend'")
    return stage


def _parts(path: str) -> list[str]:
    """The stage and the path below its folder, which has the limit of a path to itself."""
    if not all(is_plain(part) for part in path.split("/", 1)):
        checked_path(path)
    return path.split("/")


def _is_readable(path: str) -> bool:
    return not is_litter(path) and all(is_plain(part) for part in path.split("/", 1))
