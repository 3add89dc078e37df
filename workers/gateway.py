"""The gateway worker: the LLM proxy and the MCP gateway.

It holds the keys to the outside world, and a database role that can only journal model turns and tool calls.
"""

import asyncio
import functools
import os
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from coatcheck.agents.scripted import ScriptedModel
from coatcheck.config import load_config
from coatcheck.gateway.breaker_board import BreakerBoard
from coatcheck.gateway.budgets import BudgetDesk, DayLimits
from coatcheck.gateway.capacity import Capacity
from coatcheck.gateway.chain import ModelChain
from coatcheck.gateway.claims import ClaimDesk, ClaimService
from coatcheck.gateway.llm_proxy import LLMProxy
from coatcheck.gateway.market_board import MarketBoard
from coatcheck.gateway.providers import Providers
from coatcheck.gateway.tools.calls import ToolCaller
from coatcheck.gateway.tools.desk import OPERATOR, ToolDesk
from coatcheck.gateway.tools.server import open_servers
from coatcheck.gateway.turns import TurnDesk
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.messaging.service import DRAIN_SECONDS, serve
from coatcheck.messaging.work_queue import WorkQueue, working
from coatcheck.settings import Settings
from coatcheck.storage.database import Pool, open_pool
from coatcheck.storage.journal import TurnJournal
from coatcheck.storage.state import finished_notice, read_brief
from coatcheck.storage.tool_calls import ToolJournal
from coatcheck.telemetry.instruments import ModelInstruments
from schemas.config import Config
from schemas.streams import MCP_REQUESTS, tool_queue
from schemas.subjects import claims_subject, llm_subject, tools_subject
from workers.nats import nats_client
from workers.runner import Lifecycle


async def run(settings: Settings, lifecycle: Lifecycle) -> None:
    """Serve model turns and tool calls until stopped, then finish the calls in flight.

    Raises:
        DependencyDownError: a server is away.
        ConfigError: `coatcheck.toml` is wrong.
    """
    config = load_config(settings.config_file)
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_pool(settings.require_gateway_database_url()))
        nats = await stack.enter_async_context(nats_client(settings, "gateway", lifecycle.telemetry))
        lifecycle.needs("nats", lambda: nats.is_connected)
        journal = TurnJournal(pool, gateway_id=str(uuid.uuid4()))
        await journal.beat()
        desk = ClaimDesk(deliverables=DeliverableService(nats), read_brief=functools.partial(read_brief, pool))
        claims = ClaimService(desk, finished_notice=functools.partial(finished_notice, pool))
        board = await stack.enter_async_context(BreakerBoard(nats, config.providers))
        capacity = Capacity(config.providers, config.tenants)
        chain = ModelChain(board, capacity)
        providers = await stack.enter_async_context(_providers(settings, config))
        asked = {model.partition(":")[0] for model in providers.allowed}
        await stack.enter_async_context(MarketBoard(nats, capacity.divide, asked))
        measures = ModelInstruments(lifecycle.telemetry.meter, providers.allowed)
        board.listen(lambda model, _before, now: measures.breaker(model, now.state))
        turns = TurnDesk(
            journal,
            providers=providers,
            measures=measures,
            claims=desk,
            chain=chain,
            budgets=BudgetDesk(
                providers.prices,
                limits=config.limits,
                tenants=config.tenants,
                call_seconds=providers.timeout_seconds,
            ),
            max_failures=settings.provider_failures,
        )
        proxy = LLMProxy(turns, journal=journal, chain=chain)
        beat = asyncio.create_task(proxy.beat())
        stack.callback(beat.cancel)
        stack.push_async_callback(proxy.drain)
        endpoints = {llm_subject(agent): functools.partial(proxy.handle, agent) for agent in config.agents}
        await stack.enter_async_context(serve(nats, name="llm", version="1.0.0", endpoints=endpoints))
        endpoints = {claims_subject(agent): functools.partial(claims.handle, agent) for agent in config.agents}
        await stack.enter_async_context(serve(nats, name="claims", version="1.0.0", endpoints=endpoints))
        await stack.enter_async_context(tools(config, journal, pool=pool, nats=nats, over_budget=measures.over_budget))
        stack.callback(proxy.stop_waiting)  # first of all, or the requests in hand would be waited for
        await lifecycle.serve()


@asynccontextmanager
async def tools(
    config: Config, turns: TurnJournal, *, pool: Pool, nats: NatsClient, over_budget: Callable[[], None] = lambda: None
) -> AsyncIterator[None]:
    """The MCP gateway: a desk that agents ask, a queue per server; `over_budget` hears of calls that do not fit."""
    journal = ToolJournal(pool, turns.gateway_id, may_take_over=turns.may_take_over)
    async with AsyncExitStack() as stack:
        servers = await stack.enter_async_context(open_servers(config.mcp, os.environ, nats=nats))
        desk = ToolDesk(servers, journal=journal, nats=nats)
        caller = ToolCaller(
            servers,
            journal=journal,
            nats=nats,
            gateways=lambda: turns.gateways,
            on_outcome=desk.tell,
            limits=DayLimits(config.limits, config.tenants),
            over_budget=over_budget,
        )
        queues = [
            WorkQueue(
                nats,
                stream=MCP_REQUESTS.name,
                name=tool_queue(name),
                slots=server.max_concurrent,
                work=functools.partial(caller.work, server=name),
            )
            for name, server in config.mcp.items()
        ]
        await stack.enter_async_context(working(queues, DRAIN_SECONDS))
        await stack.enter_async_context(desk.open())
        callers = (*config.agents, OPERATOR)
        endpoints = {tools_subject(name): functools.partial(desk.handle, name) for name in callers}
        await stack.enter_async_context(serve(nats, name="tools", version="1.0.0", endpoints=endpoints))
        yield


def _providers(settings: Settings, config: Config) -> Providers:
    return Providers(
        models=settings.models or config.models,
        openai_api_key=settings.openai_api_key,
        openai_base_url=settings.openai_base_url,
        anthropic_api_key=settings.anthropic_api_key,
        timeout_seconds=settings.provider_timeout_seconds,
        scripted=ScriptedModel(
            latency_seconds=settings.scripted_latency_seconds, report_bytes=settings.scripted_report_bytes
        ),
        prices=config.prices,
        also=[model for role in config.roles.values() for model in role.models],
    )
