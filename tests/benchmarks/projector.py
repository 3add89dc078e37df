"""`python -m tests.benchmarks.projector`: how many events per second the projector brings into PostgreSQL.

Real servers that sync every write: first a backlog, then events that keep coming while it projects.
"""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coatcheck.events.monitoring import backbone_status
from coatcheck.events.rebuilding import rebuild
from coatcheck.localstack import PROJECTOR_WORKER, LocalStack, StackStatus
from coatcheck.messaging.accounts import LOGS, load_user
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.events import EventLog
from coatcheck.messaging.streams import ensure_streams
from coatcheck.storage.database import open_pool
from coatcheck.storage.events import count_projected
from schemas.events import Event
from tests.integration.event_samples import rounds_of, sample_key

RUNS = 200


@dataclass(frozen=True)
class ProjectorFigures:
    """Events per second."""

    backlog: float
    """From the start of a process that finds them waiting; its start-up is not counted."""
    publishing: float
    """How fast they were published meanwhile, by one client."""
    live: float
    """From the first publish to the last row."""
    rebuilding: float
    """Of the whole table, with the projector beside it."""


async def measure_projector(folder: Path, count: int = 20_000) -> ProjectorFigures:
    """Start NATS, PostgreSQL and a projector in `folder`, and measure both ways of filling the table."""
    batches = list(rounds_of([sample_key(number) for number in range(RUNS)], 2 * count // RUNS))
    half = len(batches) // 2
    async with LocalStack(folder, servers=("nats", "postgres"), workers=(PROJECTOR_WORKER,)) as stack:
        status = stack.status()
        async with _core(status) as core:
            await ensure_streams(core, LOGS)
            await asyncio.to_thread(stack.stop_member, "projector")
            await _publish(core, batches[:half])
            started = asyncio.create_task(asyncio.to_thread(stack.start_member, "projector"))
            await _begun(core, count)
            begun = time.monotonic()
            await _done(core, status, count)
            backlog = count / (time.monotonic() - begun)
            await started
            begun = time.monotonic()
            await _publish(core, batches[half:])
            published = time.monotonic() - begun
            await _done(core, status, 2 * count)
            live = count / (time.monotonic() - begun)
            assert (await backbone_status(core)).dead_letters == 0
            begun = time.monotonic()
            await _rebuild(core, status)
            rebuilding = 2 * count / (time.monotonic() - begun)
    return ProjectorFigures(backlog=backlog, publishing=count / published, live=live, rebuilding=rebuilding)


def _core(status: StackStatus) -> NatsClient:
    assert status.nats is not None
    key = status.nats.users["core"].nkey_file
    assert key is not None
    return NatsClient(status.nats.url, user=load_user(key.parent, "core"), name="bench")


async def _publish(core: NatsClient, batches: Sequence[Sequence[Event]]) -> None:
    log = EventLog(core)
    for batch in batches:
        await log.publish(batch)


async def _begun(core: NatsClient, count: int) -> None:
    """Until the first of `count` events are in the table."""
    async with asyncio.timeout(60):
        while (await backbone_status(core)).lag >= count:
            await asyncio.sleep(0.01)


async def _done(core: NatsClient, status: StackStatus, count: int) -> None:
    """Until all are, which is then checked; the consumer is asked, since counting rows would cost the projector."""
    async with asyncio.timeout(120):
        while (await backbone_status(core)).lag:
            await asyncio.sleep(0.02)
    assert status.postgres is not None
    async with open_pool(status.postgres.dsn) as pool:
        assert await count_projected(pool) == count


async def _rebuild(core: NatsClient, status: StackStatus) -> None:
    assert status.postgres is not None
    async with open_pool(status.postgres.dsn) as pool:
        assert (await rebuild(pool, core)).removed == await count_projected(pool)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure_projector(Path(folder)))
    print(
        f"backlog {figures.backlog:,.0f}/s, live {figures.live:,.0f}/s (published at {figures.publishing:,.0f}/s), "
        f"rebuild {figures.rebuilding:,.0f}/s"
    )
