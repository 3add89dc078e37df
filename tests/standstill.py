"""A process that stands still: its connections stay open and nobody answers."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil

POLL_SECONDS = 0.005


@asynccontextmanager
async def stopped(pid: int) -> AsyncIterator[None]:
    """SIGSTOP to a process and all its children, SIGCONT in the end.

    The signal only asks: on a busy machine threads that are on the other core go on answering for some milliseconds.
    So this waits until every thread stands still.
    """
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    for member in family:
        os.kill(member.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(10):
            while not all(_stands_still(member) for member in family):
                await asyncio.sleep(POLL_SECONDS)
        yield
    finally:
        for member in reversed(family):
            os.kill(member.pid, signal.SIGCONT)


def _stands_still(process: psutil.Process) -> bool:
    """Whether all its threads do; one that is not scheduled yet has not seen the signal."""
    try:
        return all(psutil.Process(thread.id).status() == psutil.STATUS_STOPPED for thread in process.threads())
    except psutil.NoSuchProcess:  # a thread ended meanwhile
        return False
