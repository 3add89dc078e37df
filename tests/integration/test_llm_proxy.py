"""The LLM proxy on a real PostgreSQL against a provider that misbehaves: each turn paid once, each failure typed.

The judge of what was paid is the provider's own bill (`tests/providers/bill.py`).
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessagesTypeAdapter

from coatcheck.gateway import breaker, llm_proxy
from coatcheck.localstack import LocalStack
from coatcheck.messaging.client import NatsClient
from coatcheck.storage.database import Pool, open_pool
from coatcheck.storage.migrate import migrate
from coatcheck.telemetry.instruments import CALLS_PAID_AGAIN
from schemas import errors
from schemas.conversation import Claim, TurnError, TurnFinished, TurnPending
from tests.integration.storage_rows import NOTICE
from tests.providers.bill import calls, paid, paid_twice, read_bill
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
from tests.unit.measured import Measured


@pytest.fixture
async def gateway(pool: Pool, nats: NatsClient, provider: OpenAIServer) -> AsyncIterator[Gateway]:
    """One gateway, which gives up after three failures."""
    async with open_gateway(pool, nats, provider.base_url) as gateway:
        yield gateway


async def rested(gateway: Gateway) -> None:
    """Wait until a refused turn may be tried again."""
    async with asyncio.timeout(10):
        while gateway.proxy._calls:
            await asyncio.sleep(0.01)


async def test_an_answer_is_journalled_and_replayed(gateway: Gateway, provider: OpenAIServer, pool: Pool) -> None:
    """The second request gets the same message from the journal; the provider is not asked again."""
    first = await gateway.answer(turn_request())
    again = await gateway.answer(turn_request())
    assert not first.replayed
    assert again == first.model_copy(update={"replayed": True})
    [call] = calls(provider.bill)
    assert (call.feature, call.stage, call.round, call.turn, call.sdk_retry) == ("search", "critique", 1, 1, 0)
    journalled = await row(pool)
    assert (journalled["status"], journalled["calls"], journalled["failures"]) == ("done", 1, 0)
    usage = first.message["usage"]
    assert (journalled["tokens_in"], journalled["tokens_out"]) == (usage["input_tokens"], usage["output_tokens"])
    assert usage["output_tokens"] > 500


async def test_the_price_at_a_custom_address_is_unknown(gateway: Gateway, pool: Pool) -> None:
    """Whoever serves there has a price list of their own: unknown, which is not free."""
    assert (await gateway.answer(turn_request())).cost_usd is None
    assert (await row(pool))["cost_usd"] is None


async def test_an_answer_without_usage_is_an_answer(gateway: Gateway, provider: OpenAIServer, pool: Pool) -> None:
    """Some compatible servers count nothing."""
    provider.script.add(Step(usage=False))
    await gateway.answer(turn_request())
    assert (await row(pool))["tokens_out"] == 0


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (wrong_key(), "gpt-test answered 401: Incorrect API key provided"),
        (context_too_long(), "gpt-test answered 400: This model's maximum context length is 128000 tokens."),
        (unknown_model(), "gpt-test answered 404: The model `gpt-none` does not exist"),
        (quota_exhausted(headers={"retry-after": "1"}), "gpt-test answered 429: You exceeded your current quota"),
    ],
    ids=["401", "400", "404", "quota"],
)
async def test_final_refusals(gateway: Gateway, provider: OpenAIServer, pool: Pool, step: Step, words: str) -> None:
    """What no retry mends ends at once, in the provider's words, after one call."""
    provider.script.add(step)
    error = await gateway.error(turn_request())
    assert (error.code, error.retryable, error.retry_after_seconds) == (errors.PROVIDER_REJECTED, False, None)
    assert words in error.message
    assert len(calls(provider.bill)) == 1
    journalled = await row(pool)
    assert (journalled["status"], journalled["failures"]) == ("failed", 0)
    assert (journalled["error_code"], journalled["error"]) == (errors.PROVIDER_REJECTED, error.message)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"retry-after": "7"}, 7), ({"retry-after-ms": "2500"}, 2.5), ({"Retry-After": "date"}, 60), ({}, 5)],
    ids=["seconds", "milliseconds", "date", "none"],
)
async def test_rate_limits(
    gateway: Gateway, provider: OpenAIServer, pool: Pool, headers: dict[str, str], seconds: float
) -> None:
    """A 429 parks for as long as the provider says, or 5 s, plus a quarter at most; it is not a failure."""
    if "Retry-After" in headers:
        headers = {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)}
    provider.script.add(rate_limited(headers=headers))
    parked = await gateway.parked(turn_request())
    assert seconds - 1.5 <= parked.retry_after_seconds <= max(1.25 * seconds, seconds + 1)
    assert "Rate limit reached" in parked.reason
    journalled = await row(pool)
    assert (journalled["status"], journalled["failures"]) == ("failed", 0)
    assert journalled["error_code"] == errors.PROVIDER_RATE_LIMITED
    assert len(calls(provider.bill)) == 1


