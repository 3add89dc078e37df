"""One supervised process: start it, know when it is ready, start it again when it dies, stop it and its group."""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from coatcheck.errors import CoatcheckError
from coatcheck.localstack.files import append_private
from coatcheck.localstack.status import MemberState, MemberStatus

FIRST_BACK_OFF_SECONDS: Final = 0.2
LAST_BACK_OFF_SECONDS: Final = 10.0
STEADY_SECONDS: Final = 10.0
"""A process that was ready for this long starts over at the first back-off."""
POLL_SECONDS: Final = 0.03
"""Between two questions whether it is ready; a server needs 0.2 to 1 s."""
MAX_LOG_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class MemberSpec:
    """What to run and how to tell that it is ready."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    """The whole environment, nothing is inherited."""
    ready: Callable[[], Awaitable[bool]]
    """Asked again and again from the start on; an exception is a bug, not a no."""
    before_start: Callable[[], None] = lambda: None
    stop_signal: signal.Signals = signal.SIGTERM
    grace_seconds: float = 10
    """From `stop_signal` to SIGKILL."""


class Member:
    """Keeps one process alive until it is stopped.

    The process leads a session of its own, so a Ctrl-C in the terminal reaches only the supervisor, and everything
    that it started goes with it.
    """

    def __init__(self, spec: MemberSpec, *, log: Path, say: Callable[[str], None], changed: Callable[[], None]) -> None:
        self.spec = spec
        self.status = MemberStatus(name=spec.name, log=log)
        self.up = asyncio.Event()
        """Set while the process is ready."""
        self.failed_starts = 0
        """Deaths before it was ready, since it was last ready."""
        self._say = say
        self._changed = changed
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._turn = asyncio.Event()
        self._back_off_seconds = FIRST_BACK_OFF_SECONDS

    def start(self) -> None:
        """Begin to keep it alive; does nothing when that is already so."""
        if self._task is None:
            self._stop.clear()
            self._task = asyncio.create_task(self._keep_alive(), name=f"keep {self.spec.name}")

    async def stop(self) -> None:
        """Stop the process and do not start it again; returns when it and its process group are gone."""
        if self._task is not None:
            self._stop.set()
            await self._task
            self._task = None

    async def wait_change(self) -> None:
        """Wait for the next change of state."""
        self._turn.clear()
        await self._turn.wait()

    def bound_log(self) -> None:
        """Move a log that grew over 16 MiB aside, to `<name>.log.1`. The process keeps appending to the same file."""
        log = self.status.log
        if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
            shutil.copyfile(log, log.with_name(log.name + ".1"))
            os.truncate(log, 0)

    async def _keep_alive(self) -> None:
        while not self._stop.is_set():
            ready_since = await self._live()
            if self._stop.is_set():
                break
            await self._back_off(ready_since)
        self._set(MemberState.STOPPED)

    async def _live(self) -> float | None:
        """One life of the process, from its start to its end; returns when it became ready, `None` if it never did."""
        try:
            process = await self._spawn()
        except (CoatcheckError, OSError) as error:
            self.status.last_exit = str(error)
            self.failed_starts += 1
            return None
        exited = asyncio.create_task(process.wait())
        try:
            ready_since = await self._wait_ready(exited)
            await self._first(exited, asyncio.create_task(self._stop.wait()))
            if not exited.done():
                await self._end(process, exited)
        finally:
            self.up.clear()
            _kill_group(process.pid)
            await exited
        self._ended(exited.result(), ready_since)
        return ready_since

    async def _spawn(self) -> asyncio.subprocess.Process:
        await asyncio.to_thread(self.spec.before_start)
        with append_private(self.status.log) as log:
            process = await asyncio.create_subprocess_exec(
                *self.spec.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.spec.env),
                start_new_session=True,
            )
        self.status.pid = process.pid
        with contextlib.suppress(psutil.NoSuchProcess):
            self.status.create_time = psutil.Process(process.pid).create_time()
        self._set(MemberState.STARTING)
        return process

    async def _wait_ready(self, exited: asyncio.Task[int]) -> float | None:
        while not exited.done() and not self._stop.is_set():
            if await self.spec.ready():
                # Something else may have answered for a process that is just failing to start.
                await asyncio.wait({exited}, timeout=0)
                if exited.done():
                    break
                self.failed_starts = 0
                self._set(MemberState.RUNNING)
                self.up.set()
                return time.monotonic()
            await asyncio.wait({exited}, timeout=POLL_SECONDS)
        return None

    async def _end(self, process: asyncio.subprocess.Process, exited: asyncio.Task[int]) -> None:
        self._set(MemberState.STOPPING)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(self.spec.stop_signal)
        await asyncio.wait({exited}, timeout=self.spec.grace_seconds)
        if not exited.done():
            self._say(f"{self.spec.name} did not stop within {self.spec.grace_seconds:g} s; killing it")

    def _ended(self, code: int, ready_since: float | None) -> None:
        self.status.last_exit = _describe(code)
        self.status.pid = self.status.create_time = None
        if ready_since is None:
            self.failed_starts += 1
        elif time.monotonic() - ready_since > STEADY_SECONDS:
            self._back_off_seconds = FIRST_BACK_OFF_SECONDS

    async def _back_off(self, ready_since: float | None) -> None:
        delay = self._back_off_seconds
        self._back_off_seconds = min(delay * 2, LAST_BACK_OFF_SECONDS)
        what = "died" if ready_since is not None else "failed to start"
        self._say(f"{self.spec.name} {what} ({self.status.last_exit}); starting it again in {delay:g} s")
        self._set(MemberState.BACKING_OFF)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), delay)
        if not self._stop.is_set():
            self.status.restarts += 1

    @staticmethod
    async def _first(*tasks: asyncio.Task[object]) -> None:
        """Wait for the first of `tasks`; the one that only watches for a stop is not left behind."""
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        tasks[-1].cancel()

    def _set(self, state: MemberState) -> None:
        self.status.state = state
        self._changed()
        self._turn.set()


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
