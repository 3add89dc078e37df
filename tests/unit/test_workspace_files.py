"""The confined workspace: named attacks, limits, and what its tools may rely on."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from coatcheck.errors import ArtifactInvalidError
from coatcheck.workspace import names, tree
from coatcheck.workspace.files import MAX_FILE_BYTES, Workspace, WorkspaceFile
from schemas.deliverable import MAX_ARTIFACT_BYTES, MAX_ARTIFACTS

CANARY = b"canary: nothing inside may show this"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the workspace, on the same disk."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.txt").write_bytes(CANARY)
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Of the stage `backend`."""
    root = tmp_path / "root"
    root.mkdir()
    return Workspace(root, own="backend")


def below(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its content, `None` for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(action: Callable[[], object], match: str | None = None) -> ArtifactInvalidError:
    """The refusal of an action."""
    with pytest.raises(ArtifactInvalidError, match=match) as caught:
        action()
    return caught.value


def test_files_are_written_read_listed_and_found(workspace: Workspace) -> None:
    """The ordinary use."""
    workspace.write("backend/src/app.py", b"import os\nprint(os)\n")
    workspace.write("backend/README.md", b"# Shop\n")
    workspace.add_stage("frontend", {"index.html": b"<p>import</p>\n"})
    assert workspace.list_files() == [("backend/README.md", 7), ("backend/src/app.py", 20), ("frontend/index.html", 14)]
    assert workspace.list_files("backend/src/") == [WorkspaceFile("backend/src/app.py", 20)]
    assert workspace.list_files(".") == workspace.list_files()
    assert workspace.read("frontend/index.html") == b"<p>import</p>\n"
    assert [(match.path, match.line) for match in workspace.search("import")] == [
        ("backend/src/app.py", 1),
        ("frontend/index.html", 1),
    ]
    assert workspace.own_files() == {"README.md": b"# Shop\n", "src/app.py": b"import os\nprint(os)\n"}


def test_a_stage_starts_from_the_files_of_its_earlier_round(workspace: Workspace) -> None:
    """Its own folder takes artifacts, too, as long as it is empty."""
    workspace.add_stage("backend", {"a/b.py": b"1"})
    workspace.write("backend/a/b.py", b"2")
    assert workspace.own_files() == {"a/b.py": b"2"}
    refused(lambda: workspace.add_stage("backend", {"c.py": b""}), "not empty")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../outside/secret.txt",
        "backend/../../outside/secret.txt",
        "backend/./a",
        "backend//a",
        "backend/",
        "backend\\a.py",
        "C:/a.py",
        "backend/a\0.py",
        "backend/a\n.py",
        "backend/.git/config",
        "backend/.GIT/hooks/pre-commit",
        "backend/e\u0301.py",
        "backend/\ud800",
        "backend/" + "x" * 241,
        "backend/" + "x/" * 130 + "x",
        "backend/a.",
        "backend/a ",
    ],
)
def test_a_hostile_path_is_refused_and_changes_nothing(workspace: Workspace, path: str) -> None:
    """With a hint, for whoever wrote it."""
    before = below(workspace.root)
    assert refused(lambda: workspace.write(path, b"x")).hint
    refused(lambda: workspace.read(path))
    refused(lambda: workspace.apply_patch(f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+x\n"))
    refused(lambda: workspace.add_stage("other", {path.removeprefix("backend/"): b"x"}))
    assert below(workspace.root) == before


@pytest.mark.parametrize(
    "path", ["backend", "frontend/a.py", "BACKEND/a.py", "backend/node_modules/a.js", "backend/a.pyc"]
)
def test_only_the_own_folder_is_written_and_nothing_that_tools_make(workspace: Workspace, path: str) -> None:
    """Paths that are plain, but not the agent's to write."""
    workspace.add_stage("frontend", {"a.py": b"1"})
    before = below(workspace.root)
    assert refused(lambda: workspace.write(path, b"2")).hint
    refused(lambda: workspace.apply_patch(f"--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-1\n+2\n"))
    refused(lambda: workspace.apply_patch(f"--- a/{path}\n+++ /dev/null\n@@ -1 +0,0 @@\n-1\n"))
    assert below(workspace.root) == before


def test_a_path_of_full_length_fits_below_every_stage(workspace: Workspace) -> None:
    """The limit of an artifact's path does not count the name of its stage."""
    path = "x" * 200 + "/" + "y" * 39
    workspace.write(f"backend/{path}", b"1")
    workspace.add_stage("frontend", {path: b"2"})
    assert [workspace.read(file.path) for file in workspace.list_files()] == [b"1", b"2"]


def test_a_planted_link_to_a_file_is_neither_read_nor_written_through(workspace: Workspace, outside: Path) -> None:
    """Also not listed and not searched; a deliverable with it is refused."""
    (workspace.root / "backend/link.txt").symlink_to(outside / "secret.txt")
    refused(lambda: workspace.read("backend/link.txt"), "symbolic link")
    refused(lambda: workspace.write("backend/link.txt", b"x"), "symbolic link")
    refused(
        lambda: workspace.apply_patch(f"--- a/backend/link.txt\n+++ b/backend/link.txt\n@@ -1 +1 @@\n-{CANARY!r}\n+x")
    )
    assert not workspace.list_files()
    assert not workspace.search("canary")
    assert refused(workspace.own_files, "symbolic link").hint
    assert below(outside) == {"secret.txt": CANARY}


def test_a_planted_link_to_a_folder_leads_nowhere(workspace: Workspace, outside: Path) -> None:
    """As a parent of what is read, written, listed or patched."""
    (workspace.root / "backend/src").symlink_to(outside)
    refused(lambda: workspace.read("backend/src/secret.txt"))
    refused(lambda: workspace.write("backend/src/secret.txt", b"x"))
    refused(lambda: workspace.write("backend/src/new/app.py", b"x"))
    refused(lambda: workspace.list_files("backend/src"))
    refused(lambda: workspace.apply_patch("--- a/backend/src/secret.txt\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n"))
    assert not workspace.list_files()
    assert below(outside) == {"secret.txt": CANARY}


def test_an_exchanged_stage_folder_leads_nowhere(workspace: Workspace, outside: Path) -> None:
    """The own folder itself replaced by a link."""
    (workspace.root / "backend").rmdir()
    (workspace.root / "backend").symlink_to(outside)
    refused(lambda: workspace.read("backend/secret.txt"))
    refused(lambda: workspace.write("backend/secret.txt", b"x"))
    refused(lambda: workspace.add_stage("backend", {"secret.txt": b"x"}))
    refused(workspace.own_files)
    assert below(outside) == {"secret.txt": CANARY}


@pytest.mark.parametrize("as_link", [True, False])
def test_an_exchanged_root_is_noticed(workspace: Workspace, outside: Path, *, as_link: bool) -> None:
    """By a link, or by a folder that was moved to its place."""
    workspace.root.rename(workspace.root.with_name("gone"))
    (outside / "backend").mkdir()
    if as_link:
        workspace.root.symlink_to(outside)
    else:
        outside.rename(workspace.root)
    refused(lambda: workspace.write("backend/a.py", b"x"))
    refused(workspace.list_files)
    assert not list((workspace.root / "backend").iterdir())


ATTACKER = """
import os, sys
os.chdir(sys.argv[1])
print("begun", flush=True)
while True:
    for away, here in (("real", "link"), ("link", "real")):
        try:
            os.rename("now", away)
            os.rename(here, "now")
        except OSError:  # a tool has just made the folder anew
            os.rename("now", f"made-{os.urandom(8).hex()}") if os.path.lexists(here) else None
"""


def test_links_that_come_and_go_are_never_followed(workspace: Workspace, outside: Path) -> None:
    """A process of the agent exchanges a folder for a link to the outside, again and again, while the tools work."""
    own = workspace.root / "backend"
    (own / "now").mkdir()
    (own / "now/secret.txt").write_bytes(b"inside")
    (own / "link").symlink_to(outside)
    seen: set[bytes] = set()
    refusals = 0
    with subprocess.Popen([sys.executable, "-c", ATTACKER, own], stdout=subprocess.PIPE) as attacker:
        assert attacker.stdout is not None
        attacker.stdout.readline()
        try:
            for _ in range(2000):
                try:
                    seen.add(workspace.read("backend/now/secret.txt"))
                    workspace.write("backend/now/secret.txt", b"inside")
                except ArtifactInvalidError:
                    refusals += 1
        finally:
            attacker.kill()
    assert seen == {b"inside"}
    assert refusals
    assert below(outside) == {"secret.txt": CANARY}


def test_a_hard_link_is_not_read_and_not_written_through(workspace: Workspace, outside: Path) -> None:
    """It is the same file as one outside; writing gives the name a file of its own."""
    os.link(outside / "secret.txt", workspace.root / "backend/linked.txt")
    refused(lambda: workspace.read("backend/linked.txt"), "hard link")
    assert not workspace.list_files()
    assert not workspace.search("canary")
    refused(workspace.own_files, "hard link")
    workspace.write("backend/linked.txt", b"own")
    assert workspace.own_files() == {"linked.txt": b"own"}
    assert below(outside) == {"secret.txt": CANARY}


@pytest.mark.timeout(20)
def test_special_files_do_not_hang_and_are_no_content(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO that nobody writes to, and a socket: refused by name, left out of the deliverable."""
    own = workspace.root / "backend"
    os.mkfifo(own / "pipe")
    monkeypatch.chdir(own)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for name in ("pipe", "socket"):
            refused(partial(workspace.read, f"backend/{name}"))
            refused(partial(workspace.write, f"backend/{name}", b"x"))
        workspace.write("backend/a.py", b"1")
        assert [file.path for file in workspace.list_files()] == ["backend/a.py"]
        assert workspace.own_files() == {"a.py": b"1"}


def test_names_that_are_one_elsewhere_are_refused(workspace: Workspace) -> None:
    """The second of two that differ in case, also of a folder; a file is no folder, and the reverse."""
    workspace.write("backend/src/Straße.py", b"1")
    before = below(workspace.root)
    for path in ("src/straße.py", "src/STRASSE.PY", "SRC/b.py", "Src", "src", "src/Straße.py/a"):
        refused(partial(workspace.write, f"backend/{path}", b"2"))
    assert below(workspace.root) == before
    for files in ({"A/x": b"", "a/y": b""}, {"x": b"", "X": b""}, {"a": b"", "a/b": b""}, {"a/b": b"", "a": b""}):
        refused(partial(workspace.add_stage, "frontend", files))
    assert below(workspace.root) == before


def test_a_program_that_leaves_two_spellings_is_told(workspace: Workspace) -> None:
    """Names that a program made on the disk are checked as those of a tool are."""
    own = workspace.root / "backend"
    for pair in (("a.py", "A.py"), ("e\u0301.py",), ("a:b",), (b"\xff".decode(errors="surrogateescape"),)):
        for name in pair:
            (own / name).write_bytes(b"")
        refused(workspace.own_files)
        for name in pair:
            (own / name).unlink()
    assert workspace.own_files() == {}


def test_what_belongs_to_tools_is_no_deliverable(workspace: Workspace, outside: Path) -> None:
    """Left out without a look inside: tools plant links there."""
    own = workspace.root / "backend"
    for name in (".git/config", "a/__pycache__/a.pyc", "node_modules/.bin/x", ".venv/pyvenv.cfg", "b.pyc", "app.py"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_bytes(b"x")
    (own / ".venv/python").symlink_to(outside / "secret.txt")
    assert workspace.own_files() == {"app.py": b"x"}
    assert workspace.list_files() == [("backend/app.py", 1)]


def test_a_thousand_files_are_taken_and_ten_thousand_and_one_are_not(workspace: Workspace) -> None:
    """Nothing of a stage with too many is written."""
    files = {f"{number % 100}/{number}": b"x" for number in range(MAX_ARTIFACTS + 1)}
    refused(lambda: workspace.add_stage("backend", files), "10,001 files")
    assert below(workspace.root) == {"backend": None}
    workspace.add_stage("backend", dict(list(files.items())[:1000]))
    assert len(workspace.own_files()) == len(workspace.list_files()) == 1000


def test_the_limit_counts_what_is_there(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replacing a file is no new one, removing one makes room; what a program left counts as well."""
    monkeypatch.setattr(names, "MAX_ARTIFACTS", 3)
    for name in "abc":
        workspace.write(f"backend/{name}", b"x\n")
    refused(lambda: workspace.write("backend/d", b"y"), "4 files")
    workspace.write("backend/a", b"y\n")
    workspace.apply_patch(
        "--- a/backend/a\n+++ /dev/null\n@@ -1 +0,0 @@\n-y\n--- /dev/null\n+++ b/backend/d\n@@ -0,0 +1 @@\n+d\n"
    )
    assert workspace.own_files() == {"b": b"x\n", "c": b"x\n", "d": b"d\n"}
    (workspace.root / "backend/more").write_bytes(b"")
    refused(workspace.own_files, "4 files")


def test_a_gigabyte_is_refused(workspace: Workspace) -> None:
    """In one file or in many; the content is never read, and nothing is written."""
    large = bytes(MAX_FILE_BYTES)
    refused(lambda: workspace.write("backend/a", large + b"x"), f"{MAX_FILE_BYTES:,}")
    refused(lambda: workspace.add_stage("other", dict.fromkeys("abcdefghijklmnop", large)), f"{MAX_ARTIFACT_BYTES:,}")
    assert below(workspace.root) == {"backend": None}
    own = workspace.root / "backend"
    for name in "abcd":
        with (own / name).open("wb") as file:
            file.truncate(MAX_FILE_BYTES)  # a sparse file
    refused(lambda: workspace.write("backend/e", b"x"), f"{MAX_ARTIFACT_BYTES:,}")
    (own / "e").write_bytes(b"x")
    refused(workspace.own_files, f"{MAX_ARTIFACT_BYTES:,}")
    with (own / "e").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    refused(lambda: workspace.read("backend/e"), f"{MAX_FILE_BYTES:,}")
    refused(workspace.own_files, f"{MAX_FILE_BYTES:,}")


def test_litter_without_end_is_told(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk ends, whatever a program has left."""
    monkeypatch.setattr(tree, "MAX_ENTRIES", 10)
    for number in range(11):
        (workspace.root / f"backend/{number}").mkdir()
    refused(workspace.list_files, "more than 10")
    refused(workspace.own_files, "more than 10")


def test_a_failed_write_leaves_the_old_file_and_no_other(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is an error of the machine: it is raised as it is, and another attempt may succeed."""
    workspace.write("backend/a", b"old")
    before = below(workspace.root)

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", full)
        with pytest.raises(OSError, match="No space"):
            workspace.write("backend/a", b"new")
    assert below(workspace.root) == before


@pytest.mark.parametrize("own", ["", "a/b", "..", ".git", "node_modules", "/etc", "a\0"])
def test_a_stage_has_a_plain_name(tmp_path: Path, own: str) -> None:
    """Nothing is made for another one."""
    refused(lambda: Workspace(tmp_path, own=own))
    assert not list(tmp_path.iterdir())
