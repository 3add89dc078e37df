"""The tracer, where there is an endpoint for traces: every core worker and every projector has one, one is active.

And what Temporal's Web UI says of where a trace is.
"""

import contextlib
from collections.abc import AsyncIterator

from coatcheck.messaging.client import NatsClient
from coatcheck.settings import Settings
from coatcheck.storage.database import Pool
from coatcheck.telemetry.provider import ObservabilityProvider
from schemas.tracing import trace_id, trace_page


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


def trace_note(settings: Settings, run_key: str) -> str:
    """A link where Phoenix is known, the trace's id where traces go elsewhere, and nothing without any."""
    if settings.phoenix_url:
        return f"[Trace]({trace_page(settings.phoenix_url, run_key)})"
    return f"Trace `{trace_id(run_key)}`" if settings.has_otlp("traces") else ""
