"""A turn that makes its provider fail, and an outage: the one ends, the other is survived. On a clock of our own.

Both look alike from one call. What tells them apart is whether the model answers others meanwhile.
"""

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from functools import partial

import pytest

from coatcheck.gateway.turns import LONGEST_TURN_SECONDS, MOST_CALLS
from coatcheck.messaging.client import NatsClient
from coatcheck.storage.database import Pool
from schemas import errors
from schemas.config import ProviderLimits
from schemas.conversation import TurnAnswer, TurnError, TurnParked, TurnRequest
from tests.providers.bill import calls
from tests.providers.gateway import Gateway, open_gateway, record_task, row, turn_request
from tests.providers.openai_server import OpenAIServer
from tests.providers.script import Step, rate_limited

pytestmark = pytest.mark.usefixtures("short_pauses")

HOUR = 3600.0
DOWN = Step(do="error", times=None)


class Time:
    """Time that passes when a test says so, for the breakers and for the journal's rows alike."""

    def __init__(self, owner: Pool) -> None:
        self._owner = owner
        self.passed = 0.0

    def __call__(self) -> float:
        """Seconds since 1970, as a gateway knows them."""
        return time.time() + self.passed

    async def passes(self, seconds: float) -> None:
        """Let it be later."""
        self.passed += seconds
        await self._owner.execute(
            "UPDATE llm_turns SET created_at = created_at - $1 * interval '1 s',"
            " completed_at = completed_at - $1 * interval '1 s'",
            seconds,
        )


Open = partial[AbstractAsyncContextManager[Gateway]]


@pytest.fixture
def clock(owner: Pool) -> Time:
    """Of every gateway of the test."""
    return Time(owner)


@pytest.fixture
def open_one(pool: Pool, nats: NatsClient, provider: OpenAIServer, clock: Time) -> Open:
    """A gateway with one model, of the test's own; five failures in a row close it, five of a turn end that turn."""
    model = f"openai:{uuid.uuid4().hex[:8]}"
    return partial(open_gateway, pool, nats, provider.base_url, models=[model], max_failures=5, clock=clock)


@pytest.fixture
async def gateway(open_one: Open) -> AsyncIterator[Gateway]:
    """One of them."""
    async with open_one() as gateway:
        yield gateway


async def settled(gateway: Gateway, request: TurnRequest) -> TurnAnswer | TurnParked | TurnError:
    """Ask as a stage does, which tries again what may be tried again."""
    while isinstance(reply := await gateway.ask(request), TurnError) and reply.retryable:
        pass
    assert isinstance(reply, TurnAnswer | TurnParked | TurnError), reply
    return reply


async def failures(pool: Pool) -> int:
    """Of the critique's turn, those that count."""
    found = await pool.fetchval("SELECT failures FROM llm_turns WHERE task_key LIKE '%/critique-1'")
    assert isinstance(found, int)
    return found


async def test_a_turn_that_fails_while_others_are_answered_ends(
    open_one: Open, provider: OpenAIServer, owner: Pool, pool: Pool, clock: Time
) -> None:
    """Each failure after a recovery of the model counts, though every one closes it again; also in a later gateway."""
    await record_task(owner, stage="research")
    provider.script.add(Step(do="error", stage="critique", times=None))
    limits = {"openai": ProviderLimits(failures_to_open=1)}
    for number in range(1, 4):
        async with open_one(limits=limits, max_failures=3, shared=True) as gateway:
            parked = await gateway.parked(turn_request())
            assert await failures(pool) == number - 1
            await clock.passes(parked.retry_after_seconds)
            parked = await gateway.parked(turn_request())  # its own probe, with nobody in between: proves nothing
            assert await failures(pool) == number - 1
            await clock.passes(parked.retry_after_seconds)
            assert await gateway.answer(turn_request(stage="research", turn=number))
    async with open_one(limits=limits, max_failures=3, shared=True) as gateway:
        error = await gateway.error(turn_request())
    assert (error.code, error.retryable) == (errors.PROVIDER_EXHAUSTED, False)
    assert error.message.startswith("3 calls failed, the last one: ")
    assert len(calls(provider.bill, stage="critique")) == 7


@pytest.mark.parametrize(("runs", "hours"), [(1, 12), (3, 30)])
async def test_an_outage_of_hours_costs_time_and_no_turn(
    gateway: Gateway, provider: OpenAIServer, owner: Pool, clock: Time, *, runs: int, hours: float
) -> None:
    """Also when there is one run, whose turn is every probe; more runs share the probes of more than a day."""
    requests = [turn_request(task_key=await record_task(owner, run_key=f"run/{number}")) for number in range(runs)]
    provider.script.add(DOWN)
    due = dict.fromkeys(range(runs), 0.0)
    while clock.passed < hours * HOUR:
        number = min(due, key=lambda run: due[run])
        await clock.passes(max(due[number] - clock.passed, 0.0))
        reply = await settled(gateway, requests[number])
        assert isinstance(reply, TurnParked), reply
        due[number] = clock.passed + reply.retry_after_seconds
    provider.script = type(provider.script)()
    await clock.passes(400)
    for request in requests:
        assert isinstance(await settled(gateway, request), TurnAnswer)
    made = await owner.fetch("SELECT calls, failures FROM llm_turns ORDER BY calls")
    assert sum(turn["calls"] for turn in made) <= 5 * runs + hours * HOUR / 300 + 5
    assert max(turn["failures"] for turn in made) <= 4


async def test_a_poison_turn_that_is_alone_ends_after_a_day(
    gateway: Gateway, provider: OpenAIServer, pool: Pool, clock: Time
) -> None:
    """Nobody shows that the model is well: it has the calls of a day, with pauses that grow to 5 minutes."""
    provider.script.add(DOWN)
    pauses = []
    while isinstance(reply := await settled(gateway, turn_request()), TurnParked):
        pauses.append(reply.retry_after_seconds)
        await clock.passes(pauses[-1])
        assert clock.passed < 40 * HOUR
    assert isinstance(reply, TurnError)
    assert (reply.code, reply.retryable) == (errors.PROVIDER_EXHAUSTED, False)
    made = len(calls(provider.bill))
    print(f"{made} calls in {clock.passed / HOUR:.1f} h")
    assert reply.message.startswith(f"{made} calls in a day and no answer, the last one: ")
    for pause, least in zip(pauses, [30, 60, 120, 240, *[300] * len(pauses)], strict=False):
        assert least - 1 <= pause <= 1.25 * least + 1
    assert made == (await row(pool))["calls"] == 5 + len(pauses)
    assert MOST_CALLS <= made <= MOST_CALLS + 10
    assert LONGEST_TURN_SECONDS <= clock.passed <= 31 * HOUR


@pytest.mark.parametrize("step", [DOWN, rate_limited(times=None)], ids=["500", "429"])
async def test_many_calls_end_no_turn_before_its_day_is_over(
    gateway: Gateway, provider: OpenAIServer, owner: Pool, clock: Time, step: Step
) -> None:
    """Short 429s make many; then they do, also when it was 429 all the time, which no counting of failures reaches."""
    provider.script.add(step)
    assert isinstance(await settled(gateway, turn_request()), TurnParked)
    await owner.execute("UPDATE llm_turns SET calls = 10 * $1", MOST_CALLS)
    await clock.passes(LONGEST_TURN_SECONDS - 60)
    assert isinstance(await settled(gateway, turn_request()), TurnParked)
    await clock.passes(400)
    reply = await settled(gateway, turn_request())
    assert isinstance(reply, TurnError)
    assert (reply.code, reply.retryable) == (errors.PROVIDER_EXHAUSTED, False)