async def test_a_rate_limit_holds_whoever_asks(gateway: Gateway, provider: OpenAIServer, pool: Pool) -> None:
    """An attempt that knows nothing of the 429 is parked without a call, and without a claim that it has to undo."""
    provider.script.add(rate_limited(headers={"retry-after": "7"}))
    for _ in range(3):
        await gateway.parked(turn_request())
    assert len(calls(provider.bill)) == (await row(pool))["calls"] == 1


async def test_a_short_rate_limit_is_waited_for(gateway: Gateway, provider: OpenAIServer, pool: Pool) -> None:
    """More of them than failures are allowed, none worth parking, and then the answer."""
    provider.script.add(rate_limited(times=4, headers={"retry-after-ms": "50"}))
    assert await gateway.answer(turn_request())
    assert len(calls(provider.bill)) == (await row(pool))["calls"] == 5
    assert (await row(pool))["failures"] == 0


async def test_waits_grow_while_a_provider_says_no_time(
    gateway: Gateway, provider: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is twice the one before, until an answer comes."""
    monkeypatch.setattr(breaker, "RATE_LIMIT_SECONDS", 0.05)
    provider.script.add(rate_limited(times=4))
    assert await gateway.answer(turn_request())
    waits = [call.until - call.since for call in gateway.windows]
    assert waits == pytest.approx([0.05, 0.1, 0.2, 0.4], rel=0.01)


async def test_server_errors_are_retried_and_bounded(
    gateway: Gateway, provider: OpenAIServer, pool: Pool, short_pauses: None
) -> None:
    """Two may be tried again, the third ends the turn; the count is in the journal and outlives the process."""
    assert short_pauses is None
    provider.script.add(*(Step(do="error", status=status, times=None) for status in (500, 502, 503)))
    for failures in (1, 2):
        error = await gateway.error(turn_request())
        assert (error.code, error.retryable) == (errors.PROVIDER_UNAVAILABLE, True)
        assert (await row(pool))["failures"] == failures
        await rested(gateway)
    error = await gateway.error(turn_request())
    assert (error.code, error.retryable) == (errors.PROVIDER_EXHAUSTED, False)
    assert "3 calls failed" in error.message
    assert "The server had an error" in error.message
    assert len(calls(provider.bill)) == 3


async def test_a_server_error_and_then_an_answer(gateway: Gateway, provider: OpenAIServer, pool: Pool) -> None:
    """A 503 with Retry-After is waited for like a 429, it does not count, and what follows is journalled."""
    provider.script.add(Step(do="error", status=503, headers={"retry-after-ms": "50"}))
    assert await gateway.answer(turn_request())
    journalled = await row(pool)
    assert (journalled["calls"], journalled["failures"], journalled["error"]) == (2, 0, None)


@pytest.mark.parametrize(
    ("do", "words"),
    [
        ("hang", "no complete answer within 0.5 s"),
        ("drip", "no complete answer within 0.5 s"),
        ("cut", "Server disconnected"),
        ("cut_body", "peer closed connection"),
        ("malformed", "Failed to decode response as JSON"),
        ("empty_body", "Failed to decode response as JSON"),
        ("no_choices", "not readable"),
    ],
)
async def test_broken_answers(
    pool: Pool, nats: NatsClient, provider: OpenAIServer, *, short_pauses: None, do: Any, words: str
) -> None:
    """A time-out, a cut and a body that is not the protocol's: one call each, counted, and tried again."""
    assert short_pauses is None
    provider.script.add(Step(do=do))
    async with asyncio.timeout(10), open_gateway(pool, nats, provider.base_url, timeout_seconds=0.5) as gateway:
        error = await gateway.error(turn_request())
        assert (error.code, error.retryable) == (errors.PROVIDER_UNAVAILABLE, True)
        assert words in error.message
        assert (await row(pool))["failures"] == 1
        assert [call.sdk_retry for call in calls(provider.bill)] == [0]
        await rested(gateway)
        assert await gateway.answer(turn_request())


async def test_nobody_listens_at_the_address(pool: Pool, nats: NatsClient) -> None:
    """The message says more than "connection error"."""
    async with open_gateway(pool, nats, "http://127.0.0.1:1/v1") as gateway:
        error = await gateway.error(turn_request())
    assert (error.code, error.retryable) == (errors.PROVIDER_UNAVAILABLE, True)
    assert "All connection attempts failed" in error.message


@pytest.mark.parametrize("name", ["nonsense:model", "groq:llama", "anthropic:claude-sonnet-4-5"])
async def test_models_that_cannot_be_used(pool: Pool, nats: NatsClient, provider: OpenAIServer, name: str) -> None:
    """An unknown provider, one that is not installed, one without a key: final, and no call."""
    async with open_gateway(pool, nats, provider.base_url, also=[name]) as gateway:
        error = await gateway.error(turn_request(models=[name]))
    assert (error.code, error.retryable) == (errors.PROVIDER_REJECTED, False)
    assert calls(provider.bill) == []


async def test_a_model_that_no_role_has(gateway: Gateway, provider: OpenAIServer) -> None:
    """An agent that was taken over cannot choose a dearer one."""
    error = await gateway.error(turn_request(models=["openai:dearest"]))
    assert (error.code, error.retryable) == (errors.NOT_AUTHORIZED, False)
    assert calls(provider.bill) == []


async def test_a_key_in_a_providers_words_is_hidden(gateway: Gateway, provider: OpenAIServer) -> None:
    """Some repeat the key that they refuse; what they say is stored and shown."""
    provider.script.add(wrong_key(message="Incorrect API key provided: sk-test-1234567890abcdef."))
    error = await gateway.error(turn_request())
    assert error.code == errors.PROVIDER_REJECTED
    assert "Incorrect API key provided: ***" in error.message


async def test_requests_that_are_not_requests(gateway: Gateway, pool: Pool) -> None:
    """They are refused for good, and nothing is called."""
    for payload in (b"", b"{}", b"\xff"):
        reply = decode(await gateway.proxy.handle("sylvia", payload))
        assert isinstance(reply, TurnError)
        assert (reply.code, reply.retryable) == (errors.REQUEST_INVALID, False)
    broken = {"kind": "request", "parts": [{"part_kind": "no such part"}]}
    error = await gateway.error(turn_request(messages=[broken]))
    assert (error.code, error.retryable) == (errors.REQUEST_INVALID, False)
    assert (await row(pool))["status"] == "failed"


async def test_twenty_ask_at_once_and_one_call_is_made(gateway: Gateway, provider: OpenAIServer) -> None:
    """All of them get its answer."""
    provider.gate.clear()
    asking = [asyncio.create_task(gateway.answer(turn_request())) for _ in range(20)]
    await provider.arrived(1)
    provider.gate.set()
    answers = await asyncio.gather(*asking)
    assert all(answer == answers[0] for answer in answers)
    assert len(calls(provider.bill)) == 1


async def test_a_slow_call_is_pending_and_joined(
    gateway: Gateway, provider: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The asker is told to ask again, and joins the same call."""
    monkeypatch.setattr(llm_proxy, "POLL_SECONDS", 0.02)
    provider.gate.clear()
    payload = turn_request().model_dump_json().encode()
    for _ in range(3):
        assert decode(await gateway.proxy.handle("sylvia", payload)) == TurnPending()
    provider.gate.set()
    assert await gateway.answer(turn_request())
    assert len(calls(provider.bill)) == 1


async def test_the_asker_goes_away(gateway: Gateway, provider: OpenAIServer, pool: Pool) -> None:
    """Its call is finished and journalled all the same, and its successor is given the answer."""
    provider.gate.clear()
    asker = asyncio.create_task(gateway.answer(turn_request()))
    await provider.arrived(1)
    asker.cancel()
    await asyncio.gather(asker, return_exceptions=True)
    provider.gate.set()
    await gateway.proxy.drain()
    assert (await row(pool))["status"] == "done"
    assert (await gateway.answer(turn_request())).replayed
    assert len(calls(provider.bill)) == 1


async def test_a_second_gateway_joins_a_call_in_flight(
    gateway: Gateway, provider: OpenAIServer, pool: Pool, nats: NatsClient, short_pauses: None
) -> None:
    """While the first one lives, the second waits for its answer, also beyond the lease."""
    assert short_pauses is None
    provider.gate.clear()
    lease = timedelta(seconds=0.4)
    async with open_gateway(pool, nats, provider.base_url, gateway_id="gateway-b", lease=lease) as other:
        first = asyncio.create_task(gateway.answer(turn_request()))
        await provider.arrived(1)
        second = asyncio.create_task(other.answer(turn_request()))
        _, waiting = await asyncio.wait({second}, timeout=3 * lease.total_seconds())
        assert waiting
        provider.gate.set()
        assert (await second).message == (await first).message
        assert (await second).replayed
    assert len(calls(provider.bill)) == 1


async def test_a_second_gateway_takes_over_from_a_dead_one(
    provider: OpenAIServer, pool: Pool, nats: NatsClient, short_pauses: None
) -> None:
    """The first one died in the middle of a call: the turn goes on, one answer is paid, and the loss is measured."""
    assert short_pauses is None
    measured = Measured()
    lease = timedelta(seconds=0.4)
    provider.script.add(Step(do="hang"))
    async with open_gateway(pool, nats, provider.base_url, lease=lease) as first:
        asker = asyncio.create_task(first.ask(turn_request()))
        await provider.arrived(1)
        die(first)
        await asyncio.gather(asker, return_exceptions=True)
    async with open_gateway(
        pool, nats, provider.base_url, gateway_id="gateway-b", lease=lease, meter=measured.meter
    ) as second:
        assert not (await second.answer(turn_request())).replayed
    assert list(measured.points(CALLS_PAID_AGAIN).values()) == [1]
    assert (len(calls(provider.bill)), len(paid(provider.bill))) == (2, 1)
    assert ((await row(pool))["gateway_id"], (await row(pool))["calls"]) == ("gateway-b", 2)


async def test_postgres_is_killed_between_the_answer_and_the_journal(
    provider: OpenAIServer,
    nats: NatsClient,
    new_stack: Callable[..., LocalStack],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The paid answer waits for the database and is stored once it is back; the call is not made again."""
    stack = new_stack(servers=("postgres",), workers=())
    status = stack.status().postgres
    assert status is not None
    migrate(status.dsn)
    async with open_pool(status.dsn) as owner:
        await record_task(owner)
    async with (
        open_pool(status.gateway_dsn) as pool,
        open_gateway(pool, nats, provider.base_url) as gateway,
        asyncio.timeout(60),
    ):
        provider.gate.clear()
        asking = asyncio.create_task(gateway.answer(turn_request()))
        await provider.arrived(1)
        killed = stack.kill("postgres")
        with caplog.at_level(logging.WARNING):
            provider.gate.set()
            answer = await asking
        assert "a model turn waits for the database" in caplog.text
        await asyncio.to_thread(stack.wait_running, "postgres", other_than=killed)
        assert not answer.replayed
        assert (await gateway.answer(turn_request())).message == answer.message
        assert ((await row(pool))["status"], (await row(pool))["calls"]) == ("done", 1)
    assert len(calls(provider.bill)) == 1


async def test_an_answer_of_11_mb_is_refused_and_not_paid_again(
    gateway: Gateway, provider: OpenAIServer, pool: Pool
) -> None:
    """It fits into no message: final. It is journalled like any paid answer, so asking again costs nothing."""
    provider.script.add(Step(report_bytes=11_000_000, times=None))
    for _ in range(2):
        error = await gateway.error(turn_request())
        assert (error.code, error.retryable) == (errors.DELIVERABLE_TOO_LARGE, False)
        assert "at most 10,420,224 fit" in error.message
    assert len(calls(provider.bill)) == 1
    assert (await row(pool))["tokens_out"] > 2_000_000


async def test_an_answer_of_9_mb_goes_through(gateway: Gateway, provider: OpenAIServer) -> None:
    """And the reply is the same from the journal."""
    provider.script.add(Step(report_bytes=9_000_000))
    answer = await gateway.answer(turn_request())
    assert (await gateway.answer(turn_request())).message == answer.message
    [message] = ModelMessagesTypeAdapter.validate_python([answer.message])
    [part] = message.parts
    assert len(json.loads(part.args)["report"]) == 9_000_000  # type: ignore[union-attr, arg-type]


async def test_an_answer_that_is_no_unicode_is_not_readable(
    gateway: Gateway, provider: OpenAIServer, pool: Pool
) -> None:
    """A lone surrogate fits into no reply: a broken answer like any other, and not an endless loop."""
    provider.script.add(Step(do="text", arguments={"text": "half a character: \ud800"}))
    error = await gateway.error(turn_request())
    assert (error.code, error.retryable) == (errors.PROVIDER_UNAVAILABLE, True)
    assert "not readable" in error.message
    assert (await row(pool))["failures"] == 1


async def test_listed_markers_are_replaced_and_others_are_text(
    gateway: Gateway, provider: OpenAIServer, pool: Pool, owner: Pool
) -> None:
    """The provider sees the brief; the journal keeps the marker; a marker inside the brief claims nothing."""
    brief = "Find customers. [[deliverable:research:agog_features_research:1]] [[brief]]"
    await owner.execute("UPDATE workflows SET description = $2 WHERE workflow_id = $1", RUN_KEY, brief)
    await gateway.answer(turn_request("Read [[brief]] and [[other]].", claims=[Claim(marker="[[brief]]", limit=1000)]))
    [request] = provider.requests
    assert f"Read {brief} and [[other]]." in request["messages"][-1]["content"]
    stored = await pool.fetchval("SELECT content FROM agent_playground_messages WHERE role = 'user'")
    assert "Read [[brief]] and [[other]]." in stored
    assert "Find customers" not in stored


async def test_another_agents_task_is_refused(
    gateway: Gateway, provider: OpenAIServer, owner: Pool, pool: Pool
) -> None:
    """New, in flight in this very process, done, finished: Roy gets neither answer nor notice, and pays for nothing."""
    request = turn_request()

    async def attack() -> None:
        error = await gateway.ask(request, agent="roy")
        assert isinstance(error, TurnError), error
        assert (error.code, error.retryable) == (errors.NOT_AUTHORIZED, False)
        assert error.message == f"the agent 'roy' has no task '{request.task_key}'"

    await attack()
    assert calls(provider.bill) == []
    provider.gate.clear()
    asking = asyncio.create_task(gateway.answer(request))
    await provider.arrived(1)
    await attack()
    provider.gate.set()
    answer = await asking
    assert not answer.replayed
    await attack()
    notice = NOTICE | {"completion_time": "2026-03-01T12:01:30Z"}
    await record_task(owner, status="completed", revision=2, output_data=notice)
    await attack()
    assert isinstance(await gateway.ask(request), TurnFinished)
    assert len(calls(provider.bill)) == 1
    assert (await row(pool))["agent_id"] == "sylvia"


async def test_made_up_tasks_cost_nothing(gateway: Gateway, provider: OpenAIServer, pool: Pool) -> None:
    """A round that was never begun, a run that is not there, no run at all, somebody's brief without their task."""
    brief = Claim(marker="[[brief]]", limit=1000)
    for task_key in (f"{RUN_KEY}/critique-2", "feature/search/other-run/critique-1", "critique-1", "", RUN_KEY):
        error = await gateway.error(turn_request("Read [[brief]].", task_key=task_key, claims=[brief]))
        assert (error.code, error.retryable) == (errors.NOT_AUTHORIZED, False)
        assert task_key in error.message
    assert calls(provider.bill) == []
    assert await pool.fetchval("SELECT count(*) FROM llm_turns") == 0


@pytest.mark.parametrize("status", ["cancelled", "failed"])
async def test_an_agent_that_outlives_its_run_spends_no_more(
    gateway: Gateway, provider: OpenAIServer, owner: Pool, pool: Pool, status: str
) -> None:
    """The call under way is journalled, since it is paid; the next one is not made, and trying again is pointless."""
    provider.gate.clear()
    asking = asyncio.create_task(gateway.answer(turn_request()))
    await provider.arrived(1)
    await record_task(owner, status=status, revision=2)
    provider.gate.set()
    assert await asking
    assert (await row(pool))["status"] == "done"
    for turn in (1, 2):
        error = await gateway.error(turn_request(turn=turn))
        assert (error.code, error.retryable) == (errors.TASK_CLOSED, False)
        assert f"is {status}: no model call is made for it" in error.message
    assert len(calls(provider.bill)) == 1


async def test_the_brief_is_that_of_the_tasks_run(gateway: Gateway, provider: OpenAIServer, owner: Pool) -> None:
    """Nothing else in a request names a run: what an older or a hostile agent adds is not looked at."""
    other = await record_task(owner, run_key=f"{RUN_KEY}-2", agent="roy", brief="Another run's secret.")
    request = turn_request("Read [[brief]].", claims=[Claim(marker="[[brief]]", limit=1000)])
    payload = request.model_dump(mode="json") | {"run_key": other.rpartition("/")[0]}
    await gateway.proxy.handle("sylvia", json.dumps(payload).encode())
    [seen] = provider.requests
    assert "Read Review it." in seen["messages"][-1]["content"]


async def test_turns_of_one_task_come_in_order(gateway: Gateway, provider: OpenAIServer) -> None:
    """A turn whose predecessor has no answer is refused without a call."""
    error = await gateway.error(turn_request(turn=2))
    assert (error.code, error.retryable) == ("turn.out_of_order", False)
    assert calls(provider.bill) == []


async def test_the_bill_knows_what_was_paid_twice(gateway: Gateway, provider: OpenAIServer, owner: Pool) -> None:
    """The judge itself: without the journal's row the same conversation is paid for again, and the bill says so."""
    for _ in range(2):
        await gateway.answer(turn_request())
        await owner.execute("TRUNCATE llm_turns, agent_playground_messages")
    [(_, count)] = paid_twice(provider.bill).items()
    assert count == 2
    assert [line.event for line in read_bill(provider.bill)] == ["started", "finished"] * 2
