"""How far this machine can confine a command, what is hidden from it, and the command line that does it.

Three levels (`schemas.evidence.Isolation`), tried by really running a program, best first:

- `bubblewrap`: `bwrap`, which needs user namespaces or is set-uid.
- `namespaces`: the same by our own launcher; Linux 5.12 and permission to make user namespaces, root or not.
- `limits`: resource limits, no privileges, and Landlock where the kernel has it.

At the first two there is no network, processes are the command's own, and disks cannot be opened. The file system is
read-only but for the workspace; the homes, `/tmp`, `/run` and the folders that the caller names (the data folder, the
NATS keys) are empty. With Landlock (Linux 5.13) the same files are out of reach, except those of `/tmp`, but the
network is open. At bare `limits`, as on macOS, a program that looks for them can read the files of the worker's user.
Everything else that the worker's user may read is readable at every level.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Final, Literal

import coatcheck
from coatcheck.workspace.confinement import HIDDEN, READABLE, WRITABLE, View, landlock_version
from coatcheck.workspace.launcher import Launch, parse_report
from schemas.evidence import Isolation

ISOLATION_HINT: Final = "install bubblewrap, or allow unprivileged user namespaces (Linux 5.12 or newer)"
_HIDDEN: Final = ("/home", "/root", "/run", "/tmp", "/var/tmp")  # noqa: S108  the paths are hidden, not used
"""`/run` has the sockets of the machine's services, which no network namespace closes."""
_PROBE_SECONDS: Final = 10.0
"""A probe takes 0.1 s; a machine that starts its servers beside it, a few."""
_BWRAP: Final = ("--unshare-all", "--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL")


def detect_isolation() -> Isolation:
    """The strongest level that works here; tried once per process, which takes 0.1 s."""
    return next(level for level in Isolation if refusal(level) is None)


@cache
def refusal(isolation: Isolation) -> str | None:
    """Why the level does not work here; `None` when it does."""
    if isolation is Isolation.LIMITS:
        return None
    if sys.platform != "linux":
        return "only Linux has it"
    if isolation is Isolation.BUBBLEWRAP and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    with tempfile.TemporaryDirectory(prefix="coatcheck-probe-") as folder:
        root = str(Path(folder).resolve())
        launch = Launch(
            argv=[sys.executable, "-I", "-S", "-c", ""],
            cwd=root,
            environment={},
            timeout_seconds=_PROBE_SECONDS,
            confinement=confinement_of(isolation),
            view=list(visible_files(Path(root))),
        )
        return _probe(isolation, launch)


def describe(isolation: Isolation) -> str:
    """The level in a sentence, with what to do for a better one."""
    match isolation:
        case Isolation.BUBBLEWRAP:
            return "bubblewrap: no network, the system read-only, homes and keys hidden"
        case Isolation.NAMESPACES:
            return "namespaces: no network, the system read-only, homes and keys hidden"
    files = "homes and keys hidden by Landlock" if hides_files_by_landlock() else "homes and keys can be read"
    return f"limits only: the network is open, {files}; for more, {ISOLATION_HINT}"


def _probe(isolation: Isolation, launch: Launch) -> str | None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(  # noqa: S603  our own launcher
            launcher_command(isolation, launch, theirs.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={},
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        with contextlib.suppress(BrokenPipeError):
            ours.sendall(json.dumps(asdict(launch)).encode() + b"\n")
        try:
            said, _ = process.communicate(timeout=_PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return f"a probe has not ended within {_PROBE_SECONDS:g} s"
        try:
            report = parse_report(ours.recv(65_536))
        except (ValueError, ConnectionError):
            return said.decode(errors="replace").strip()[-200:] or f"exit code {process.returncode}"
    return None if report.exit_code == 0 else report.reason or said.decode(errors="replace").strip()[-200:]


def confinement_of(isolation: Isolation) -> Literal["namespaces", "prepared", "landlock", "none"]:
    """What is left to the launcher at the level."""
    match isolation:
        case Isolation.BUBBLEWRAP:
            return "prepared"
        case Isolation.NAMESPACES:
            return "namespaces"
    return "landlock" if hides_files_by_landlock() else "none"


@cache
def hides_files_by_landlock() -> bool:
    """Whether the weakest level hides folders all the same."""
    return sys.platform == "linux" and landlock_version() > 0


def launcher_command(isolation: Isolation, launch: Launch, descriptor: int) -> list[str]:
    """The command line that starts the launcher, whose socket is `descriptor`, at the level."""
    # `-I`: nothing in the working directory or the environment can take a module's place.
    launcher = [sys.executable, "-I", "-B", "-m", "coatcheck.workspace.launcher", str(descriptor)]
    if isolation is not Isolation.BUBBLEWRAP:
        return launcher
    shared = ["--share-net"] if launch.network else []
    # Root in the namespace owns the settings in /proc/sys.
    system = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--remount-ro", "/proc"]
    options = {
        HIDDEN: lambda path: ["--tmpfs", path],
        READABLE: lambda path: ["--ro-bind", path, path],
        WRITABLE: lambda path: ["--bind", path, path],
    }
    mounts = [word for access, path in launch.view for word in options[access](path)]
    return [shutil.which("bwrap") or "bwrap", *_BWRAP, *shared, *system, *mounts, "--", *launcher]


def visible_files(root: Path, *, home: Path | None = None, hidden: Sequence[Path] = (), network: bool = False) -> View:
    """The view of a command.

    Args:
        root: The workspace, writable.
        home: A home folder that the command is given, writable; the other homes are hidden.
        hidden: Folders that are hidden besides, also inside `home` and `root`.
        network: Whether it needs the list of name servers, which may be in a hidden folder.
    """
    names: tuple[str | Path, ...] = (*_HIDDEN, Path.home(), *hidden)
    covered = {str(path) for path in map(Path.resolve, map(Path, names)) if path.is_dir()}
    covered.discard("/")  # the home of a service's user
    shown = {path: READABLE for path in _interpreter() if path not in covered and _is_below(path, covered)}
    name_servers = Path("/etc/resolv.conf").resolve()
    if network and name_servers.exists() and _is_below(str(name_servers), covered):
        shown[str(name_servers)] = READABLE
    for path in (root, home):
        if path is not None:
            shown[str(path.resolve())] = WRITABLE
    view = [*((HIDDEN, path) for path in covered), *((access, path) for path, access in shown.items())]
    return sorted(view, key=lambda item: (item[1].rstrip("/").count("/"), item[0] != HIDDEN, item[1]))


def _is_below(path: str, folders: set[str]) -> bool:
    return any(str(parent) in folders for parent in Path(path).parents)


def _interpreter() -> Iterator[str]:
    """Folders that our own `python` and the launcher need; a virtual environment is often in a home."""
    folders = [Path(folder).absolute() for folder in (sys.prefix, sys.base_prefix, *coatcheck.__path__)]
    for folder in (*folders, *(folder.resolve() for folder in folders), Path(sys.executable).resolve().parent.parent):
        if folder.is_dir():
            yield str(folder)
