"""Unified diffs: what a patch makes of files. Reading and writing them is the workspace's.

`unidiff` reads the format; laying the hunks onto a file is done here, since no library does it in memory (patch-ng
writes to disk by its own paths, whatthepatch insists on the line numbers). A model counts lines badly and copies text
well, so the numbers in `@@` are only a proposal and the counts are made anew, but the text must be exact: a hunk goes
where its lines are, at the proposed place or at the only other one. No fuzz, and nothing is left out in silence.

Ends of lines do not count in the comparison. Added lines get the file's own (its first line's), kept lines stay.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from unidiff.errors import UnidiffParseError
from unidiff.patch import Hunk, PatchedFile, PatchSet

from coatcheck.errors import ArtifactInvalidError

MAX_PATCH_CHARACTERS: Final = 1024 * 1024
"""A model's answer is smaller; a whole file is better written."""
MAX_PATCHED_BYTES: Final = 4 * 1024 * 1024
"""Of one file: each hunk may have to look through all of it."""

_DEV_NULL: Final = "/dev/null"
_MAX_HEADER_CHARACTERS: Final = 1000
"""Two paths of 240 bytes, with room. unidiff's expressions for these lines take quadratic time."""
_HUNK: Final = re.compile(r"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")
_ADDED, _REMOVED, _NO_NEWLINE = "+", "-", "\\"
_FORM: Final = (
    "a unified diff: '--- a/PATH', '+++ b/PATH', '@@ -1,3 +1,4 @@', then lines that begin with ' ', '-' or '+'"
)

Read = Callable[[str], bytes | None]


def apply_unified(patch: str, read: Read) -> dict[str, bytes | None]:
    """What the files become.

    Args:
        patch: A unified diff, as `diff -u` and `git diff` write it. Prefixes `a/` and `b/` are taken off.
        read: The present content of a path, `None` when there is no such file.

    Returns:
        Path → new content, `None` for a file that is removed.

    Raises:
        ArtifactInvalidError: it is no patch, holds something that is no text, or does not fit the files.
    """
    changes: dict[str, bytes | None] = {}

    def current(path: str) -> bytes | None:
        return changes[path] if path in changes else read(path)

    for file in _parse(patch):
        changes.update(_changed(file, current))
    if not changes:
        raise ArtifactInvalidError("the patch changes no file", hint=_FORM)
    return changes


def _parse(patch: str) -> PatchSet:
    if len(patch) > MAX_PATCH_CHARACTERS:
        raise ArtifactInvalidError(
            f"the patch has {len(patch):,} characters; it may have {MAX_PATCH_CHARACTERS:,}", hint="write whole files"
        )
    lines = patch.removesuffix("\n").split("\n")
    if all(line.endswith("\r") for line in lines[:-1]):
        lines = [line.removesuffix("\r") for line in lines]
    try:
        patch.encode()
        return PatchSet("".join(f"{line}\n" for line in _recounted(lines)))
    except (UnidiffParseError, UnicodeEncodeError) as error:
        raise ArtifactInvalidError(f"this is not a patch: {error}", hint=_FORM) from error


def _recounted(lines: Sequence[str]) -> Iterator[str]:
    """The lines of the patch with true counts in `@@`; unidiff would take the rest of a longer hunk for a comment."""
    at = 0
    while at < len(lines):
        if (header := _HUNK.match(lines[at])) is None:
            _check_outside(at, lines[at])
            yield lines[at]
            at += 1
            continue
        end = _end_of_hunk(lines, at + 1, int(header[2] or 1), int(header[4] or 1))
        body = lines[at + 1 : end]
        old = sum(line[:1] in {"", " ", _REMOVED} for line in body)
        new = sum(line[:1] in {"", " ", _ADDED} for line in body)
        if not old + new:
            raise ArtifactInvalidError(f"the hunk in line {at + 1} of the patch has no lines", hint=_FORM)
        yield f"@@ -{header[1]},{old} +{header[3]},{new} @@"
        yield from body
        at = end


