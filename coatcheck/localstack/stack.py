"""A handle on a stack: start its supervisor in a child process, look at it, stop it; for tests also its members.

The supervisor is a process of its own also in tests: a test that dies leaves nothing behind, since the supervisor
stops as soon as the pipe to its parent is closed.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from coatcheck.errors import CoatcheckError, DependencyDownError
from coatcheck.localstack.config import EXIT_DEPENDENCY_DOWN, SERVERS, Command, External, ServerName, StackConfig
from coatcheck.localstack.files import append_private, private_dir, write_private
from coatcheck.localstack.leftovers import end_leftovers
from coatcheck.localstack.lock import stack_lock
from coatcheck.localstack.status import (
    STATUS_FILE,
    MemberState,
    MemberStatus,
    StackState,
    StackStatus,
    load_status,
    recorded_status,
)
from coatcheck.localstack.workers import DEFAULT_WORKERS, WorkerSpec

STOP_SECONDS: Final = 120.0
"""Workers have 30 s of grace, then each server up to 20 s."""
_POLL_SECONDS: Final = 0.02


def start_detached(config: StackConfig) -> StackStatus:
    """Start the supervisor in a session of its own, where it outlives us; returns when everything is ready.

    Raises:
        DependencyDownError: a server or worker did not start; the message has the end of its log.
        CoatcheckError: the supervisor could not run, for instance because another one does.
    """
    process = _spawn(config, controlled=False)
    assert process.stdin is not None
    process.stdin.close()
    status = _wait_started(process, config)
    # Popen warns when it is dropped while its process runs, which is the purpose here.
    process.returncode = 0
    return status


def stop_detached(data_dir: Path) -> bool:
    """Stop the stack in `data_dir`, and what a killed supervisor left of one; returns whether there was anything.

    Raises:
        CoatcheckError: the supervisor is still there after 120 s.
    """
    data_dir = data_dir.absolute()
    supervisor = load_status(data_dir).supervisor
    if supervisor.pid is not None:
        _end_supervisor(supervisor.pid, data_dir)
    if not data_dir.exists():
        return False
    with stack_lock(data_dir):
        ended = end_leftovers(data_dir)
        status = load_status(data_dir)
        if status.state == StackState.CRASHED:
            status.state = status.supervisor.state = StackState.STOPPED
            for member in (*status.servers, *status.workers):
                member.state = MemberState.STOPPED
            write_private(data_dir / STATUS_FILE, status.model_dump_json(indent=2))
        return bool(ended) or supervisor.pid is not None


class LocalStack:
    """A stack that lives as long as a `with` or `async with` block. Data stay in `data_dir`."""

    def __init__(  # noqa: PLR0913  what a stack can be, each by its name
        self,
        data_dir: Path,
        *,
        servers: Sequence[ServerName] = SERVERS,
        workers: Sequence[WorkerSpec] | None = None,
        env: Mapping[str, str] | None = None,
        external: External | None = None,
        config_file: Path | None = None,
        metrics: bool = False,
        tls: bool = False,
        start_timeout_seconds: float = 60,
    ) -> None:
        self.config = StackConfig(
            data_dir=data_dir.absolute(),
            servers=tuple(servers),
            workers=DEFAULT_WORKERS if workers is None else tuple(workers),
            env=dict(env or {}),
            external=external or External(),
            config_file=config_file.absolute() if config_file else None,
            metrics=metrics,
            tls=tls,
            start_timeout_seconds=start_timeout_seconds,
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> StackStatus:
        """Start the supervisor; returns when every member is ready.

        Raises:
            DependencyDownError: a server or worker did not start.
            CoatcheckError: another supervisor runs this stack.
        """
        self._process = _spawn(self.config, controlled=True)
        try:
            return _wait_started(self._process, self.config)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop everything and wait for it; nothing of the stack runs afterwards."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(STOP_SECONDS)
        self._process = None

    def status(self) -> StackStatus:
        """The stack as it is now."""
        return load_status(self.config.data_dir)

    @property
    def supervisor_pid(self) -> int:
        """Pid of the running supervisor."""
        assert self._process is not None
        return self._process.pid

    def pid(self, name: str) -> int:
        """Pid of a running member.

        Raises:
            CoatcheckError: it does not run just now.
        """
        pid = self.status().member(name).pid
        if pid is None:
            raise CoatcheckError(f"{name} is not running")
        return pid

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to a member behind the supervisor's back; returns the pid that got it."""
        pid = self.pid(name)
        os.kill(pid, number)
        return pid

    def stop_member(self, name: str, *, timeout_seconds: float = 60) -> None:
        """Stop one member and keep it down."""
        self._command(Command(action="stop", member=name))
        self.wait_member(name, lambda member: member.state == MemberState.STOPPED, timeout_seconds=timeout_seconds)

    def start_member(self, name: str, *, timeout_seconds: float = 60) -> int:
        """Start a member that was stopped; returns its pid when it is ready."""
        self._command(Command(action="start", member=name))
        return self.wait_running(name, timeout_seconds=timeout_seconds)

    def restart_member(self, name: str, *, timeout_seconds: float = 60) -> int:
        """Stop a member in order and start it again; returns its new pid when it is ready."""
        self.stop_member(name, timeout_seconds=timeout_seconds)
        return self.start_member(name, timeout_seconds=timeout_seconds)

    def wait_running(self, name: str, *, other_than: int | None = None, timeout_seconds: float = 60) -> int:
        """Wait until a member is ready, with another pid than `other_than`; returns its pid."""
        member = self.wait_member(
            name,
            lambda member: member.state == MemberState.RUNNING and member.pid not in (None, other_than),
            timeout_seconds=timeout_seconds,
        )
        assert member.pid is not None
        return member.pid

    def wait_member(
        self, name: str, accept: Callable[[MemberStatus], bool], *, timeout_seconds: float = 60
    ) -> MemberStatus:
        """Wait until `accept` says yes to the member's status, and return that status.

        Raises:
            TimeoutError: it did not within the time; the message shows the member's last status.
        """
        deadline = time.monotonic() + timeout_seconds
        while not accept(member := self.status().member(name)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} after {timeout_seconds:g} s: {member}")
            time.sleep(_POLL_SECONDS)
        return member

    def _command(self, command: Command) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(command.model_dump_json().encode() + b"\n")
        self._process.stdin.flush()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)


