"""Processes of a stack that outlived their supervisor: found by pid and start time, and by a mark they inherit.

The status file names every member. The mark, an environment variable, also finds a process that was started just
before the supervisor was killed, and the children of a worker that died. PostgreSQL's children overwrite their
environment with their title; they end by themselves when their parent is gone.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil

from coatcheck.localstack.status import alive, recorded_status

MARK: Final = "COATCHECK_STACK"
"""Set to the absolute data directory in the environment of every member, and only there."""
_GRACE_SECONDS: Final = 10.0
_KILL_SECONDS: Final = 5.0


def end_leftovers(data_dir: Path) -> list[str]:
    """End every process that is left of the stack in `data_dir`; returns `name (pid)` of each.

    The caller holds the stack's lock, so no living supervisor would start them again.
    """
    leftovers = {process.pid: process for process in (*_recorded(data_dir), *_marked(data_dir))}
    ended = [_label(process) for process in leftovers.values()]
    _signal(list(leftovers.values()), kill=False)
    _, stubborn = psutil.wait_procs(leftovers.values(), timeout=_GRACE_SECONDS)
    _signal(stubborn, kill=True)
    psutil.wait_procs(stubborn, timeout=_KILL_SECONDS)
    return ended


def _recorded(data_dir: Path) -> Iterator[psutil.Process]:
    status = recorded_status(data_dir)
    for member in (*status.servers, *status.workers):
        if member.pid is not None and alive(member.pid, member.create_time):
            with contextlib.suppress(psutil.NoSuchProcess):
                yield psutil.Process(member.pid)


def _marked(data_dir: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        # Other users' processes cannot be read, and are not ours.
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(data_dir) and process.pid != os.getpid():
                yield process


def _label(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"{process.name()} ({process.pid})"
    return str(process.pid)


def _stop_signal(process: psutil.Process) -> signal.Signals:
    # PostgreSQL would wait for its clients after SIGTERM.
    return signal.SIGINT if process.name() == "postgres" else signal.SIGTERM


def _signal(processes: list[psutil.Process], *, kill: bool) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if kill:
                process.kill()
            else:
                process.send_signal(_stop_signal(process))