def _check_outside(at: int, line: str) -> None:
    """Refuse a line that would be passed over although it looks like a change."""
    if line.startswith(("diff ", "Binary ")) and len(line) > _MAX_HEADER_CHARACTERS:
        raise ArtifactInvalidError(f"line {at + 1} of the patch is too long for a header", hint=_FORM)
    header = line.startswith(("--- ", "+++ ")) or line in {"---", "-- ", "--"}  # the last are those of an e-mail
    if line.startswith(("@@", _ADDED, _REMOVED)) and not header:
        raise ArtifactInvalidError(f"line {at + 1} of the patch belongs to no hunk: {line[:80]!r}", hint=_FORM)


def _end_of_hunk(lines: Sequence[str], start: int, old: int, new: int) -> int:
    """Where the counts say, if the hunk cannot go on there; else after the last line that can be one of its."""
    end = _counted_end(lines, start, old, new)
    if end is not None:
        follows = next((at for at in range(end, len(lines)) if lines[at] and lines[at][0] != _NO_NEWLINE), len(lines))
        if not _goes_on(lines, follows):
            return end
    end = start
    while _goes_on(lines, end):
        end += 1
    while end > start and not lines[end - 1]:
        end -= 1
    return end


def _counted_end(lines: Sequence[str], start: int, old: int, new: int) -> int | None:
    at = start
    while old > 0 or new > 0:
        if at >= len(lines) or lines[at][:1] not in {"", " ", _ADDED, _REMOVED, _NO_NEWLINE}:
            return None
        old -= lines[at][:1] in {"", " ", _REMOVED}
        new -= lines[at][:1] in {"", " ", _ADDED}
        at += 1
    return at if old == new == 0 else None


def _goes_on(lines: Sequence[str], at: int) -> bool:
    if at >= len(lines) or lines[at] == "-- ":
        return False
    if lines[at].startswith("--- ") and at + 1 < len(lines) and lines[at + 1].startswith("+++ "):
        return False
    return lines[at][:1] in {"", " ", _ADDED, _REMOVED, _NO_NEWLINE}


def _changed(file: PatchedFile, current: Read) -> dict[str, bytes | None]:
    """The files that one section of the patch changes: one, or two when it renames."""
    source, target = _paths(file)
    if file.is_binary_file or file.is_symlink or file.is_submodule:
        raise ArtifactInvalidError(f"the patch of {target or source!r} is not one of text", hint="write the whole file")
    renames = source is not None and target is not None and source != target
    if not file and source is not None and target is not None and not renames:
        raise ArtifactInvalidError(f"the patch of {target!r} has no hunks", hint=_FORM)
    if (source is None or renames) and target is not None and current(target) is not None:
        raise ArtifactInvalidError(f"the patch makes {target!r}, which exists", hint="patch it, or write it whole")
    after = _patched(file, source or "", _before(file, source, current))
    if target is None:
        if after:
            raise ArtifactInvalidError(f"the patch removes {source!r}, but not all of its lines", hint="read it first")
        return {source or "": None}
    return {source or "": None, target: after} if renames else {target: after}


def _paths(file: PatchedFile) -> tuple[str | None, str | None]:
    """Source and target without prefixes; `None` for `/dev/null`."""
    source, target = file.source_file, file.target_file
    if '"' in source + target:
        raise ArtifactInvalidError(f"the paths {source!r} and {target!r} are quoted", hint="write them as they are")
    if source in {_DEV_NULL, ""} and target in {_DEV_NULL, ""}:
        raise ArtifactInvalidError("a section of the patch names no file", hint=_FORM)
    if (source == _DEV_NULL or source.startswith("a/")) and (target == _DEV_NULL or target.startswith("b/")):
        source, target = (side if side == _DEV_NULL else side[2:] for side in (source, target))
    renamed = any(line.startswith("rename from ") for line in file.patch_info or ())
    if source != target and _DEV_NULL not in {source, target} and not renamed:
        raise ArtifactInvalidError(f"the patch names two files, {source!r} and {target!r}", hint=_FORM)
    return None if source == _DEV_NULL else source, None if target == _DEV_NULL else target


