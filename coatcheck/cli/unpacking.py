"""`fetch --out`: the files of a deliverable, written below a folder of the person's choice.

The paths come from an agent. They are plain relative ones, or the deliverable could not have been read; what is left is
the folder itself, so a symbolic link in it is never followed. All is looked at before the first file is written, and
each file appears whole, by a rename.
"""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from coatcheck.cli.output import columns, emit, emit_json
from coatcheck.cli.voice import tell
from coatcheck.errors import CoatcheckError
from schemas.deliverable import Artifact, StoredDeliverable

_SHOWN: Final = 3
"""Files that a refusal names; there may be thousands."""


class FilesExistError(CoatcheckError):
    """Files would be overwritten."""

    code = "cli.files_exist"


class UnwritableError(CoatcheckError):
    """The folder cannot take the files."""

    code = "cli.unwritable"


def save(files: Mapping[str, bytes], folder: Path, *, force: bool) -> None:
    """Write files below a folder, which is made when it is not there.

    Args:
        files: Plain relative path → content.
        folder: Where they go; links on the way to it are the person's own and are followed.
        force: Overwrite files that are there.

    Raises:
        FilesExistError: without `force`, files are there; nothing was written.
        UnwritableError: a link, a file or a right is in the way. Found out before anything was written, except for
            what only writing tells, such as a full disk.
    """
    targets = {path: folder / path for path in files}
    try:
        for target in targets.values():
            _check_way(target, folder)
        there = [path for path, target in targets.items() if os.path.lexists(target)]
        if there and not force:
            raise FilesExistError(
                f"{len(there):,} of {len(files):,} files are there already: {_some(there)}; nothing was written",
                hint="--force overwrites them",
            )
        for path, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(target, files[path])
    except OSError as error:
        raise UnwritableError(f"cannot write to {folder}: {error}") from error


def show_saved(stored: StoredDeliverable, folder: Path, *, as_json: bool) -> None:
    """Say what was written and from which message."""
    artifacts = stored.deliverable.artifacts
    if as_json:
        written = [{**artifact.model_dump(), "file": str(folder / artifact.path)} for artifact in artifacts]
        emit_json({"ref": stored.ref, "from": stored.source, "written": written})
    elif artifacts:
        emit(_table([(str(folder / artifact.path), artifact) for artifact in artifacts]))
    origin = f"{stored.ref.stream}:{stored.ref.sequence}"
    tell(f"{_total(artifacts)} of {origin} written to {folder}" if artifacts else f"{origin} has no files")


def tell_files(stored: StoredDeliverable, message: str) -> None:
    """List on stderr what the deliverable has besides its text; stdout stays the text alone."""
    if artifacts := stored.deliverable.artifacts:
        tell(f"\n{_total(artifacts)}:\n" + _table([(artifact.path, artifact) for artifact in artifacts]).rstrip("\n"))
        tell(f"hint: coatcheck fetch {message} --out DIR")


def _check_way(target: Path, folder: Path) -> None:
    """Refuse what would lead out of the folder or be replaced by a folder or file of another kind."""
    if target.is_dir() and not target.is_symlink():
        raise UnwritableError(f"{target} is a folder; nothing was written")
    for parent in target.parents:
        if parent == folder:
            break
        if parent.is_symlink():
            raise UnwritableError(f"{parent} is a symbolic link, which may lead elsewhere; nothing was written")
        if parent.exists() and not parent.is_dir():
            raise UnwritableError(f"{parent} is a file; nothing was written")
    if folder.exists() and not folder.is_dir():
        raise UnwritableError(f"{folder} is a file; nothing was written")


def _write(target: Path, data: bytes) -> None:
    draft = target.with_name(f".coatcheck-{secrets.token_hex(6)}")
    try:
        with draft.open("xb") as file:
            file.write(data)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _table(rows: Sequence[tuple[str, Artifact]]) -> str:
    cells = [[path, f"{artifact.bytes:,}", artifact.media_type, artifact.sha256[:12]] for path, artifact in rows]
    return columns(("file", "bytes", "type", "sha256"), cells)


def _total(artifacts: Sequence[Artifact]) -> str:
    number = len(artifacts)
    size = sum(artifact.bytes for artifact in artifacts)
    return f"{number:,} {'file' if number == 1 else 'files'}, {size:,} bytes"


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:_SHOWN]) + (", …" if len(paths) > _SHOWN else "")
