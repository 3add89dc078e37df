"""Heartbeats of an activity at work: how the server learns of a worker's death, and we of a cancellation."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from temporalio import activity

HEARTBEAT_SECONDS: Final = 3.0
"""Half the heartbeat time-out: one late beat is not a death. Not less, since each beat costs the server a write."""


@contextlib.asynccontextmanager
async def heartbeats() -> AsyncIterator[None]:
    """Beat in the background: one model call may take minutes, and a beat is how a cancellation arrives."""

    async def beat() -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            activity.heartbeat()

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
