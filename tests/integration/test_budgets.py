"""Budgets: escrowed with a run's first step, reserved before each call, settled after it, returned at the end."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from coatcheck.errors import InsufficientCreditsError
from coatcheck.gateway.budgets import DayLimits, tool_refused
from coatcheck.messaging.client import NatsClient
from coatcheck.storage import budgets, ledger, state, tool_calls
from coatcheck.storage.database import Pool
from coatcheck.storage.tool_calls import ToolJournal
from coatcheck.telemetry.instruments import BUDGET_REFUSED
from schemas.activities import RecordInput
from schemas.budget import Allowance, Budget
from schemas.config import Limits, Price, Tenant
from schemas.conversation import TurnAnswer, TurnError, TurnOverBudget
from schemas.mcp import CallTool, McpServer, ToolOutcome
from tests.integration.ledger_lab import funded
from tests.integration.storage_rows import run_row
from tests.providers.bill import calls
from tests.providers.gateway import MODEL, RUN_KEY, Gateway, open_gateway, record_task, row, turn_request
from tests.providers.openai_server import OpenAIServer
from tests.providers.script import Step
from tests.unit.measured import Measured

RUN = f"run/{RUN_KEY}"
TENANT = "tenant/default"
PRICES = {MODEL: Price(input_usd=Decimal(10), output_usd=Decimal(10), as_of=date(2026, 11, 27), source="test")}
FIT = 7
"""First turns that fit into $1.10, at 2,900 tokens of prompt: four of $0.19, which need $0.43 with what is kept free,
then three whose answers are bounded more tightly, of $0.07, which need $0.18.
"""


@pytest.fixture(autouse=True)
async def right(owner: Pool) -> AsyncIterator[None]:
    """Whatever a test did, the books are right after it."""
    yield
    assert (await ledger.check(owner)).is_right


async def step(owner: Pool, revision: int, budget: Budget | None = None, **changes: Any) -> None:
    """Record a step of the run."""
    row = run_row(revision, run_key=RUN_KEY, budget=budget, **changes)
    await state.record(owner, RecordInput(run=row))


async def limit(owner: Pool, revision: int = 10, **amounts: Any) -> None:
    """Give the run a budget."""
    await step(owner, revision, Budget(**amounts))


async def amounts(pool: Pool) -> tuple[int, int]:
    """What the run and its tenant have."""
    return (await ledger.balance(pool, RUN)).balance, (await ledger.balance(pool, TENANT)).balance


# --- the escrow ---------------------------------------------------------------------------------------------------


async def test_a_budget_is_escrowed_changed_and_returned(owner: Pool) -> None:
    """Each step as often as it likes, and a late one takes nothing back."""
    await funded(owner, TENANT, 3_000_000)
    for _ in range(2):
        await limit(owner, 10, usd="0.50")
    assert await amounts(owner) == (500_000, 2_500_000)
    await limit(owner, 30, usd="2")
    await limit(owner, 20, usd="1")
    assert await amounts(owner) == (2_000_000, 1_000_000)
    await limit(owner, 40, usd="0.75")
    assert await amounts(owner) == (750_000, 2_250_000)
    for _ in range(2):
        await step(owner, 50, status="completed", completed_at=datetime.now(UTC))
    assert await amounts(owner) == (0, 3_000_000)
    assert await budgets.sweep(owner) == budgets.Sweep(holds=0, budgets=0)


async def test_what_a_tenant_cannot_pay_is_not_begun(owner: Pool) -> None:
    """Nothing of the step is written; a tenant without an account is paid for by the treasury, which gets it back."""
    await limit(owner, 10, usd="0.50")
    await step(owner, 11, status="completed", completed_at=datetime.now(UTC))
    assert (await ledger.balance(owner, "treasury")).balance == 0
    await funded(owner, TENANT, 100)
    with pytest.raises(InsufficientCreditsError, match="tenant/default has less than"):
        await state.record(
            owner, RecordInput(run=run_row(1, run_key="feature/other/run", budget=Budget(usd=Decimal(1))))
        )
    assert await state.find_run(owner, "feature/other/run") is None


async def test_a_run_that_ends_behind_our_back_gives_back_what_it_has(owner: Pool) -> None:
    """Its row was repaired: the next look returns the rest, and again what a late call has left."""
    await limit(owner, usd="1")
    await owner.execute("UPDATE workflows SET status = 'cancelled' WHERE workflow_id = $1", RUN_KEY)
    assert (await budgets.sweep(owner)).budgets == 1
    assert (await ledger.balance(owner, RUN)).balance == 0
    assert (await budgets.sweep(owner)).budgets == 0


# --- a turn -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def gateway(pool: Pool, nats: NatsClient, provider: OpenAIServer) -> AsyncIterator[Gateway]:
    """A gateway that knows what the model costs."""
    async with open_gateway(pool, nats, provider.base_url, prices=PRICES) as gateway:
        yield gateway


async def test_a_turn_costs_what_it_cost(gateway: Gateway, owner: Pool, provider: OpenAIServer) -> None:
    """To the micro-credit, rounded up; the provider is told how long its answer may be; asking again pays nothing."""
    await limit(owner, usd="1")
    for _ in range(2):
        await gateway.answer(turn_request())
    turn = await row(owner)
    found = await budgets.run_budget(owner, RUN_KEY)
    assert found is not None
    assert (found.spent, found.held) == (turn["cost_usd"] * 1_000_000, 0)
    assert (await ledger.balance(owner, "provider/openai")).balance == found.spent > 0
    assert provider.requests[0]["max_completion_tokens"] == 16_384
    [entry] = (await ledger.history(owner, "provider/openai")).entries
    assert (entry.kind, entry.agent, entry.transfer_id) == ("model", "sylvia", f"turn/{RUN_KEY}/critique-1/1")


async def test_a_run_without_a_budget_moves_nothing(gateway: Gateway, owner: Pool, provider: OpenAIServer) -> None:
    """Neither rows nor a bound on the answer."""
    await gateway.answer(turn_request())
    assert await owner.fetchval("SELECT count(*) FROM transactions") == 0
    assert await owner.fetchval("SELECT count(*) FROM holds") == 0
    assert "max_completion_tokens" not in provider.requests[0]


async def test_what_does_not_fit_is_not_asked(gateway: Gateway, owner: Pool, provider: OpenAIServer) -> None:
    """No call, no claim, no hold; the last small one still fits, is bound to its size and marked in the journal."""
    await limit(owner, usd="0.10")
    reply = await gateway.ask(turn_request())
    assert isinstance(reply, TurnOverBudget)
    assert "the run has $0.10 left" in reply.reason
    assert await owner.fetchval("SELECT count(*) FROM llm_turns") == 0
    assert calls(provider.bill) == []
    answer = await gateway.answer(turn_request(wrap_up=reply.reason))
    assert answer.message["metadata"] == {"over_budget": reply.reason}
    assert provider.requests[0]["max_completion_tokens"] == 2_048
    replayed = await gateway.answer(turn_request())
    assert (replayed.replayed, replayed.message) == (True, answer.message)


async def test_settings_that_would_cost_more_do_not_pass(gateway: Gateway, owner: Pool, provider: OpenAIServer) -> None:
    """An agent that was taken over cannot ask for more than what is held."""
    await limit(owner, usd="1")
    wild = {"max_tokens": 10**9, "extra_body": {"max_completion_tokens": 10**9, "n": 50}, "service_tier": "priority"}
    await gateway.answer(turn_request(settings=wild))
    sent = provider.requests[0]
    assert sent["max_completion_tokens"] == 16_384
    assert not {"n", "service_tier"} & sent.keys()


async def test_a_failed_call_gives_back_what_it_held(gateway: Gateway, owner: Pool, provider: OpenAIServer) -> None:
    """At once, not when its time is over."""
    await limit(owner, usd="1")
    provider.script.add(Step(do="error", status=400))
    assert isinstance(await gateway.ask(turn_request()), TurnError)
    assert (await ledger.balance(owner, RUN)).held == 0
    assert isinstance(await gateway.ask(turn_request()), TurnAnswer)


async def test_a_lost_call_is_made_again_within_its_own_reservation(
    pool: Pool, nats: NatsClient, owner: Pool, provider: OpenAIServer
) -> None:
    """The gateway dies with the call in flight: its successor takes turn and hold over, and one answer is paid."""
    await limit(owner, usd="0.50")
    for number in range(2):
        async with open_gateway(pool, nats, provider.base_url, prices=PRICES) as gateway:
            if number == 0:
                provider.gate.clear()
                asked = asyncio.create_task(gateway.ask(turn_request()))
                await provider.arrived(1)
                held = (await ledger.balance(owner, RUN)).held
                for call in gateway.proxy._calls.values():
                    call.cancel()
                await asyncio.gather(asked, return_exceptions=True)
                gateway.proxy._calls.clear()
                provider.gate.set()
            else:
                await gateway.answer(turn_request())
    assert held > 0
    assert (await ledger.balance(owner, RUN)).held == 0
    assert await owner.fetchval("SELECT count(*) FROM transactions WHERE kind = 'model'") == 1


async def test_an_answer_that_comes_too_late_is_paid_all_the_same(
    gateway: Gateway, owner: Pool, provider: OpenAIServer
) -> None:
    """Its hold has expired and was given back meanwhile."""
    await limit(owner, usd="1")
    provider.gate.clear()
    asked = asyncio.create_task(gateway.ask(turn_request()))
    await provider.arrived(1)
    await owner.execute("UPDATE holds SET expires_at = now() - interval '1 s'")
    assert (await budgets.sweep(owner)).holds == 1
    provider.gate.set()
    await asked
    found = await budgets.run_budget(owner, RUN_KEY)
    assert found is not None
    assert found.spent == (await row(owner))["cost_usd"] * 1_000_000


async def test_what_cost_more_than_there_was_is_the_treasurys(
    gateway: Gateway, owner: Pool, provider: OpenAIServer
) -> None:
    """A provider that ignores the bound: the run pays what it has and no more, and the rest is in the books."""
    await limit(owner, usd="0.45")
    provider.script.add(Step(report_bytes=400_000))
    await gateway.answer(turn_request())
    cost = (await row(owner))["cost_usd"] * 1_000_000
    assert cost > 450_000
    assert (await ledger.balance(owner, RUN)).balance == 0
    assert (await ledger.balance(owner, "provider/openai")).balance == cost
    assert (await ledger.check(owner)).shortfall == cost - 450_000


async def test_many_stages_at_once_never_spend_more_than_there_is(
    gateway: Gateway, owner: Pool, provider: OpenAIServer
) -> None:
    """Of forty calls that want the same money so many are made as fit with their worst case, and none more."""
    for number in range(40):
        await record_task(owner, stage=f"s{number}", revision=2 + number)
    await limit(owner, 100, usd="1.10")
    provider.gate.clear()  # nothing is settled before everybody has asked
    asked = [asyncio.create_task(gateway.ask(turn_request(stage=f"s{number}"))) for number in range(40)]
    while sum(item.done() for item in asked) + len(provider.requests) < len(asked):
        await asyncio.sleep(0.01)
    provider.gate.set()
    replies = Counter([type(await item).__name__ for item in asked])
    assert replies["TurnAnswer"] + replies["TurnOverBudget"] == 40
    assert len(calls(provider.bill)) == replies["TurnAnswer"] == FIT


async def test_an_agent_has_a_limit_of_its_own_within_the_run(gateway: Gateway, owner: Pool) -> None:
    """It stops there while the others go on, and `set_budget` may raise it; what it used is told."""
    await record_task(owner, agent="roy", stage="backend", revision=2)
    await limit(owner, 10, usd="1", agents={"sylvia": {"calls": 2}, "roy": {"usd": "0.6"}})
    await gateway.answer(turn_request())
    reply = await gateway.ask(turn_request(turn=2))
    assert isinstance(reply, TurnOverBudget)
    assert reply.reason.startswith("agent sylvia in this run has 1 calls left")
    backend = turn_request(stage="backend")
    assert isinstance(await gateway.ask(backend, agent="roy"), TurnAnswer)
    found = await budgets.run_budget(owner, RUN_KEY)
    assert found is not None
    roy, sylvia = found.agents
    assert (sylvia.agent, sylvia.calls, sylvia.calls_used, sylvia.credits) == ("sylvia", 2, 1, None)
    assert (roy.credits, roy.credits_used + sylvia.credits_used) == (600_000, found.spent)
    assert found.left == 1_000_000 - (found.spent or 0)
    await limit(owner, 20, agents={"sylvia": {"calls": 9}})
    assert isinstance(await gateway.ask(turn_request(turn=2)), TurnAnswer)


async def test_a_priced_call_of_a_tool_is_reserved_and_paid(gateway: Gateway, owner: Pool, pool: Pool) -> None:
    """What fits beside the last turn's price, and not a micro-credit more; a call that fails costs what it says."""
    quotes = DayLimits(Limits(per_day=Allowance(usd=Decimal(5), calls=2)), {})
    paid = McpServer(url="http://tools", agents=("sylvia",), tools=("*",), cost_usd=Decimal("0.3"))
    quote = quotes.tool_quote("sylvia", paid)
    assert quotes.tool_quote("sylvia", paid.model_copy(update={"cost_usd": Decimal(0)})) is None
    first = ToolJournal(pool, "first", may_take_over=lambda: True)
    await limit(owner, usd="1", tokens=10**6)
    await gateway.answer(turn_request())
    spent = (await row(owner))["cost_usd"] * 1_000_000

    async def claim(call_id: str, journal: ToolJournal = first) -> object:
        call = CallTool(
            task_key=f"{RUN_KEY}/critique-1", tool_call_id=call_id, server="maps", tool="find", arguments={}
        )
        found = await journal.claim(call, agent="sylvia", repeatable=True, quote=quote)
        if isinstance(found, tool_calls.Granted) and call_id != "lost":
            outcome = ToolOutcome(status="result", text="ok", cost_usd=Decimal("0.3" if call_id == "a" else "0"))
            for _ in range(2):
                await journal.complete(call, outcome, is_priced=True)
        return found

    assert await claim("a") == tool_calls.Granted()
    assert await claim("b") == tool_calls.Granted()  # the server was not reached
    assert (await ledger.balance(owner, RUN)).balance == 1_000_000 - spent - 300_000
    assert await claim("lost") == tool_calls.Granted()
    assert (await ledger.balance(owner, RUN)).held == 300_000
    refused = await claim("c")
    assert isinstance(refused, tool_calls.OverBudget)
    assert "the run has $0." in tool_refused(refused.refusal)
    assert refused.refusal.needed > 300_000, "a last turn of the model has to fit as well"
    assert await owner.fetchval("SELECT count(*) FROM tool_calls") == 3
    assert await claim("lost", ToolJournal(pool, "second", may_take_over=lambda: True)) == tool_calls.Granted()
    assert (await ledger.balance(owner, RUN)).held == 300_000, "its successor has the same reservation"
    await owner.execute("UPDATE holds SET expires_at = now() - interval '1 s'")
    assert (await budgets.sweep(owner)).holds == 1
    found = await budgets.run_budget(owner, RUN_KEY)
    assert found is not None
    assert (found.spent, found.held, found.calls_used) == (spent + 300_000, 0, 1)
    [entry] = (await ledger.history(owner, "provider/mcp-maps")).entries
    assert (entry.kind, entry.amount, entry.memo) == ("purchase", 300_000, "maps: find")
    day = await owner.fetchrow("SELECT credits, calls FROM limit_usage WHERE limit_id LIKE 'day/%'")
    assert tuple(day) == (300_000, 0)


