"""The provider chain on real servers: fallback, one breaker for all gateways, parking, and limits shared by tenants."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelRequest, ToolReturnPart

from coatcheck.gateway import breaker_board, chain, turns
from coatcheck.gateway.breaker import BreakerState, Cause
from coatcheck.gateway.breaker_board import BreakerBoard
from coatcheck.localstack import LocalStack
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.keyvalue import kv_get
from coatcheck.messaging.streams import ensure_streams
from coatcheck.storage.database import Pool
from schemas import errors
from schemas.config import ProviderLimits
from schemas.conversation import TurnParked, TurnPending
from schemas.streams import AGENT_STATE, AGENT_STATE_STREAM
from schemas.subjects import encode_token
from tests.integration.nats_clients import client_as
from tests.providers.bill import calls
from tests.providers.gateway import RUN_KEY, Gateway, decode, die, open_gateway, record_task, row, turn_request
from tests.providers.openai_server import OpenAIServer
from tests.providers.script import (
    Step,
    context_too_long,
    quota_exhausted,
    rate_limited,
    unknown_model,
    wrong_key,
)
from tests.standstill import stopped

pytestmark = pytest.mark.usefixtures("short_pauses")


@pytest.fixture
async def other_nats(nats_server: NatsStatus, nats: NatsClient) -> AsyncIterator[NatsClient]:
    """Another gateway's client."""
    assert nats
    async with client_as(nats_server, "gateway") as client:
        yield client


@pytest.fixture
def first() -> str:
    """The first model of a chain, of the test's own, since the bucket outlives it."""
    return f"openai:first-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def second() -> str:
    """The second one."""
    return f"openai:second-{uuid.uuid4().hex[:8]}"


@pytest.fixture
async def gateway(
    pool: Pool, nats: NatsClient, provider: OpenAIServer, first: str, second: str
) -> AsyncIterator[Gateway]:
    """One gateway with a chain of two models at the same address; five failures in a row open a breaker."""
    async with open_gateway(pool, nats, provider.base_url, models=(first, second)) as gateway:
        yield gateway


def name(model: str) -> str:
    """What the provider is asked for."""
    return model.partition(":")[2]


async def asked(provider: OpenAIServer) -> list[str]:
    """Which models were asked, in order."""
    return [line.model for line in calls(provider.bill)]


