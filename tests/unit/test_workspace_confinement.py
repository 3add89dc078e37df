"""Whatever the tools are asked for and whatever a program plants in between: nothing outside is read or written."""

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from coatcheck.errors import ArtifactInvalidError
from coatcheck.workspace.files import Workspace

CANARY = "canary-5e1f"
HIDDEN = "hidden-name"
GUESSED = "guessed"
"""Content of a file outside that a patch knows, so that only the confinement stops it."""

known = ["backend", "frontend", "src", "a.py", "A.py", "link", "outside", "secret.txt", "known.txt", "files"]
parts = st.sampled_from([*known, "..", ".", "", "~", "\0", "e\u0301", "src\\..", "con:", "/", "//"])
names = st.sampled_from(["link", "src", "a.py", "src/link", "src/a.py", "known.txt", "src/known.txt"])
targets = st.sampled_from(
    [
        "OUTSIDE",
        "OUTSIDE/secret.txt",
        "OUTSIDE/known.txt",
        "../../outside",
        "../../../outside",
        "..",
        "/",
        "/etc/hostname",
    ]
)
plain = st.tuples(st.just("backend"), names).map("/".join)
hostile = st.lists(parts, max_size=5).map("/".join)
absolute = st.sampled_from(["OUTSIDE/secret.txt", "OUTSIDE", "OUTSIDE/new.txt"])
paths = st.one_of(plain, plain, hostile, hostile.map("backend/".__add__), absolute)
tools = st.tuples(
    st.sampled_from(["read", "write", "list", "search", "patch", "unlink", "rename", "stage", "own"]), paths, paths
)
plants = st.tuples(st.sampled_from(["symlink", "hardlink", "fifo", "folder", "remove", "exchange"]), names, targets)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(tools, plants), min_size=1, max_size=12))
def test_nothing_outside_is_read_or_written(steps: list[tuple[str, str, str]]) -> None:
    """A tree beside the workspace stays as it is, and its content is in no result and in no refusal."""
    with tempfile.TemporaryDirectory() as folder:
        outside = Path(folder) / "outside"
        (outside / "src").mkdir(parents=True)
        for name, text in (("secret.txt", CANARY), (HIDDEN, CANARY), ("src/a.py", CANARY), ("known.txt", GUESSED)):
            (outside / name).write_text(f"{text}\n")
        (Path(folder) / "base/files").mkdir(parents=True)
        workspace = Workspace(Path(folder) / "base/files", own="backend")
        before = state(outside)
        for verb, one, other in steps:
            first, second = (text.replace("OUTSIDE", str(outside)) for text in (one, other))
            result = act(workspace, outside, verb, first, second)
            assert CANARY not in result
            assert HIDDEN not in result
            assert state(outside) == before
        assert {path.name for path in Path(folder).iterdir()} == {"base", "outside"}
        assert [path.name for path in (Path(folder) / "base").iterdir()] == ["files"]


def act(workspace: Workspace, outside: Path, verb: str, one: str, other: str) -> str:
    """Do one step; everything that an agent would see of it."""
    change = f"@@ -1 +1 @@\n-{GUESSED}\n+changed\n"
    removal = f"@@ -1 +0,0 @@\n-{GUESSED}\n"
    verbs: dict[str, Callable[[], Any]] = {
        "read": lambda: workspace.read(one),
        "write": lambda: workspace.write(one, b"written\n"),
        "list": lambda: workspace.list_files(one),
        "search": lambda: workspace.search(".", one),
        "patch": lambda: workspace.apply_patch(f"--- a/{one}\n+++ b/{one}\n{change}"),
        "unlink": lambda: workspace.apply_patch(f"--- a/{one}\n+++ /dev/null\n{removal}"),
        "rename": lambda: workspace.apply_patch(
            f"diff --git a/{one} b/{other}\nrename from {one}\nrename to {other}\n"
        ),
        "stage": lambda: workspace.add_stage(one.split("/", 1)[0], {other: b"stage\n"}),
        "own": workspace.own_files,
    }
    if verb not in verbs:
        plant(workspace.root / "backend", outside, verb, one, other)
        return ""
    try:
        return repr(verbs[verb]())
    except ArtifactInvalidError as error:
        return f"{error} {error.hint}"


def plant(own: Path, outside: Path, verb: str, name: str, target: str) -> None:
    """What a program of the agent may do inside its folder."""
    is_inside = stays_inside(own)
    with suppress(OSError):
        place = own / name
        if verb == "exchange":
            own.rename(own.with_name("exchanged"))
            own.symlink_to(target)
        elif is_inside and verb == "remove":
            shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
        elif is_inside and verb == "symlink":
            place.symlink_to(target)
        elif is_inside and verb == "hardlink":
            os.link(outside / "known.txt" if "known" in name else outside / "secret.txt", place)
        elif is_inside and verb == "fifo":
            os.mkfifo(place)
        elif is_inside and verb == "folder":
            place.mkdir()


def stays_inside(own: Path) -> bool:
    """Whether the attacker's own step stays inside: only the tools are on trial."""
    return not own.is_symlink() and not (own / "src").is_symlink()


def state(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Everything about a tree that a tool could have changed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        info = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (info.st_ino, info.st_mode, info.st_mtime_ns, content)
    return found
