"""The process between a worker and a command: starts it, bounds it, and leaves nothing of it behind.

`python -m coatcheck.workspace.launcher FD` talks over the socket FD: it reads a `Launch` as one line of JSON, then
single bytes (`TERMINATE`, `KILL`), and writes a `Report` as one line when the last process of the command is gone. The
socket's end means that the worker is dead. A process of its own, because a worker that is killed with -9 can clean up
nothing, and because only a parent may adopt processes that daemonise.

The command ends with everything that it started. With namespaces the launcher is process 1 of the command's process
namespace, so the kernel sees to that even when the launcher is killed. Without them it adopts orphans (Linux) and ends
its descendants one by one; elsewhere a process that starts a session of its own and leaves its parent escapes.
Imports next to nothing: it starts for every command.
"""

import contextlib
import json
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from coatcheck.workspace import confinement, kernel

TERMINATE: Final = b"T"
"""End it: SIGTERM, SIGKILL after `GRACE_SECONDS`."""
KILL: Final = b"K"
GRACE_SECONDS: Final = 2.0
"""Enough to remove a lock file; a worker that stops waits for it."""
MAX_PROCESSES: Final = 1024
"""Of one command, over those that the machine has at its start: a parallel build has tens. A fork bomb stops there."""
_REAP_SECONDS: Final = 10.0
"""For killed processes to go away; only one in an uninterruptible system call does not."""
_REAP_POLL_SECONDS: Final = 0.02

Ending = Literal["exited", "time", "terminated", "killed", "not_started", "unavailable"]


@dataclass(frozen=True)
class Launch:
    """What to run, and how."""

    argv: list[str]
    cwd: str
    environment: dict[str, str]
    timeout_seconds: float
    limits: dict[str, int] = field(default_factory=dict)
    """Name of an `RLIMIT_…` → bound, for each process of the command."""
    same_session: bool = False
    """Whether the command stays in the launcher's session, whose niceness is then the command's."""
    confinement: Literal["namespaces", "prepared", "landlock", "none"] = "none"
    """`prepared`: the launcher already runs in namespaces, as process 1."""
    network: bool = False
    view: list[tuple[str, str]] = field(default_factory=list)
    """See `coatcheck.workspace.confinement.View`."""


@dataclass(frozen=True)
class Report:
    """How it ended."""

    ending: Ending
    exit_code: int | None = None
    """Negative: that signal."""
    seconds: float = 0.0
    reason: str = ""