async def stored(nats: NatsClient, model: str) -> BreakerState | None:
    """What every gateway can read of that model."""
    found = await kv_get(nats, AGENT_STATE, f"model.{encode_token(model)}")
    return None if found is None else BreakerState.model_validate_json(found[0])


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another gateway has to hear of: a second at most."""
    async with asyncio.timeout(1):
        while not condition():
            await asyncio.sleep(0.005)


async def test_the_first_model_is_down_for_good(
    gateway: Gateway, provider: OpenAIServer, pool: Pool, first: str, second: str
) -> None:
    """The second one answers in the same request; answer, row and messages say so. The first is left alone then."""
    provider.script.add(Step(do="error", model=name(first), times=None))
    answer = await gateway.answer(turn_request())
    assert answer.model == second
    journalled = await row(pool)
    assert (journalled["model"], journalled["calls"], journalled["failures"]) == (second, 3, 2)
    written = await pool.fetch("SELECT DISTINCT metadata ->> 'model' AS model FROM agent_playground_messages")
    assert [line["model"] for line in written] == [second]
    for turn in (2, 3):
        assert (await gateway.answer(turn_request(turn=turn))).model == second
    assert await asked(provider) == [name(first)] * 2 + [name(second)] + (
        [name(first)] * 2 + [name(second)] + [name(first), name(second)]
    )
    assert (await gateway.answer(turn_request(turn=4))).model == second
    assert (await asked(provider))[-1:] == [name(second)]
    assert [state.opens for state in gateway.windows] == [1]


async def test_both_models_are_down(gateway: Gateway, provider: OpenAIServer, pool: Pool) -> None:
    """The request may be tried again as long as there are failures left for each; then the turn has failed."""
    provider.script.add(Step(do="error", times=None))
    error = await gateway.error(turn_request())
    assert (error.code, error.retryable) == (errors.PROVIDER_UNAVAILABLE, True)
    assert (await row(pool))["failures"] == 3
    while error.retryable:
        error = await gateway.error(turn_request())
    assert error.code == errors.PROVIDER_EXHAUSTED
    assert (await row(pool))["failures"] == 6


@pytest.mark.parametrize(
    "step", [wrong_key, unknown_model, quota_exhausted, context_too_long], ids=["401", "404", "quota", "too long"]
)
async def test_what_the_first_model_refuses_the_second_may_do(
    gateway: Gateway, provider: OpenAIServer, pool: Pool, first: str, second: str, *, step: Callable[..., Step]
) -> None:
    """In the same request, and nothing is counted. Only a prompt that is too long leaves the first one in its place."""
    provider.script.add(step(model=name(first), times=None))
    assert (await gateway.answer(turn_request())).model == second
    assert (await row(pool))["failures"] == 0
    await gateway.answer(turn_request(turn=2))
    again = [name(first)] if step is context_too_long else []
    assert await asked(provider) == [name(first), name(second), *again, name(second)]


async def test_refused_by_all(gateway: Gateway, provider: OpenAIServer) -> None:
    """Final, in the words of each, and again so for the next turn: nobody waits for a key."""
    provider.script.add(wrong_key(times=None))
    for _ in range(2):
        error = await gateway.error(turn_request())
        assert (error.code, error.retryable) == (errors.PROVIDER_REJECTED, False)
    assert error.message.count("answered 401") == 2


async def test_a_wrong_request_is_not_shopped_around(gateway: Gateway, provider: OpenAIServer, first: str) -> None:
    """What one refuses on its merits is not tried on others."""
    provider.script.add(
        Step(do="error", status=400, code="invalid_value", type="invalid_request_error", message="Bad tool schema.")
    )
    error = await gateway.error(turn_request())
    assert (error.code, error.retryable) == (errors.PROVIDER_REJECTED, False)
    assert await asked(provider) == [name(first)]


async def test_a_gateway_without_the_key_asks_the_next_model(
    pool: Pool, nats: NatsClient, provider: OpenAIServer, second: str
) -> None:
    """A chain may name providers that this gateway cannot use; the breaker is not touched by that."""
    models = ("anthropic:claude-test", second)
    async with open_gateway(pool, nats, provider.base_url, models=models) as gateway:
        assert (await gateway.answer(turn_request())).model == second
        assert gateway.windows == []


async def test_the_models_of_a_request_go_before_the_chain(
    pool: Pool, nats: NatsClient, provider: OpenAIServer, second: str
) -> None:
    """A role names its own."""
    async with open_gateway(pool, nats, provider.base_url, also=["openai:own", second]) as gateway:
        assert (await gateway.answer(turn_request(models=["openai:own", second]))).model == "openai:own"
    assert await asked(provider) == ["own"]


async def test_the_model_changes_in_mid_conversation(
    gateway: Gateway, provider: OpenAIServer, first: str, second: str
) -> None:
    """The second model is given what the first one said and called, and the result of the call."""
    provider.script.add(Step(do="fetch", model=name(first), arguments={"stage": "research"}))
    answer = await gateway.answer(turn_request())
    [message] = ModelMessagesTypeAdapter.validate_python([answer.message])
    [call] = message.parts
    result = ModelRequest(parts=[ToolReturnPart("fetch_deliverable", "The report.", call.tool_call_id)])  # type: ignore[union-attr]
    messages = ModelMessagesTypeAdapter.dump_python([result], mode="json", exclude_none=True)
    provider.script.add(rate_limited(model=name(first), times=None, headers={"retry-after": "60"}))
    assert (await gateway.answer(turn_request(turn=2, messages=messages))).model == second
    *_, said, told = provider.requests[-1]["messages"]
    assert said["tool_calls"][0]["id"] == told["tool_call_id"]
    assert told["content"] == "The report."


async def test_two_gateways_share_one_breaker(
    pool: Pool, owner: Pool, nats: NatsClient, other_nats: NatsClient, *, provider: OpenAIServer, first: str
) -> None:
    """20 calls meet the same 429 in each of two gateways: one window, known to both, and to a third that comes late."""
    requests = [turn_request(task_key=await record_task(owner, run_key=f"run/{number}")) for number in range(40)]
    provider.script.add(rate_limited(times=None, headers={"retry-after": "30"}))
    async with (
        open_gateway(pool, nats, provider.base_url, models=[first], shared=True) as one,
        open_gateway(pool, other_nats, provider.base_url, models=[first], shared=True, gateway_id="b") as two,
    ):
        provider.gate.clear()
        asking = [
            asyncio.create_task(gateway.parked(request))
            for gateway, batch in ((one, requests[:20]), (two, requests[20:]))
            for request in batch
        ]
        for parked in await asyncio.gather(*asking):
            assert 25 <= parked.retry_after_seconds <= 38
        state = await stored(nats, first)
        assert state is not None
        assert (state.state, state.opens) == ("open", 1)
        await until(lambda: one.board.state(first) == two.board.state(first) == state)
        made = len(calls(provider.bill))
        async with open_gateway(pool, nats, provider.base_url, models=[first], shared=True, gateway_id="c") as late:
            assert "Rate limit reached" in (await late.parked(requests[0])).reason
        assert len(calls(provider.bill)) == made


async def test_retry_after_holds_for_all_gateways_and_one_probes(
    pool: Pool, owner: Pool, nats: NatsClient, other_nats: NatsClient, *, provider: OpenAIServer, first: str
) -> None:
    """What one was told the other obeys; then a single call tries, and its answer opens the way for both."""
    requests = [turn_request(task_key=await record_task(owner, run_key=f"run/{number}")) for number in range(10)]
    provider.script.add(rate_limited(headers={"retry-after-ms": "700"}))
    async with (
        open_gateway(pool, nats, provider.base_url, models=[first], shared=True) as one,
        open_gateway(pool, other_nats, provider.base_url, models=[first], shared=True, gateway_id="b") as two,
    ):
        await two.board.load(first)
        waiting = asyncio.create_task(one.answer(requests[0]))
        await until(lambda: not two.board.state(first).closed())
        provider.gate.clear()
        waits = [two.answer(request) for request in requests[1:5]] + [one.answer(request) for request in requests[5:]]
        asking = [asyncio.create_task(wait) for wait in waits]
        await provider.arrived(2)
        await until(lambda: "half_open" == one.board.state(first).state == two.board.state(first).state)
        assert len(calls(provider.bill)) == 2
        provider.gate.set()
        await asyncio.gather(waiting, *asking)
        assert len(calls(provider.bill)) == 11
        await until(lambda: one.board.state(first).closed() and two.board.state(first).closed())
        state = await stored(nats, first)
        assert state is not None
        assert (state.state, state.opens, state.streak) == ("closed", 1, 0)


async def test_a_dead_gateways_probe_is_taken_over(nats: NatsClient, other_nats: NatsClient, first: str) -> None:
    """After 30 s, by whoever is first; the dead one's window still counts once."""
    now = 1_000_000.0
    async with (
        BreakerBoard(nats, {}, clock=lambda: now) as one,
        BreakerBoard(other_nats, {}, clock=lambda: now) as two,
    ):
        for board in (one, two):
            await board.load(first)
        await one.trip(first, began=now, cause=Cause.RATE_LIMIT, reason="429")
        now += 5
        await until(lambda: not two.state(first).closed())
        taken = await asyncio.gather(one.take_probe(first), two.take_probe(first))
        assert sorted(taken, key=str) == [now, None]
        now += 30
        again = await asyncio.gather(one.take_probe(first), two.take_probe(first))
        assert sorted(again, key=str) == [now, None]
    state = await stored(nats, first)
    assert state is not None
    assert (state.state, state.opens) == ("half_open", 1)