# --- without a price, and by the day ------------------------------------------------------------------------------


async def test_without_a_price_tokens_and_calls_limit(
    pool: Pool, nats: NatsClient, owner: Pool, provider: OpenAIServer
) -> None:
    """Money alone limits nothing that has no price, so nothing is asked; a number of calls or tokens does."""
    measured = Measured()
    async with open_gateway(pool, nats, provider.base_url, meter=measured.meter) as gateway:
        await limit(owner, 10, usd="1")
        reply = await gateway.ask(turn_request())
        assert isinstance(reply, TurnOverBudget)
        assert "no price is known for openai:gpt-test" in reply.reason
        await limit(owner, 20, usd="1", calls=2)
        assert isinstance(await gateway.ask(turn_request()), TurnAnswer)
        reply = await gateway.ask(turn_request(turn=2))
        assert isinstance(reply, TurnOverBudget)  # the second of two calls is the last one
        assert "the run has 1 calls left" in reply.reason
        assert isinstance(await gateway.ask(turn_request(turn=2, wrap_up="so")), TurnAnswer)
        assert isinstance(await gateway.ask(turn_request(turn=3, wrap_up="so")), TurnOverBudget)
        await limit(owner, 30, tokens=1_000)
        assert isinstance(await gateway.ask(turn_request(turn=3, wrap_up="so")), TurnOverBudget)
    assert measured.points(BUDGET_REFUSED) == {(): 4}
    found = await budgets.run_budget(owner, RUN_KEY)
    assert found is not None
    turns = await owner.fetch("SELECT tokens_in + tokens_out AS tokens FROM llm_turns")
    assert (found.calls_used, found.tokens_used) == (2, sum(turn["tokens"] for turn in turns))