def _before(file: PatchedFile, source: str | None, current: Read) -> bytes:
    if source is None:
        return b""
    before = current(source)
    if before is None and (not file or any(hunk.source_length for hunk in file)):
        raise ArtifactInvalidError(f"the patch changes {source!r}, which does not exist", hint="list_files shows paths")
    if len(before or b"") > MAX_PATCHED_BYTES:
        raise ArtifactInvalidError(f"{source!r} is too large to be patched", hint="write the whole file")
    return before or b""


def _patched(file: PatchedFile, path: str, before: bytes) -> bytes:
    layer = _Layer(path, _split(before))
    for number, hunk in enumerate(file, 1):
        layer.lay(number, hunk)
    return layer.result()


def _split(data: bytes) -> list[bytes]:
    """At line feeds only: a carriage return alone is a character of the line."""
    *whole, rest = data.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


def _bare(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")


class _Layer:
    """Lays hunks onto the lines of one file, from top to bottom."""

    def __init__(self, path: str, lines: list[bytes]) -> None:
        self._path = path
        self._lines = lines
        self._bare = [_bare(line) for line in lines]
        self._text = b"\n" + b"".join(line + b"\n" for line in self._bare)
        self._offsets = list(accumulate((len(line) + 1 for line in self._bare), initial=0))
        """Of each line, and of the end: where the line feed before it is in `_text`."""
        self._end = b"" if not lines else b"\r\n" if lines[0].endswith(b"\r\n") else b"\n"
        self._at = 0
        self._shift = 0
        self._result: list[bytes] = []

    def lay(self, number: int, hunk: Hunk) -> None:
        """Lay the next hunk.

        Raises:
            ArtifactInvalidError: its lines are not there, or in more than one place.
        """
        wanted = [_bare(line.value.encode()) for line in hunk.source_lines()]
        index = self._place(number, wanted, hunk.source_start - bool(wanted) + self._shift)
        self._shift = index - hunk.source_start + bool(wanted)
        self._result += self._lines[self._at : index]
        self._at = index
        last = ""
        for line in hunk:
            if line.is_added:
                value = line.value.encode()
                self._result.append(_bare(value) + self._end if self._end else value)
            elif line.is_context:
                self._result.append(self._lines[self._at])
            elif line.line_type == _NO_NEWLINE and last == _ADDED:
                self._result[-1] = _bare(self._result[-1])
            self._at += line.is_context or line.is_removed
            last = line.line_type

    def result(self) -> bytes:
        """The file after all hunks; only its last line may have no end."""
        lines = self._result + self._lines[self._at :]
        end = self._end or b"\n"
        ended = [line if line.endswith(b"\n") else line + end for line in lines[:-1]]
        return b"".join([*ended, *lines[-1:]])

    def _place(self, number: int, wanted: list[bytes], proposed: int) -> int:
        """The index of the line where the hunk begins."""
        if not wanted:
            if self._lines:
                raise self._refusal(number, "has no lines of the file to find its place by", "add some lines around it")
            return 0
        if proposed >= self._at and self._bare[proposed : proposed + len(wanted)] == wanted:
            return proposed
        needle = b"\n" + b"".join(line + b"\n" for line in wanted)
        first = self._text.find(needle, self._offsets[self._at])
        if first < 0:
            known = set(self._bare[self._at :])
            missing = next((line for line in wanted if line not in known), None)
            text = (
                "its lines do not follow each other there" if missing is None else f"there is no line {_show(missing)}"
            )
            raise self._refusal(number, f"does not fit: {text}", "read the file and copy its lines exactly")
        if self._text.find(needle, first + 1) >= 0:
            raise self._refusal(number, "fits in more than one place", "add more lines around it")
        return bisect_left(self._offsets, first)

    def _refusal(self, number: int, text: str, hint: str) -> ArtifactInvalidError:
        return ArtifactInvalidError(f"hunk {number} of the patch of {self._path!r} {text}", hint=hint)


def _show(line: bytes) -> str:
    return repr(line.decode(errors="replace")[:200])