async def test_nats_is_killed(
    new_stack: Callable[..., LocalStack], pool: Pool, provider: OpenAIServer, first: str
) -> None:
    """A gateway goes on alone, at once: what it learns meanwhile holds for its own turns."""
    stack = new_stack(servers=("nats",), workers=())
    status = stack.status().nats
    assert status is not None
    async with client_as(status, "core") as core, client_as(status, "gateway") as client:
        await ensure_streams(core, [AGENT_STATE_STREAM])
        async with open_gateway(pool, client, provider.base_url, models=[first], shared=True) as gateway:
            await gateway.board.load(first)
            killed = stack.kill("nats")
            provider.script.add(rate_limited(headers={"retry-after": "60"}))
            async with asyncio.timeout(5):
                for _ in range(2):
                    assert await gateway.parked(turn_request())
            await asyncio.to_thread(stack.wait_running, "nats", other_than=killed)
    assert len(calls(provider.bill)) == 1


async def test_what_is_paid_is_journalled_before_the_breakers_are_told(
    new_stack: Callable[..., LocalStack],
    pool: Pool,
    nats: NatsClient,
    provider: OpenAIServer,
    first: str,
    *,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A probe's answer while NATS stands still is safe at once: a gateway that dies meanwhile has lost nothing."""
    monkeypatch.setattr(breaker_board, "STORE_SECONDS", 60.0)
    stack = new_stack(servers=("nats",), workers=())
    status = stack.status().nats
    assert status is not None
    async with client_as(status, "core") as core, client_as(status, "gateway") as client:
        await ensure_streams(core, [AGENT_STATE_STREAM])
        async with open_gateway(pool, client, provider.base_url, models=[first], shared=True) as gateway:
            await gateway.board.load(first)
            await gateway.board.trip(
                first, began=gateway.board.now(), cause=Cause.RATE_LIMIT, reason="429", retry_after=0
            )
            provider.gate.clear()
            asking = asyncio.create_task(gateway.ask(turn_request()))
            await provider.arrived(1)
            assert gateway.board.state(first).state == "half_open"
            async with stopped(stack.pid("nats")):
                provider.gate.set()
                async with asyncio.timeout(2):
                    while (await row(pool))["status"] != "done":
                        await asyncio.sleep(0.01)
                assert not asking.done()
                die(gateway)
                await asyncio.gather(asking, return_exceptions=True)
    async with open_gateway(pool, nats, provider.base_url, models=[first], gateway_id="b") as other:
        assert (await other.answer(turn_request())).replayed
    assert len(calls(provider.bill)) == 1


async def test_what_could_not_be_stored_is_stored_later(
    new_stack: Callable[..., LocalStack], first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket that comes late, or comes back, is told of a window that is still open."""
    monkeypatch.setattr(breaker_board, "AWAY_SECONDS", 0.05)
    monkeypatch.setattr(breaker_board, "REREAD_SECONDS", 0.1)
    stack = new_stack(servers=("nats",), workers=())
    status = stack.status().nats
    assert status is not None
    async with (
        client_as(status, "core") as core,
        client_as(status, "gateway") as client,
        BreakerBoard(client, {}) as board,
    ):
        await board.load(first)
        await board.trip(first, began=board.now(), cause=Cause.RATE_LIMIT, reason="429", retry_after=60)
        await ensure_streams(core, [AGENT_STATE_STREAM])
        async with asyncio.timeout(5):
            while (state := await stored(core, first)) is None:
                await asyncio.sleep(0.02)
        assert state == board.state(first)


async def test_a_value_that_is_not_readable(nats: NatsClient, core: NatsClient, first: str) -> None:
    """Of another version: taken as closed, and overwritten by the next change."""
    await core.publish(
        f"$KV.{AGENT_STATE}.model.{encode_token(first)}", b"no JSON", message_id=first, stream=f"KV_{AGENT_STATE}"
    )
    async with BreakerBoard(nats, {}) as board:
        await board.load(first)
        assert board.state(first).closed()
        await board.trip(first, began=board.now(), cause=Cause.RATE_LIMIT, reason="429")
    state = await stored(nats, first)
    assert state is not None
    assert state.state == "open"


async def test_a_journalled_turn_is_answered_while_every_model_is_closed(
    gateway: Gateway, provider: OpenAIServer
) -> None:
    """Replay costs nothing, so it waits for nothing; a foreign task is refused and not parked."""
    answer = await gateway.answer(turn_request())
    provider.script.add(rate_limited(times=None, headers={"retry-after": "60"}))
    assert await gateway.parked(turn_request(turn=2))
    assert (await gateway.answer(turn_request())).message == answer.message
    reply = await gateway.ask(turn_request(turn=2), agent="roy")
    assert reply.kind == "error"
    assert reply.code == errors.NOT_AUTHORIZED
    assert len(calls(provider.bill)) == 3


async def test_a_gateway_that_stops_sends_waiting_turns_elsewhere(
    pool: Pool, owner: Pool, nats: NatsClient, provider: OpenAIServer, first: str
) -> None:
    """Those in the queue are told to ask again, at once; the call under way is finished."""
    other = turn_request(task_key=await record_task(owner, run_key="run/2"))
    limits = {"openai": ProviderLimits(max_concurrent=1)}
    async with open_gateway(pool, nats, provider.base_url, models=[first], limits=limits) as gateway:
        provider.gate.clear()
        paid = asyncio.create_task(gateway.answer(turn_request()))
        await provider.arrived(1)
        queued = asyncio.create_task(gateway.proxy.handle("sylvia", other.model_dump_json().encode()))
        async with asyncio.timeout(2):
            while len(gateway.proxy._calls) < 2:
                await asyncio.sleep(0.005)
        gateway.proxy.stop_waiting()
        async with asyncio.timeout(2):
            assert decode(await queued) == TurnPending()
        provider.gate.set()
        assert await paid
    assert len(calls(provider.bill)) == 1


async def test_who_waits_too_long_for_a_place_is_parked(
    pool: Pool,
    owner: Pool,
    nats: NatsClient,
    provider: OpenAIServer,
    first: str,
    *,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is claimed for it, and nothing failed."""
    monkeypatch.setattr(turns, "QUEUE_SECONDS", 0.1)
    other = turn_request(task_key=await record_task(owner, run_key="run/2"))
    limits = {"openai": ProviderLimits(max_concurrent=1)}
    async with open_gateway(pool, nats, provider.base_url, models=[first], limits=limits) as gateway:
        provider.gate.clear()
        paid = asyncio.create_task(gateway.answer(turn_request()))
        await provider.arrived(1)
        parked = await gateway.parked(other)
        assert parked.retry_after_seconds >= chain.QUEUE_SECONDS / 2
        assert await pool.fetchval("SELECT count(*) FROM llm_turns") == 1
        provider.gate.set()
        await paid
        assert await gateway.answer(other)


async def test_a_provider_with_five_places_and_two_tenants(
    pool: Pool, owner: Pool, nats: NatsClient, provider: OpenAIServer, first: str
) -> None:
    """One brings four times as many calls; while both wait each gets half. Whose a turn is says the run's row alone."""
    requests = []
    for number in range(50):
        tenant = "small" if number % 5 == 0 else "big"
        key = await record_task(owner, run_key=f"run/{number}", tenant=tenant)
        requests.append((tenant, turn_request(task_key=key, prompt=f"tenant-{tenant}")))
    limits = {"openai": ProviderLimits(max_concurrent=5)}
    async with open_gateway(pool, nats, provider.base_url, models=[first], limits=limits) as gateway:
        provider.gate.clear()
        asking = [asyncio.create_task(gateway.answer(request)) for _, request in requests]
        await provider.arrived(5)
        async with asyncio.timeout(10):
            while len(gateway.proxy._turns._chain._capacity._provider(first).queue) < 45:
                await asyncio.sleep(0.01)
        assert len(provider.requests) == 5
        provider.gate.set()
        await asyncio.gather(*asking)
    order = ["small" if "tenant-small" in str(body["messages"]) else "big" for body in provider.requests]
    waiting = Counter(order)["small"] - Counter(order[:5])["small"]  # those of the small tenant that had to wait
    share = Counter(order[5 : 5 + 2 * waiting])
    assert sum(share.values()) ** 2 / (2 * sum(count**2 for count in share.values())) >= 0.9


async def test_a_provider_that_takes_five_at_a_time_is_learnt(
    pool: Pool, owner: Pool, nats: NatsClient, provider: OpenAIServer, first: str
) -> None:
    """Without any limit set: 429s halve what is asked at once, until all goes through; nobody fails."""
    provider.script.add(rate_limited(while_answering=5, times=None, headers={"retry-after-ms": "100"}))
    requests = [turn_request(task_key=await record_task(owner, run_key=f"run/{number}")) for number in range(40)]
    provider._latency_seconds = 0.05
    async with open_gateway(pool, nats, provider.base_url, models=[first]) as gateway:
        await asyncio.gather(*(answered(gateway, request) for request in requests))
        limit = gateway.proxy._turns._chain._capacity._model(first).adaptive.value
    assert limit is not None
    assert limit <= 5
    assert len(gateway.windows) <= 6
    assert await pool.fetchval("SELECT sum(failures) FROM llm_turns") == 0


async def answered(gateway: Gateway, request: Any) -> None:
    """Ask as a run does: a parked turn comes back when it was told to."""
    while isinstance(reply := await gateway.ask(request), TurnParked):
        await asyncio.sleep(reply.retry_after_seconds)
    assert reply.kind == "answer", reply


async def test_gateways_count_each_other(pool: Pool, nats: NatsClient, provider: OpenAIServer) -> None:
    """By their signs of life; one that is silent for a lease counts no more."""
    async with open_gateway(pool, nats, provider.base_url) as one:
        assert await one.journal.beat() == 1
        async with open_gateway(pool, nats, provider.base_url, gateway_id="b"):
            assert await one.journal.beat() == 2
        await pool.execute("UPDATE llm_gateways SET seen_at = now() - interval '7 s' WHERE gateway_id = 'b'")
        assert await one.journal.beat() == 1


async def test_nothing_is_asked_of_the_bucket_or_the_row_as_long_as_all_is_well(
    gateway: Gateway, pool: Pool, first: str
) -> None:
    """The first turn looks for the breaker; the next ones claim and complete as before: two statements and no more."""
    await gateway.answer(turn_request())
    seen: list[str] = []
    gateway.journal.peek = lambda *_, **__: seen.append("peek")  # type: ignore[method-assign, assignment]
    gateway.board.load = lambda *_: seen.append("load")  # type: ignore[method-assign, assignment]
    assert (await gateway.answer(turn_request(turn=2))).model == first
    assert seen == []
    assert RUN_KEY in (await row(pool, turn=2))["task_key"]
