"""Patches as models write them: laid on where their text is, all of them or none, and nothing passed over."""

import difflib
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from coatcheck.errors import ArtifactInvalidError
from coatcheck.workspace.files import Workspace
from coatcheck.workspace.patch import MAX_PATCH_CHARACTERS, apply_unified

FILE = b"one\ntwo\nthree\nfour\nfive\n"
HEAD = "--- a/f\n+++ b/f\n"


def patched(patch: str, before: bytes | None = FILE) -> bytes | None:
    """What the file `f` becomes."""
    return apply_unified(patch, {"f": before}.get)["f"]


@pytest.mark.parametrize(
    ("patch", "after"),
    [
        ("@@ -2 +2 @@\n-two\n+2\n", b"one\n2\nthree\nfour\nfive\n"),
        ("@@ -4,2 +4,2 @@ def f():\n-two\n+2\n three\n", b"one\n2\nthree\nfour\nfive\n"),  # another line, a heading
        ("@@ -2,9 +2,7 @@\n two\n+2\n three", b"one\ntwo\n2\nthree\nfour\nfive\n"),  # wrong counts, no end
        ("@@ -2,1 +2,1 @@\n two\n+2\n+3\n", b"one\ntwo\n2\n3\nthree\nfour\nfive\n"),  # too small counts lose nothing
        ("@@ -1,2 +1,2 @@\n-one\n+1\n two\n@@ -4,2 +4,2 @@\n four\n-five\n+5\n", b"1\ntwo\nthree\nfour\n5\n"),
        (
            "@@ -1,2 +1,1 @@\n-one\n two\n\n\n@@ -9 +9 @@\n-five\n+5\n\n",
            b"two\nthree\nfour\n5\n",
        ),  # blank lines between
        ("@@ -5 +5,2 @@\n five\n+six\n\\ No newline at end of file\n", b"one\ntwo\nthree\nfour\nfive\nsix"),
        ("@@ -2 +2 @@\n-two\n+2\n-- \n2.39.1\n", b"one\n2\nthree\nfour\nfive\n"),  # the end of an e-mail
        ("@@ -1,5 +0,0 @@\n-one\n-two\n-three\n-four\n-five\n", b""),
    ],
)
def test_hunks_go_where_their_lines_are(patch: str, after: bytes) -> None:
    """The numbers of a model are wrong as a rule; its text is right."""
    assert patched(HEAD + patch) == after
    crlf = (HEAD + patch).replace("\n", "\r\n")
    assert patched(crlf) == after
    in_crlf_file = patched(HEAD + patch, FILE.replace(b"\n", b"\r\n"))
    assert in_crlf_file == after.replace(b"\n", b"\r\n")


