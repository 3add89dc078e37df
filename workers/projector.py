"""The projector as a process of its own: the audit log into PostgreSQL, and into traces where there is an endpoint.

Every core worker has one too. One of all of them is active, the others stand by, so this is for those who want it
apart: it is as able to end, and as able to be watched, as it is alone.
"""

from contextlib import AsyncExitStack

from coatcheck.events.projector import Projector
from coatcheck.messaging.accounts import CORE, LOGS
from coatcheck.messaging.streams import ensure_streams
from coatcheck.settings import Settings
from coatcheck.storage.database import open_pool
from workers.nats import nats_client
from workers.runner import Lifecycle
from workers.tracing import tracing


async def run(settings: Settings, lifecycle: Lifecycle) -> None:
    """Project, or stand by, until stopped.

    Raises:
        MessagingUnavailableError: NATS is away at the start; later it is waited for.
    """
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_pool(settings.require_database_url(), max_size=4))
        nats = await stack.enter_async_context(nats_client(settings, CORE, lifecycle.telemetry))
        lifecycle.needs("nats", lambda: nats.is_connected)
        await ensure_streams(nats, LOGS, placement=settings.placement)
        await stack.enter_async_context(Projector(pool, nats).running())
        await stack.enter_async_context(tracing(pool, nats, lifecycle.telemetry))
        await lifecycle.serve()
