"""Workspaces come and go: fresh for every attempt, gone at its end, and swept when the process was killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from coatcheck.errors import ArtifactInvalidError
from coatcheck.workspace.folder import WorkspaceFolder

HOLDER = """
import sys
from pathlib import Path
from coatcheck.workspace.folder import WorkspaceFolder
with WorkspaceFolder(Path(sys.argv[1])).open("held", "backend") as workspace:
    workspace.write("backend/a.py", b"1")
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Does not exist yet."""
    return tmp_path / "data/workspaces"


def test_each_attempt_has_a_fresh_workspace_that_is_gone_at_the_end(base: Path) -> None:
    """Also two at one task at a time; only this user may look."""
    folder = WorkspaceFolder(base)
    with folder.open("shop/../1:backend", "backend") as one, folder.open("shop/../1:backend", "backend") as other:
        one.write("backend/a.py", b"1")
        assert not other.list_files()
        assert one.root.parent.parent == base
        assert base.stat().st_mode & 0o077 == one.root.stat().st_mode & 0o077 == 0
    assert not list(base.iterdir())


def test_a_failure_removes_the_workspace_too(base: Path) -> None:
    """Of the work, and of the making itself."""
    folder = WorkspaceFolder(base)
    with pytest.raises(ZeroDivisionError), folder.open("task", "backend"):
        raise ZeroDivisionError
    with pytest.raises(ArtifactInvalidError), folder.open("task", "../backend"):
        pass
    assert not list(base.iterdir())


def test_a_sweep_takes_what_killed_processes_left_and_nothing_else(base: Path) -> None:
    """A living process, this one or another, keeps its workspace; foreign files are not ours to remove."""
    folder = WorkspaceFolder(base)
    assert folder.sweep() == 0
    (base / "notes").mkdir()
    (base / "ws-file").write_bytes(b"")
    (base / "ws-half-made").mkdir()
    with (
        folder.open("mine", "backend") as mine,
        subprocess.Popen([sys.executable, "-c", HOLDER, base], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder,
    ):
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == b"open\n"
            assert folder.sweep() == 1  # the half-made one
            assert len(list(base.glob("ws-held-*/files/backend/a.py"))) == 1
        finally:
            holder.kill()
        holder.wait()
        assert WorkspaceFolder(base).sweep() == 1
        mine.write("backend/a.py", b"1")
    assert sorted(path.name for path in base.iterdir()) == ["notes", "ws-file"]


def test_whatever_a_program_left_is_removed_and_nothing_behind_a_link(base: Path, tmp_path: Path) -> None:
    """Folders nested deeper than Python recurses, links to the outside, folders without permissions."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o750)
    (outside / "keep").write_bytes(b"1")
    with WorkspaceFolder(base).open("task", "backend") as workspace:
        own = workspace.root / "backend"
        (own / "link").symlink_to(outside)
        os.link(outside / "keep", own / "hard")
        os.mkfifo(own / "pipe")
        (own / "closed/inner").mkdir(parents=True)
        (own / "closed/inner").chmod(0)
        (own / "closed").chmod(0)
        nest(own, depth=1200)  # Python recurses 1,000 deep
        with pytest.raises(ArtifactInvalidError):
            workspace.own_files()
        assert not workspace.list_files()
    assert not list(base.iterdir())
    assert (outside / "keep").read_bytes() == b"1"
    assert outside.stat().st_mode & 0o777 == 0o750


def nest(parent: Path, *, depth: int) -> None:
    """Folders in folders."""
    folder = os.open(parent, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=folder)
        deeper = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = deeper
    os.close(folder)