@pytest.mark.parametrize(
    ("patch", "text"),
    [
        ("", "changes no file"),
        ("please add a line", "changes no file"),
        ("@@ -2 +2 @@\n-two\n+2\n", "no hunk|Unexpected hunk"),
        (HEAD, "no hunks"),
        (HEAD + "@@ -2 +2 @@\n-Two\n+2\n", "no line 'Two'"),
        (HEAD + "@@ -2 +2 @@\n two\n-four\n", "do not follow"),
        (HEAD + "@@ -1,0 +2 @@\n+new\n", "find its place"),
        (HEAD + "@@ @@\n-two\n+2\n", "belongs to no hunk"),
        (HEAD + "@@ -2 +2 @@\n-two\n+2\nand then\n+3\n", "belongs to no hunk"),
        (HEAD + "@@ -2 +2 @@\n", "no lines"),
        (HEAD + "@@ -4 +4 @@\n-four\n@@ -1 +1 @@\n-one\n", "no line 'one'"),  # not in order
        ("--- a/f\n+++ b/g\n@@ -2 +2 @@\n-two\n+2\n", "two files"),
        ("--- /dev/null\n+++ b/f\n@@ -0,0 +1 @@\n+x\n", "exists"),
        ("--- /dev/null\n+++ /dev/null\n@@ -0,0 +1 @@\n+x\n", "names no file"),
        ("--- a/f\n+++ /dev/null\n@@ -1 +0,0 @@\n-one\n", "not all of its lines"),
        ("--- a/none\n+++ b/none\n@@ -1 +1 @@\n-one\n+1\n", "does not exist"),
        ('--- "a/f"\n+++ "b/f"\n@@ -1 +1 @@\n-one\n+1\n', "quoted"),
        ("diff --git a/f b/f\nGIT binary patch\nliteral 3\nabc\n", "text"),
        ("diff --git a/f b/f\nnew file mode 120000\n--- /dev/null\n+++ b/f\n@@ -0,0 +1 @@\n+/etc/passwd\n", "text"),
        (HEAD + "@@ -2 +2 @@\n-two\n+\ud800\n", "not a patch"),
        ("diff --git " + "a/x " * 1000, "too long"),
        ("x" * (MAX_PATCH_CHARACTERS + 1), "characters"),
        (HEAD + "@@ -99999999999999999999 +1 @@\n-two\n", "belongs to no hunk"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(patch: str, text: str) -> None:
    """Never a part of it."""
    with pytest.raises(ArtifactInvalidError, match=text) as caught:
        apply_unified(patch, {"f": FILE}.get)
    assert caught.value.hint


def test_a_hunk_that_fits_twice_is_taken_only_where_it_says() -> None:
    """Else it is refused: a wrong place would be worse than another turn."""
    twice = b"a\nb\nx\na\nb\n"
    assert patched(HEAD + "@@ -4,2 +4,2 @@\n a\n-b\n+B\n", twice) == b"a\nb\nx\na\nB\n"
    with pytest.raises(ArtifactInvalidError, match="more than one place"):
        patched(HEAD + "@@ -2,2 +2,2 @@\n a\n-b\n+B\n", twice)
    # The first hunk tells by how much the file has moved since the patch was made.
    moved = HEAD + "@@ -1 +1 @@\n-x\n+X\n@@ -2,2 +2,2 @@\n a\n-b\n+B\n"
    assert patched(moved, twice + b"a\nb\n") == b"a\nb\nX\na\nB\na\nb\n"


@pytest.mark.parametrize(
    ("before", "patch", "after"),
    [
        (b"a", "@@ -1 +1,2 @@\n a\n+b\n", b"a\nb\n"),
        (b"a", "@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+b\n\\ No newline at end of file\n", b"b"),
        (b"a\nb", "@@ -1 +1 @@\n-a\n+A\n", b"A\nb"),
        (b"a\r\nb\n", "@@ -2 +2,2 @@\n b\n+c\n", b"a\r\nb\nc\r\n"),
        (b"a\rb\nc\n", "@@ -2 +2 @@\n-c\n+d\n", b"a\rb\nd\n"),
        (b"\xff\n\na\n", "@@ -2,2 +2,2 @@\n\n-a\n+\u00e4\n", b"\xff\n\n\xc3\xa4\n"),
        (b"-- x\na\n", "@@ -1,2 +1,2 @@\n--- x\n+-- y\n a\n", b"-- y\na\n"),
        (b"-- x\na\n", "@@ -1,2 +1,2 @@\n--- x\n+++ y\n a\n", b"++ y\na\n"),  # no header of a file
        (b"", "@@ -0,0 +1 @@\n+a\n", b"a\n"),
        (None, "@@ -0,0 +1,2 @@\n+a\n+b\n\\ No newline at end of file\n", b"a\nb"),
    ],
)
def test_ends_of_lines_are_kept(before: bytes | None, patch: str, after: bytes) -> None:
    """What is not touched stays to the byte, also what is no UTF-8."""
    assert patched(HEAD + patch, before) == after


lines = st.lists(
    st.sampled_from(["a\n", "b\n", "c\n", "\n", "-- d\n", "++ e\n", " f\n", "@@ -1 +1 @@\n", "\\ g\n"]), max_size=25
)


ends = st.sampled_from(["", "\n"])


@given(lines, lines, ends, ends)
def test_every_diff_leads_from_one_file_to_the_other(
    old: list[str], new: list[str], old_end: str, new_end: str
) -> None:
    """As `diff -u` writes it, with the missing end of a last line and with lines that look like the format's own."""
    before, after = ("".join(side).removesuffix("\n") + end for side, end in ((old, old_end), (new, new_end)))
    assume(before and after and before != after)
    patch = "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
        for line in difflib.unified_diff(
            before.splitlines(keepends=True), after.splitlines(keepends=True), "a/f", "b/f"
        )
    )
    assert patched(patch, before.encode()) == after.encode()


def test_a_patch_of_many_files_is_applied_whole_or_not_at_all(tmp_path: Path) -> None:
    """Made, changed, removed, renamed; one that does not fit leaves all as they were."""
    workspace = Workspace(tmp_path, own="backend")
    for name in ("changed", "removed", "moved"):
        workspace.write(f"backend/{name}", FILE)
    patch = (
        "--- a/backend/changed\n+++ b/backend/changed\n@@ -2 +2 @@\n-two\n+2\n"
        "--- /dev/null\n+++ b/backend/new/made\n@@ -0,0 +1 @@\n+new\n"
        "--- a/backend/removed\n+++ /dev/null\n@@ -1,5 +0,0 @@\n-one\n-two\n-three\n-four\n-five\n"
        "diff --git a/backend/moved b/backend/gone\nsimilarity index 100%\n"
        "rename from backend/moved\nrename to backend/gone\n"
    )
    before = workspace.own_files()
    for bad in (
        "--- a/backend/changed\n+++ b/backend/changed\n@@ -9 +9 @@\n-nine\n",
        "--- /dev/null\n+++ b/frontend/a\n@@ -0,0 +1 @@\n+x\n",
        "--- /dev/null\n+++ b/backend/CHANGED\n@@ -0,0 +1 @@\n+x\n",
        "--- /dev/null\n+++ b/../a\n@@ -0,0 +1 @@\n+x\n",
    ):
        with pytest.raises(ArtifactInvalidError):
            workspace.apply_patch(patch + bad)
        assert workspace.own_files() == before
    assert workspace.apply_patch(patch) == [
        f"backend/{name}" for name in ("changed", "gone", "moved", "new/made", "removed")
    ]
    assert workspace.own_files() == {"changed": FILE.replace(b"two", b"2"), "gone": FILE, "new/made": b"new\n"}


def test_a_disk_that_fails_in_the_middle_leaves_all_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first file is put back when the second cannot be written."""
    workspace = Workspace(tmp_path, own="backend")
    workspace.write("backend/a", FILE)
    before, put = workspace.own_files(), workspace._put
    calls = []

    def failing(path: list[str], data: bytes | None) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        put(path, data)

    monkeypatch.setattr(workspace, "_put", failing)
    with pytest.raises(OSError, match="No space"):
        workspace.apply_patch(
            "--- a/backend/a\n+++ b/backend/a\n@@ -1 +1 @@\n-one\n+1\n"
            "--- /dev/null\n+++ b/backend/b\n@@ -0,0 +1 @@\n+x\n"
        )
    assert workspace.own_files() == before
