"""The gateway worker: the LLM proxy. It holds the provider keys and a database role that can only journal turns."""

import asyncio
import functools
import uuid
from contextlib import AsyncExitStack

from coatcheck.gateway.claims import ClaimDesk
from coatcheck.gateway.llm_proxy import LLMProxy
from coatcheck.gateway.providers import Providers
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.messaging.service import serve
from coatcheck.settings import Settings
from coatcheck.storage.database import open_pool
from coatcheck.storage.journal import TurnJournal
from coatcheck.storage.state import read_brief
from schemas.streams import AGENTS
from schemas.subjects import llm_subject
from workers.nats import nats_client
from workers.runner import Lifecycle


async def run(settings: Settings, lifecycle: Lifecycle) -> None:
    """Serve model turns until stopped, then finish the calls in flight.

    Raises:
        DependencyDownError: a server is away.
    """
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_pool(settings.require_gateway_database_url()))
        nats = await stack.enter_async_context(nats_client(settings, "gateway"))
        journal = TurnJournal(pool, gateway_id=str(uuid.uuid4()))
        await journal.beat()
        proxy = LLMProxy(
            journal,
            providers=await stack.enter_async_context(_providers(settings)),
            claims=ClaimDesk(deliverables=DeliverableService(nats), read_brief=functools.partial(read_brief, pool)),
            max_failures=settings.provider_failures,
        )
        beat = asyncio.create_task(proxy.beat())
        stack.callback(beat.cancel)
        stack.push_async_callback(proxy.drain)
        endpoints = {llm_subject(agent): functools.partial(proxy.handle, agent) for agent in AGENTS}
        await stack.enter_async_context(serve(nats, name="llm", version="1.0.0", endpoints=endpoints))
        await lifecycle.serve()


def _providers(settings: Settings) -> Providers:
    return Providers(
        default_model=settings.model,
        openai_api_key=settings.openai_api_key,
        openai_base_url=settings.openai_base_url,
        anthropic_api_key=settings.anthropic_api_key,
        timeout_seconds=settings.provider_timeout_seconds,
        scripted_latency_seconds=settings.scripted_latency_seconds,
        scripted_report_bytes=settings.scripted_report_bytes,
    )
