"""Search: lines in order, bounded in time and size whatever the pattern."""

import time
from pathlib import Path

import pytest

from coatcheck.errors import ArtifactInvalidError
from coatcheck.workspace.files import Match, Workspace
from coatcheck.workspace.search import MAX_LINE_BYTES, MAX_MATCH_CHARACTERS, MAX_TEXT_BYTES, LineSearch


def found(pattern: str, data: bytes, *, limit: int = 200, seconds: float = 5) -> list[Match]:
    """The matches in one file."""
    search = LineSearch(pattern, limit=limit, seconds=seconds)
    search.add("f", data)
    return search.matches


def test_lines_are_found_one_at_a_time() -> None:
    """Anchors mean a line's; ends of lines are no part of it."""
    data = b"def f():\r\n    return 1\n\nDEF g"
    assert found("^def .*:$", data) == [Match("f", 1, "def f():")]
    assert [match.line for match in found("(?i)^def", data)] == [1, 4]
    assert [match.line for match in found("^$", data + b"\n")] == [3]
    assert found(r"\s+return\n", data) == found("$", b"") == found("f", b"f\0") == []
    assert [match.line for match in found("", data, limit=2)] == [1, 2]
    assert found("ü.", "x\nGrüße\n".encode() + b"\xff") == [Match("f", 2, "Grüße")]


@pytest.mark.parametrize(
    "pattern", ["[", "(", r"(?=a)", r"(a)\1", "\ud800", "a{1001}", "x" * 1001, "((a{99}){99}){99}"]
)
def test_what_is_no_pattern_is_refused_with_the_reason(pattern: str) -> None:
    """Also what RE2 does not have."""
    with pytest.raises(ArtifactInvalidError, match="pattern") as caught:
        LineSearch(pattern, limit=1)
    assert "b'" not in str(caught.value)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|a)*$", r"(.*)*b", r"(x+x+)+y", r"^(\w+\s?)*!$"])
def test_patterns_that_stop_others_are_quick(pattern: str) -> None:
    """They take exponential time with backtracking."""
    data = (b"a" * 1000 + b"b \n") * 1000
    begun = time.process_time()
    found(pattern, data)
    assert time.process_time() - begun < 2.0  # 0.02 s as a rule


@pytest.mark.timeout(30)
def test_a_costly_pattern_is_stopped() -> None:
    """Large counts are what RE2 is slow at: 30 µs per byte, so this would take a minute."""
    with pytest.raises(ArtifactInvalidError, match="too long") as caught:
        found("(?:[ab]{1,100}){1,9}c", (b"ab" * 1000 + b"\n") * 1000, seconds=0.2)
    assert caught.value.hint


def test_long_lines_and_large_files_are_bounded(tmp_path: Path) -> None:
    """Of a line the beginning counts and a part is shown; a large file is data."""
    line = b"x" * 1500 + b"needle" + b"y" * 400
    (match,) = found("needle", line)
    assert "needle" in match.text
    assert len(match.text) == MAX_MATCH_CHARACTERS
    assert not found("needle", b"x" * MAX_LINE_BYTES + b"needle")
    workspace = Workspace(tmp_path, own="backend")
    workspace.write("backend/a", b"needle\n" + b"x\n" * (MAX_TEXT_BYTES // 2))
    workspace.write("backend/b", b"needle\nneedle\n")
    workspace.add_stage("frontend", {"c": b"needle"})
    assert [(hit.path, hit.line) for hit in workspace.search("needle", limit=2)] == [("backend/b", 1), ("backend/b", 2)]
    assert [hit.path for hit in workspace.search("needle", "frontend")] == ["frontend/c"]
    with pytest.raises(ArtifactInvalidError):
        workspace.search("needle", "elsewhere")