@pytest.mark.parametrize(
    ("limits", "tenants", "whose"),
    [
        (Limits(per_day=Budget(usd=Decimal("0.5"))), {}, "everybody today"),
        (Limits(agents={"sylvia": Budget(calls=2)}), {}, "agent sylvia today"),
        (Limits(), {"default": Tenant(per_day=Budget(tokens=60_000))}, "tenant default today"),
        (Limits(agents={"roy": Budget(calls=1)}), {"other": Tenant(per_day=Budget(calls=1))}, None),
    ],
)
async def test_days_are_limited_across_runs(  # noqa: PLR0917  the fixtures
    pool: Pool, nats: NatsClient, owner: Pool, provider: OpenAIServer, limits: Limits, tenants: Any, whose: str | None
) -> None:
    """For everybody, an agent or a tenant; a run needs no budget of its own for that."""
    options = {"prices": PRICES, "day_limits": limits, "tenants": tenants}
    provider.script.add(*[Step(report_bytes=60_000) for _ in range(4)])
    async with open_gateway(pool, nats, provider.base_url, **options) as gateway:
        replies = []
        for number in range(4):
            await record_task(owner, stage=f"s{number}", run_key=f"feature/search/run-{number}")
            key = f"feature/search/run-{number}/s{number}-1"
            replies.append(await gateway.ask(turn_request(stage=f"s{number}", task_key=key)))
    refused = [reply for reply in replies if isinstance(reply, TurnOverBudget)]
    assert isinstance(replies[0], TurnAnswer)
    if whose is None:
        assert refused == []
    else:
        assert refused
        assert all(reply.reason.startswith(whose) for reply in refused)
