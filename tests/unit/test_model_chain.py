"""Who is asked and who waits: capacity and breakers of one gateway together, without a bucket and without servers."""

import asyncio
import logging
from collections import Counter

import pytest

from coatcheck.gateway import breaker_board, chain
from coatcheck.gateway.breaker import Cause
from coatcheck.gateway.breaker_board import BreakerBoard
from coatcheck.gateway.capacity import Capacity, Slot
from coatcheck.gateway.chain import ModelChain, Parked, Permit
from coatcheck.gateway.limits import GROWTH_SECONDS
from coatcheck.gateway.provider_errors import Blame, ProviderFailure
from coatcheck.gateway.shares import Payer
from schemas import errors
from schemas.config import ProviderLimits, Tenant

A, B = "one:a", "two:b"


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """What it is now."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Of board and capacity."""
    return Clock()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test of this file waits in earnest."""
    monkeypatch.setattr(chain, "INSIDE_SECONDS", 0.01)


def a_chain(clock: Clock, limits: dict[str, ProviderLimits] | None = None) -> ModelChain:
    """Chance is always the least."""
    board = BreakerBoard(None, limits or {}, clock=clock)
    return ModelChain(board, Capacity(limits or {}, {}, clock=clock), chance=lambda: 0.0)


async def ask(models: ModelChain, *names: str, turn: str = "t", tenant: str = "x", patience: float = 0.05) -> object:
    """A permit, or what there is instead."""
    give_up = asyncio.get_running_loop().time() + patience
    return await models.permit(names, turn=turn, payer=Payer("roy", tenant), give_up=give_up, least_tokens=1)


async def permit(models: ModelChain, *names: str) -> Permit:
    """What must be a permit."""
    found = await ask(models, *names)
    assert isinstance(found, Permit), found
    return found


async def parked(models: ModelChain, *names: str) -> Parked:
    """What must be parked."""
    found = await ask(models, *names)
    assert isinstance(found, Parked), found
    return found


def failure(blame: Blame, *, retry_after: float | None = None) -> ProviderFailure:
    """A failed call."""
    return ProviderFailure(errors.PROVIDER_UNAVAILABLE, "it said no", True, retry_after, blame)


async def fail(models: ModelChain, name: str, blame: Blame, **fields: float) -> bool:
    """Ask that model and let it fail; whether its breaker is open then."""
    return await models.failed(await permit(models, name), failure(blame, **fields))


async def answer(models: ModelChain, granted: Permit) -> None:
    """Let that call succeed."""
    models.answered(granted, tokens=1)
    await models.succeeded(granted)


async def test_the_first_model_is_asked_as_long_as_it_can_be(clock: Clock) -> None:
    """Then the second; and the first one again by a single turn when its time is over."""
    models = a_chain(clock)
    assert (await permit(models, A, B)).model == A
    assert await fail(models, A, Blame.BUSY, retry_after=20)
    assert (await permit(models, A, B)).model == B
    clock.now += 20
    probe = await permit(models, A, B)
    assert (probe.model, probe.is_probe) == (A, True)
    assert (await permit(models, A, B)).model == B
    await answer(models, probe)
    assert (await permit(models, A, B)).model == A


async def test_only_failures_in_a_row_open_a_breaker(clock: Clock) -> None:
    """Five by default; an answer in between begins a new row."""
    models = a_chain(clock)
    for _ in range(4):
        assert not await fail(models, A, Blame.OUTAGE)
    await answer(models, await permit(models, A))
    for _ in range(4):
        assert not await fail(models, A, Blame.OUTAGE)
    assert await fail(models, A, Blame.OUTAGE)
    assert (await parked(models, A)).retry_after_seconds == pytest.approx(30, abs=0.1)


async def test_limits_of_the_configuration_hold_for_breakers(clock: Clock) -> None:
    """How many failures, and how long."""
    models = a_chain(clock, {"one": ProviderLimits(failures_to_open=2, open_seconds=100)})
    assert not await fail(models, A, Blame.OUTAGE)
    assert await fail(models, A, Blame.OUTAGE)
    assert (await parked(models, A)).retry_after_seconds == pytest.approx(100, abs=0.1)


async def test_parked_until_the_first_model_is_back(clock: Clock) -> None:
    """And told why, of every model."""
    models = a_chain(clock)
    await fail(models, A, Blame.BUSY, retry_after=50)
    await fail(models, B, Blame.BUSY, retry_after=20)
    found = await parked(models, A, B)
    assert found.retry_after_seconds == pytest.approx(20, abs=0.1)
    assert found.reason == f"{A} is closed for now: it said no; {B} is closed for now: it said no"


async def test_waits_are_spread(clock: Clock) -> None:
    """By a quarter, so that all do not come at once."""
    models = ModelChain(BreakerBoard(None, {}, clock=clock), Capacity({}, {}, clock=clock), chance=lambda: 1.0)
    await fail(models, A, Blame.BUSY, retry_after=40)
    assert (await parked(models, A)).retry_after_seconds == pytest.approx(50, abs=0.1)


async def test_a_refused_model_is_passed_over_and_is_the_last_resort(clock: Clock) -> None:
    """With no other, it is asked: its words are what the run fails with. Others that are only closed are waited for."""
    models = a_chain(clock)
    await fail(models, A, Blame.REFUSED)
    assert (await permit(models, A, B)).model == B
    assert (await permit(models, A)).model == A
    await fail(models, B, Blame.BUSY, retry_after=20)
    assert B in (await parked(models, A, B)).reason
    clock.now += 400
    await answer(models, await permit(models, A))
    assert models.is_closed(A)


async def test_a_model_that_came_back_is_remembered_as_such(clock: Clock) -> None:
    """From its first recovery on, through later windows: what happened before that says nothing about a turn."""
    models = a_chain(clock, {"one": ProviderLimits(failures_to_open=1)})
    await answer(models, await permit(models, A))
    assert not models.has_recovered(A, within_seconds=5000)
    await fail(models, A, Blame.OUTAGE)
    clock.now += 30
    await answer(models, await permit(models, A))
    clock.now += 10
    await fail(models, A, Blame.OUTAGE)
    assert models.has_recovered(A, within_seconds=10.1)
    assert not models.has_recovered(A, within_seconds=9.9)


async def test_an_answer_frees_its_place_before_the_breakers_learn_it(clock: Clock) -> None:
    """So that nobody queues behind the journal; the probe is over when the breakers know."""
    models = a_chain(clock, {"one": ProviderLimits(max_concurrent=1, failures_to_open=1)})
    await fail(models, A, Blame.OUTAGE)
    clock.now += 30
    probe = await permit(models, A)
    models.answered(probe, tokens=1)
    assert models._capacity.enter_now(A) is not None
    assert not models.is_closed(A)
    await models.succeeded(probe)
    assert models.is_closed(A)


async def test_a_rejected_request_shows_that_the_model_is_there(clock: Clock) -> None:
    """A probe with a wrong request closes the breaker; one that does not fit says nothing and is given back."""
    models = a_chain(clock)
    await fail(models, A, Blame.BUSY, retry_after=5)
    clock.now += 5
    await models.failed(await permit(models, A), failure(Blame.FIT))
    assert not models.is_closed(A)
    again = await permit(models, A)
    assert again.is_probe
    await models.failed(again, failure(Blame.REQUEST))
    assert models.is_closed(A)


async def test_a_probe_whose_turn_needed_no_call_is_given_back(clock: Clock) -> None:
    """Or it would keep the others out for 30 s."""
    models = a_chain(clock)
    await fail(models, A, Blame.BUSY, retry_after=5)
    clock.now += 5
    await models.unused(await permit(models, A))
    assert (await permit(models, A)).is_probe


async def test_those_who_wait_for_a_place_leave_when_the_model_closes(clock: Clock) -> None:
    """They are asked of the next model at once, and not after 20 s."""
    models = a_chain(clock, {"one": ProviderLimits(max_concurrent=1)})
    first = await permit(models, A, B)
    waiting = asyncio.create_task(ask(models, A, B, patience=60))
    await asyncio.sleep(0)
    assert not waiting.done()
    await models._board.trip(A, began=clock.now, cause=Cause.RATE_LIMIT, reason="429 elsewhere", retry_after=60)
    async with asyncio.timeout(1):
        found = await waiting
    assert isinstance(found, Permit)
    assert (first.model, found.model) == (A, B)


async def test_nobody_waits_in_a_gateway_that_stops(clock: Clock) -> None:
    """Those in the queue leave, and nobody joins it."""
    models = a_chain(clock, {"one": ProviderLimits(max_concurrent=1)})
    await permit(models, A)
    waiting = asyncio.create_task(ask(models, A, patience=60))
    await asyncio.sleep(0)
    models.close()
    async with asyncio.timeout(1):
        assert isinstance(await waiting, Parked)


async def test_a_429_in_a_crowd_halves_it_once(clock: Clock) -> None:
    """However many of the crowd meet it; a window later, the half is what is let in."""
    models = a_chain(clock)
    crowd = [await permit(models, A) for _ in range(8)]
    for member in crowd:
        await models.failed(member, failure(Blame.BUSY, retry_after=5))
    clock.now += 5
    await answer(models, await permit(models, A))
    inside = [await permit(models, A) for _ in range(4)]
    assert isinstance(await ask(models, A), Parked)
    clock.now += GROWTH_SECONDS
    for member in inside:
        await answer(models, member)
    assert [isinstance(await ask(models, A, turn=str(number)), Permit) for number in range(6)] == [True] * 5 + [False]


async def test_a_parked_turn_keeps_its_place(clock: Clock) -> None:
    """It stands before those who came while it was away."""
    models = a_chain(clock, {"one": ProviderLimits(max_concurrent=1)})
    held = await permit(models, A)
    assert isinstance(await ask(models, A, turn="first", patience=0), Parked)
    later = asyncio.create_task(ask(models, A, turn="later", patience=60))
    await asyncio.sleep(0.01)
    first = asyncio.create_task(ask(models, A, turn="first", patience=60))
    await asyncio.sleep(0.01)
    await models.unused(held)
    found = await first
    assert not later.done()
    assert isinstance(found, Permit)
    await models.unused(found)
    await later


async def test_a_change_is_one_line_in_the_log(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """With what a metric needs."""
    models = a_chain(clock)
    with caplog.at_level(logging.INFO, logger=breaker_board.__name__):
        await fail(models, A, Blame.BUSY, retry_after=5)
        clock.now += 5
        await answer(models, await permit(models, A))
    assert [record.getMessage() for record in caplog.records] == [
        f"breaker=open model={A} until=1005.000 opens=1 cause=rate_limit reason=it said no",
        f"breaker=half_open model={A} until=1035.000 opens=1 cause=rate_limit reason=it said no",
        f"breaker=closed model={A} until=0.000 opens=1 cause=- reason=-",
    ]


async def test_limits_are_shared_by_the_gateways_that_live(clock: Clock) -> None:
    """Half of each for one of two, at least one call; all of it again when the other has gone."""
    capacity = Capacity({"one": ProviderLimits(max_concurrent=5)}, {}, clock=clock)
    capacity.share_with(2)
    slots = [capacity.enter_now(A) for _ in range(3)]
    assert [slot is not None for slot in slots] == [True, True, False]
    capacity.share_with(9)
    assert capacity.enter_now(A) is None
    capacity.share_with(1)
    assert [capacity.enter_now(A) is not None for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize(
    "limits", [ProviderLimits(requests_per_minute=60), ProviderLimits(tokens_per_minute=60)], ids=["requests", "tokens"]
)
async def test_rates_are_shared_too(clock: Clock, limits: ProviderLimits) -> None:
    """Ten at once for one gateway, five for each of two, from the moment on at which the second is seen."""
    capacity = Capacity({"one": limits}, {}, clock=clock)
    assert capacity.enter_now(A) is not None
    capacity.share_with(2)
    assert [capacity.enter_now(A) is not None for _ in range(6)] == [True] * 5 + [False]
    clock.now += 2
    assert [capacity.enter_now(A) is not None for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    "limits", [ProviderLimits(requests_per_minute=60), ProviderLimits(tokens_per_minute=60)], ids=["requests", "tokens"]
)
async def test_a_turn_that_needed_no_call_takes_nothing_of_a_rate(clock: Clock, limits: ProviderLimits) -> None:
    """Replayed turns and looks at a call in flight elsewhere are free."""
    capacity = Capacity({"one": limits}, {}, clock=clock)
    for _ in range(50):
        slot = capacity.enter_now(A, least_tokens=1)
        assert slot is not None
        capacity.give_back(slot)


async def test_tokens_are_estimated_and_corrected(clock: Clock) -> None:
    """600 a minute, so 100 at once. A model whose calls have taken more is expected to go on so."""
    capacity = Capacity({"one": ProviderLimits(tokens_per_minute=600)}, {}, clock=clock)
    slot = capacity.enter_now(A, least_tokens=10)
    assert slot is not None
    capacity.leave(slot, tokens=90, succeeded=True)
    assert capacity.enter_now(A, least_tokens=10) is None  # 10 are left, 90 are expected
    clock.now += 8
    again = capacity.enter_now(A, least_tokens=10)
    assert again == Slot(A, 90)


async def test_a_cancelled_waiter_leaves_nothing_behind(clock: Clock) -> None:
    """Neither a place in the queue nor one in flight."""
    capacity = Capacity({"one": ProviderLimits(max_concurrent=1)}, {}, clock=clock)
    slot = capacity.enter_now(A)
    assert slot is not None
    waiting = asyncio.create_task(capacity.enter(A, payer=Payer("roy", "x"), order=0, patience_seconds=60))
    await asyncio.sleep(0)
    capacity.leave(slot)  # it is given the place, and cancelled before it knows
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert capacity.enter_now(A) is not None


@pytest.mark.parametrize(("weights", "least"), [((1.0, 1.0), 0.99), ((3.0, 1.0), 0.99)])
async def test_scarce_places_are_shared_fairly(clock: Clock, weights: tuple[float, float], least: float) -> None:
    """One tenant brings ten times as many calls; Jain's index over what each got per weight."""
    tenants = {name: Tenant(weight=weight) for name, weight in zip("ab", weights, strict=True)}
    capacity = Capacity({"one": ProviderLimits(max_concurrent=2)}, tenants, clock=clock)
    got: Counter[str] = Counter()
    enough = asyncio.Event()

    async def caller(tenant: str, number: int) -> None:
        while not enough.is_set():
            slot = await capacity.enter(A, payer=Payer("roy", tenant), order=number, patience_seconds=60)
            assert slot is not None
            got[tenant] += not enough.is_set()
            if got.total() >= 400:
                enough.set()
            await asyncio.sleep(0)
            capacity.leave(slot, tokens=10, succeeded=True)

    async with asyncio.TaskGroup() as group:
        for tenant, count in (("a", 60), ("b", 6)):
            for number in range(count):
                group.create_task(caller(tenant, number))
    shares = [got[name] / weight for name, weight in zip("ab", weights, strict=True)]
    assert sum(shares) ** 2 / (2 * sum(share**2 for share in shares)) >= least


async def test_a_bucket_that_fills_up_lets_the_next_one_in() -> None:
    """By itself: nothing else happens then."""
    capacity = Capacity({"one": ProviderLimits(requests_per_minute=1200)}, {})
    for _ in range(200):
        assert capacity.enter_now(A) is not None
    async with asyncio.timeout(5):
        assert await capacity.enter(A, payer=Payer("roy", "x"), order=0, patience_seconds=5) is not None
