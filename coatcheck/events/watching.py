"""What is looked at again and again, for whoever measures: the streams, the projector, the dead letters, the ledger."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

from coatcheck.errors import CoatcheckError
from coatcheck.events.monitoring import backbone_status
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.streams import stream_statuses
from coatcheck.storage import ledger
from coatcheck.storage.database import Pool
from coatcheck.telemetry.instruments import BackboneInstruments, LedgerInstruments
from schemas.streams import StreamSpec

BACKBONE_SECONDS: Final = 10.0
"""Twenty questions of 0.3 ms each; Prometheus asks every 15 s."""
LEDGER_SECONDS: Final = 60.0
"""The whole ledger is added up."""

_log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def watching(look: Callable[[], Awaitable[None]], *, every_seconds: float) -> AsyncIterator[None]:
    """Look at once and again and again until the block ends."""
    task = asyncio.create_task(_again(look, every_seconds), name="watch")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def look_at_backbone(
    client: NatsClient, specs: Sequence[StreamSpec], instruments: BackboneInstruments, *, has_traces: bool = False
) -> None:
    """Tell how the streams are; of a NATS that is away, that it is.

    Args:
        client: An identity that may look: `core` or `observer`.
        specs: The streams.
        instruments: Are told.
        has_traces: Whether traces are sent. Where they are not any more, nobody is behind with them.
    """
    try:
        status = await backbone_status(client)
        streams = await stream_statuses(client, specs)
    except CoatcheckError as error:
        _log.warning("the backbone cannot be looked at: %s", error)
        instruments.away()
        return
    declared = {spec.name: spec for spec in specs}
    instruments.looked(
        lag=status.lag,
        tracer_lag=status.tracer_lag if has_traces else None,
        dead_letters=status.dead_letters,
        streams=[(declared[stream.name], stream) for stream in streams],
    )


async def look_at_ledger(pool: Pool, instruments: LedgerInstruments) -> None:
    """Tell how many accounts are not what their entries say; nothing while PostgreSQL is away."""
    try:
        found = await ledger.check(pool)
    except CoatcheckError as error:
        _log.warning("the ledger cannot be looked at: %s", error)
        return
    instruments.looked(len(found.drifted) + (found.total != 0))


async def _again(look: Callable[[], Awaitable[None]], seconds: float) -> None:
    while True:
        await look()
        await asyncio.sleep(seconds)
