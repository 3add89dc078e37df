"""The files that a building author delivers: how they are written, patched, listed in the report and recognised again.

The listing carries the beginning of each file's hash, so that the next round knows whether the file in the workspace
is the one that it is about to change; only then is a patch sent instead of the whole file.
"""

import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from coatcheck.agents.scripted.draft import Call
from coatcheck.agents.scripted.reading import Assignment, Done
from coatcheck.agents.scripted.words import quote
from schemas.roles import APPLY_PATCH, WRITE_FILE

HASH_DIGITS: Final = 12
"""Of a sha256; enough to tell two versions of one file apart."""

_LISTED: Final = re.compile(r"^- `([\w./-]+)` \(\d+ lines, sha256 ([0-9a-f]{12})…\): .+$", re.MULTILINE)


@dataclass(frozen=True)
class SourceFile:
    """A text file of the author's own stage."""

    path: str
    """From the workspace's root, the first part being the stage."""
    text: str
    about: str

    @property
    def digest(self) -> str:
        """The beginning of the sha256 of its UTF-8 bytes."""
        return hashlib.sha256(self.text.encode("utf-8", "replace")).hexdigest()[:HASH_DIGITS]

    @property
    def line(self) -> str:
        """How it is listed in a report."""
        lines = self.text.count("\n")
        return f"- `{self.path}` ({lines} lines, sha256 {self.digest}…): {self.about}"

    def write(self) -> Call:
        """The call that writes it whole."""
        return Call(WRITE_FILE, {"path": self.path, "content": self.text})


def listed(report: str) -> dict[str, str]:
    """Path → beginning of the sha256 of each file that a report lists."""
    return dict(_LISTED.findall(report))


def diff(before: SourceFile, after: SourceFile) -> str:
    """A unified diff; lines end at line feeds only, whatever else their text has."""
    lines = difflib.unified_diff(
        before.text.split("\n"), after.text.split("\n"), f"a/{before.path}", f"b/{after.path}", lineterm=""
    )
    return "\n".join(lines) + "\n"


def build(task: Assignment, files: Sequence[SourceFile], before: SourceFile | None = None) -> list[Call]:
    """The calls of this turn that bring the files into the workspace; none once they are there.

    Args:
        task: Says which tools there are and what was done.
        files: All files of the deliverable.
        before: The first file as the last round left it, when the others have not changed.
    """
    if WRITE_FILE not in task.tools or task.calls(WRITE_FILE):
        return []
    patches = task.calls(APPLY_PATCH)
    if before is not None and APPLY_PATCH in task.tools and not patches:
        return [Call(APPLY_PATCH, {"patch": diff(before, files[0])})]
    if patches and not refusals(task):
        return []
    return [item.write() for item in files]


def refusals(task: Assignment) -> list[Done]:
    """What the tools that change files refused; a patch that was, and then written whole, counts no more."""
    writes = task.calls(WRITE_FILE)
    return [item for item in writes or task.calls(APPLY_PATCH) if item.refused]


def is_built(task: Assignment) -> bool:
    """Whether the files are in the workspace, so that the report need not repeat them."""
    return bool(task.calls(WRITE_FILE) or task.calls(APPLY_PATCH)) and not refusals(task)


def refused_line(task: Assignment) -> str:
    """A sentence on what was refused, or nothing."""
    texts = [quote(item.answer, 200) for item in refusals(task)]
    return f"The workspace refused to take the files ({texts[0]}), so they are only in this text.\n\n" if texts else ""
