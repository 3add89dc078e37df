"""The tracer, where there is an endpoint for traces: every core worker and every projector has one, one is active."""

import contextlib
from collections.abc import AsyncIterator

from coatcheck.messaging.client import NatsClient
from coatcheck.storage.database import Pool
from coatcheck.telemetry.provider import ObservabilityProvider


@contextlib.asynccontextmanager
async def tracing(pool: Pool, nats: NatsClient, telemetry: ObservabilityProvider) -> AsyncIterator[None]:
    """Send the traces of all runs while the block lasts; nothing without an endpoint."""
    if not telemetry.has_traces:
        yield
        return
    from coatcheck.events.tracer import Tracer  # noqa: PLC0415  nobody else needs the SDK

    async with contextlib.AsyncExitStack() as stack:
        sender = stack.enter_context(contextlib.closing(telemetry.span_sender()))
        scores = await stack.enter_async_context(telemetry.score_sender())
        tracer = Tracer(pool, nats, sender=sender, privacy=telemetry.privacy, scores=scores)
        await stack.enter_async_context(tracer.running())
        yield