def main() -> None:
    """Run what the socket says."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    line = _read_line(control)
    if line is None:  # the worker died before it said anything
        return
    launch = Launch(**json.loads(line))
    try:
        if launch.confinement == "namespaces" and not _enter(launch):
            return
        report = _confined(launch, control)
    except OSError as error:
        report = Report("unavailable", reason=str(error))
    with contextlib.suppress(OSError):  # nobody is there to hear it
        control.sendall(json.dumps(asdict(report)).encode() + b"\n")


def _read_line(control: socket.socket) -> bytes | None:
    """The first line and nothing after it: the worker may have changed its mind already."""
    data = b""
    while not data.endswith(b"\n"):
        if not (seen := control.recv(65_536, socket.MSG_PEEK)):
            return None
        data += control.recv(seen.find(b"\n") + 1 or len(seen))
    return data


def _enter(launch: Launch) -> bool:
    """Fork into the namespaces. In the parent, wait for the child and return `False`."""
    kernel.die_with_parent()
    kernel.enter_namespaces(network=launch.network)
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return False
    kernel.die_with_parent()
    return True


def _confined(launch: Launch, control: socket.socket) -> Report:
    if launch.confinement == "namespaces":
        if not launch.network:
            kernel.start_loopback()
        confinement.arrange(launch.view, max_processes=MAX_PROCESSES)
    if sys.platform == "linux":
        kernel.adopt_orphans()
        kernel.be_opaque()
        kernel.forbid_privileges()
    return _Command(launch, control).run()


class _Command:
    """One command and its descendants."""

    def __init__(self, launch: Launch, control: socket.socket) -> None:
        self._launch = launch
        self._control = control
        self._owns_namespace = launch.confinement in {"namespaces", "prepared"} and os.getpid() == 1
        self._main: subprocess.Popen[bytes] | None = None
        self._exit_code: int | None = None
        self._ending: Ending = "exited"
        self._kill_at = float("inf")
        self._selector = selectors.DefaultSelector()

    def run(self) -> Report:
        """Start it and stay until nothing of it is left.

        Raises:
            OSError: the confinement is refused.
        """
        self._listen()
        begin = time.monotonic()
        try:
            self._main = self._start()
        except subprocess.SubprocessError:  # `_bound` failed; its message stays in the child
            return Report("unavailable", reason="the limits of the command are refused")
        except (OSError, ValueError) as error:
            return Report("not_started", reason=_why(error, self._launch))
        self._kill_at = begin + self._launch.timeout_seconds
        while self._exit_code is None:
            self._step()
        seconds = time.monotonic() - begin
        self._end_the_rest()
        return Report(self._ending, self._exit_code, seconds)

    def _listen(self) -> None:
        """Be woken by the socket and by the death of a child."""
        wakeup, signalled = socket.socketpair()
        for end in (wakeup, signalled):
            end.setblocking(False)
        signal.set_wakeup_fd(signalled.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._signalled = signalled  # kept open
        self._selector.register(wakeup, selectors.EVENT_READ, "child")
        self._selector.register(self._control, selectors.EVENT_READ, "worker")

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(  # noqa: S603  the command is what this is for
            self._launch.argv,
            cwd=self._launch.cwd,
            env=self._launch.environment,
            stderr=subprocess.STDOUT,
            close_fds=False,  # all of ours close by themselves; to find them, an opaque process would try every number
            start_new_session=not self._launch.same_session,
            process_group=0 if self._launch.same_session else None,
            preexec_fn=self._bound,  # noqa: PLW1509  this process has one thread
        )

    def _bound(self) -> None:
        """In the child, before the program."""
        if sys.platform == "linux":
            kernel.die_with_parent()
        for name, value in {**_process_limit(), **self._launch.limits}.items():
            _limit(name, value)
        if self._launch.confinement == "landlock":
            confinement.restrict_files(self._launch.view)

    def _step(self) -> None:
        """Wait for the next event and act on it."""
        timeout = None if self._kill_at == float("inf") else max(0.0, self._kill_at - time.monotonic())
        for key, _ in self._selector.select(timeout):
            assert isinstance(key.fileobj, socket.socket)
            data = key.fileobj.recv(4096)
            if key.data == "worker":
                self._obey(data)
        if time.monotonic() >= self._kill_at:
            self._end("time")
            self._signal_all(signal.SIGKILL)
        self._reap()

    def _obey(self, data: bytes) -> None:
        if data == TERMINATE:
            self._end("terminated", within=GRACE_SECONDS)
            self._signal_all(signal.SIGTERM)
            return
        if not data:
            self._selector.unregister(self._control)
        self._end("killed")
        self._signal_all(signal.SIGKILL)

    def _end(self, ending: Ending, *, within: float = 0.0) -> None:
        """Note why it ends, the first reason only; a process that forked just now is killed in the next step."""
        if self._ending == "exited":
            self._ending = ending
        self._kill_at = time.monotonic() + (within or _REAP_POLL_SECONDS)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._main is not None and pid == self._main.pid:
                self._exit_code = self._main.returncode = os.waitstatus_to_exitcode(status)

    def _end_the_rest(self) -> None:
        give_up_at = time.monotonic() + _REAP_SECONDS
        while self._signal_all(signal.SIGKILL) and time.monotonic() < give_up_at:
            self._selector.select(_REAP_POLL_SECONDS)
            self._reap()

    def _signal_all(self, number: signal.Signals) -> bool:
        """Signal every process of the command; whether there was any."""
        self._reap()
        if self._owns_namespace:
            try:
                os.kill(-1, number)  # all but process 1, which is this one
            except ProcessLookupError:
                return False
            return True
        return self._signal_descendants(number)

    def _signal_descendants(self, number: signal.Signals) -> bool:
        descendants = list(_descendants())
        for pid in descendants:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        if self._main is not None:  # also what left its parent but stayed in the group, where orphans are not adopted
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._main.pid, number)
        return bool(descendants)


def _descendants() -> Iterator[int]:
    """Every process below this one.

    Where Linux lists children this takes microseconds. It matters: a process that only forks and exits has another
    number each time, and forks faster than psutil looks at all processes.
    """
    pending = [os.getpid()]
    if not os.path.exists(f"/proc/self/task/{pending[0]}/children"):  # noqa: PTH110  see `_process_limit`
        import psutil  # noqa: PLC0415  only here

        yield from (process.pid for process in psutil.Process().children(recursive=True))
        return
    while pending:
        found = _children(pending.pop())
        pending += found
        yield from found


def _children(pid: int) -> list[int]:
    numbers: list[int] = []
    with contextlib.suppress(OSError):  # it has ended
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208  names
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as children:  # noqa: PTH123
                numbers += map(int, children.read().split())
    return numbers


def _limit(name: str, value: int) -> None:
    kind: int | None = getattr(resource, name, None)
    if kind is None:
        return
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    # The first signal of an exceeded CPU time can be caught, the second, a second later, cannot.
    most = value + 1 if name == "RLIMIT_CPU" and (hard == resource.RLIM_INFINITY or value < hard) else value
    try:
        resource.setrlimit(kind, (value, most))
    except (OSError, ValueError):
        if sys.platform == "linux":  # macOS names limits that it does not keep
            raise


def _process_limit() -> dict[str, int]:
    """The bound counts all threads of the user, on older kernels also those outside; root is not bound by it."""
    if sys.platform != "linux":
        return {}
    with open("/proc/loadavg", encoding="ascii") as load:  # noqa: PTH123  pathlib would be imported for this alone
        threads = int(load.read().split()[3].split("/")[1])
    return {"RLIMIT_NPROC": threads + MAX_PROCESSES}


def _why(error: Exception, launch: Launch) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or launch.argv[0]}: {error.strerror or error}"
    return f"{launch.argv[0]}: {error}"


def parse_report(line: bytes) -> Report:
    """What the launcher wrote.

    Raises:
        ValueError: it is cut off, or there is none.
    """
    found: dict[str, Any] = json.loads(line)
    return Report(**found)


if __name__ == "__main__":
    main()
