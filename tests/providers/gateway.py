"""An LLM proxy as the gateway worker composes it, on a real PostgreSQL and NATS, in front of the local provider."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from opentelemetry.metrics import Meter, NoOpMeter
from pydantic import SecretStr, TypeAdapter
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, ModelRequest, UserPromptPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.tools import ToolDefinition

from coatcheck.agents.reports import ReviewReport
from coatcheck.agents.scripted import ScriptedModel
from coatcheck.gateway.breaker import BreakerState
from coatcheck.gateway.breaker_board import BreakerBoard
from coatcheck.gateway.budgets import BudgetDesk
from coatcheck.gateway.capacity import Capacity
from coatcheck.gateway.chain import ModelChain
from coatcheck.gateway.claims import ClaimDesk
from coatcheck.gateway.llm_proxy import LLMProxy
from coatcheck.gateway.market_board import MarketBoard
from coatcheck.gateway.providers import Providers
from coatcheck.gateway.turns import TurnDesk
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.storage import state
from coatcheck.storage.database import Executor, Pool
from coatcheck.storage.journal import LEASE, TurnJournal
from coatcheck.telemetry.instruments import ModelInstruments
from schemas.activities import RecordInput
from schemas.config import Limits, Price, ProviderLimits, Tenant
from schemas.conversation import (
    TurnAnswer,
    TurnError,
    TurnFinished,
    TurnOverBudget,
    TurnParked,
    TurnPending,
    TurnReply,
    TurnRequest,
)
from tests.integration.storage_rows import run_row, task_row

MODEL = "openai:gpt-test"
RUN_KEY = "feature/search/0199c2f0-run"
PARAMETERS = ModelRequestParameters(
    output_tools=[ToolDefinition(name="submit_report", parameters_json_schema=ReviewReport.model_json_schema())],
    output_mode="tool",
    allow_text_output=False,
)
_NO_METER = NoOpMeter("")
_PLAIN_PARAMETERS = TypeAdapter(ModelRequestParameters).dump_python(PARAMETERS, mode="json", exclude_defaults=True)

Reply = TurnAnswer | TurnPending | TurnFinished | TurnParked | TurnOverBudget | TurnError


@dataclass
class Gateway:
    """One gateway process: its proxy and its journal."""

    proxy: LLMProxy
    journal: TurnJournal
    board: BreakerBoard
    capacity: Capacity
    windows: list[BreakerState]
    """Every state of a breaker that was open, in order: one per window, unless it was made longer."""

    async def ask(self, request: TurnRequest, *, agent: str = "sylvia") -> Reply:
        """Ask until the turn is settled, as an agent does."""
        while True:
            reply = decode(await self.proxy.handle(agent, request.model_dump_json().encode()))
            if not isinstance(reply, TurnPending):
                return reply

    async def answer(self, request: TurnRequest) -> TurnAnswer:
        """Ask for what must be an answer."""
        reply = await self.ask(request)
        assert isinstance(reply, TurnAnswer), reply
        return reply

    async def parked(self, request: TurnRequest) -> TurnParked:
        """Ask for what must be parked."""
        reply = await self.ask(request)
        assert isinstance(reply, TurnParked), reply
        return reply

    async def error(self, request: TurnRequest) -> TurnError:
        """Ask for what must be refused."""
        reply = await self.ask(request)
        assert isinstance(reply, TurnError), reply
        return reply


@asynccontextmanager
async def open_gateway(
    pool: Pool,
    nats: NatsClient,
    base_url: str | None,
    *,
    gateway_id: str = "gateway-a",
    lease: timedelta = LEASE,
    max_failures: int = 3,
    timeout_seconds: float = 20,
    models: Sequence[str] = (MODEL,),
    limits: Mapping[str, ProviderLimits] | None = None,
    tenants: Mapping[str, Tenant] | None = None,
    prices: Mapping[str, Price] | None = None,
    day_limits: Limits | None = None,
    also: Sequence[str] = (),
    shared: bool = False,
    clock: Callable[[], float] = time.time,
    meter: Meter = _NO_METER,
) -> AsyncIterator[Gateway]:
    """A gateway that shows that it lives until the block ends, and then finishes its calls.

    Its breakers are its own unless they are `shared` through the bucket, which outlives a test.
    """
    journal = TurnJournal(pool, gateway_id, lease=lease)
    await journal.beat()
    providers = Providers(
        models=models,
        openai_api_key=SecretStr("sk-test"),
        openai_base_url=base_url,
        anthropic_api_key=None,
        timeout_seconds=timeout_seconds,
        scripted=ScriptedModel(),
        prices=prices,
        also=also,
    )
    claims = ClaimDesk(deliverables=DeliverableService(nats), read_brief=partial(state.read_brief, pool))
    board = BreakerBoard(nats if shared else None, limits or {}, clock=clock)
    capacity = Capacity(limits or {}, tenants or {})
    chain = ModelChain(board, capacity)
    market = MarketBoard(nats, capacity.divide, {model.partition(":")[0] for model in models})
    budgets = BudgetDesk(
        providers.prices, limits=day_limits or Limits(), tenants=tenants or {}, call_seconds=timeout_seconds
    )
    turns = TurnDesk(
        journal,
        providers=providers,
        claims=claims,
        chain=chain,
        budgets=budgets,
        max_failures=max_failures,
        measures=ModelInstruments(meter, models),
    )
    proxy = LLMProxy(turns, journal=journal, chain=chain)
    windows: list[BreakerState] = []
    board.listen(lambda _model, _before, now: windows.append(now) if now.state == "open" else None)
    async with providers, board, market:
        beats = asyncio.create_task(proxy.beat())
        try:
            yield Gateway(proxy, journal, board, capacity, windows)
            await proxy.drain()
        finally:
            beats.cancel()
            await asyncio.gather(beats, return_exceptions=True)


def die(gateway: Gateway) -> None:
    """What a `kill -9` of the process leaves: nobody waits for the provider, nothing more is written."""
    for call in gateway.proxy._calls.values():
        call.cancel()


def turn_request(prompt: str = "Review it.", *, stage: str = "critique", turn: int = 1, **fields: Any) -> TurnRequest:
    """Turn `turn` of the stage's first round; `messages` may replace the prompt."""
    text = f'<request feature="search" stage="{stage}" round="1">\n{prompt}\n</request>'
    messages: list[ModelMessage] = [ModelRequest(parts=[UserPromptPart(text)])]
    known: dict[str, Any] = {
        "task_key": f"{RUN_KEY}/{stage}-1",
        "turn": turn,
        "messages": ModelMessagesTypeAdapter.dump_python(messages, mode="json", exclude_none=True),
        "parameters": _PLAIN_PARAMETERS,
    }
    return TurnRequest(**(known | fields))


async def record_task(
    owner: Executor,
    *,
    agent: str = "sylvia",
    stage: str = "critique",
    run_key: str = RUN_KEY,
    brief: str = "Review it.",
    revision: int = 1,
    status: str = "running",
    tenant: str = "default",
    **fields: Any,
) -> str:
    """Record the first round of a stage as the core worker does before it asks the agent; returns its task key."""
    key = f"{run_key}/{stage}-1"
    task = task_row(status, task_key=key, agent=agent, stage=stage, task_type=stage, **fields)
    await state.record(
        owner, RecordInput(run=run_row(revision, run_key=run_key, brief=brief, tenant=tenant), tasks=[task])
    )
    return key


async def row(pool: Pool, turn: int = 1) -> dict[str, Any]:
    """The journal's row of that turn; there is one task."""
    found = await pool.fetchrow("SELECT * FROM llm_turns WHERE turn = $1", turn)
    assert found is not None
    return dict(found)


def decode(data: bytes) -> Reply:
    """The reply in a payload."""
    return TurnReply.model_validate_json(data).reply