def _end_supervisor(pid: int, data_dir: Path) -> None:
    try:
        process = psutil.Process(pid)
        process.terminate()
        process.wait(STOP_SECONDS)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        raise CoatcheckError(
            f"the supervisor (pid {pid}) did not stop within {STOP_SECONDS:g} s",
            hint=f"see {data_dir / 'logs' / 'supervisor.log'}",
        ) from None


def _spawn(config: StackConfig, *, controlled: bool) -> subprocess.Popen[bytes]:
    private_dir(config.data_dir)
    log = config.logs_dir / "supervisor.log"
    command = [sys.executable, "-m", "coatcheck.localstack", *(["--controlled"] if controlled else [])]
    with append_private(log) as output:
        process = subprocess.Popen(  # noqa: S603  our own module
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
        )
    assert process.stdin is not None
    process.stdin.write(config.model_dump_json().encode() + b"\n")
    process.stdin.flush()
    return process


def _wait_started(process: subprocess.Popen[bytes], config: StackConfig) -> StackStatus:
    """Wait for the end of the start; the supervisor itself bounds how long that takes."""
    log = config.logs_dir / "supervisor.log"
    before = log.stat().st_size
    while True:
        ended = process.poll() is not None
        status = recorded_status(config.data_dir)
        if status.supervisor.pid == process.pid and status.state == StackState.RUNNING:
            return status
        if ended and status.supervisor.pid == process.pid and status.supervisor.error:
            kind = DependencyDownError if process.returncode == EXIT_DEPENDENCY_DOWN else CoatcheckError
            raise kind(status.supervisor.error)
        if ended:
            said = log.read_bytes()[before:].decode(errors="replace").strip()
            raise CoatcheckError(f"the supervisor did not start: {said or f'exit code {process.returncode}'}")
        time.sleep(_POLL_SECONDS)
