"""Token bucket, adaptive concurrency and the fair queue, on a clock that the tests hold."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.gateway.limits import BURST_SECONDS, GROWTH_SECONDS, AdaptiveLimit, FairQueue, TokenBucket


def test_a_bucket_saves_up_ten_seconds() -> None:
    """60 a minute: ten at once, then one a second."""
    bucket = TokenBucket(60, now=0)
    for _ in range(10):
        assert bucket.wait_seconds(1, now=0) == 0
        bucket.take(1, now=0)
    assert bucket.wait_seconds(1, now=0) == pytest.approx(1)
    assert bucket.wait_seconds(1, now=0.25) == pytest.approx(0.75)
    assert bucket.wait_seconds(1, now=1) == 0


def test_a_correction_overdraws_or_gives_back() -> None:
    """A call that took more than was estimated is paid for by those after it."""
    bucket = TokenBucket(6000, now=0)
    bucket.take(500, now=0)
    bucket.take(1500, now=0)
    assert bucket.wait_seconds(100, now=0) == pytest.approx(11)
    bucket.take(-1100, now=0)
    assert bucket.wait_seconds(100, now=0) == 0


def test_more_than_the_bucket_holds_is_taken_from_a_full_one() -> None:
    """A prompt that is larger than ten seconds' worth goes through, and leaves a debt."""
    bucket = TokenBucket(600, now=0)
    assert bucket.wait_seconds(1000, now=0) == 0
    bucket.take(1000, now=0)
    assert bucket.wait_seconds(1000, now=0) == pytest.approx(100)


def test_a_new_rate_holds_at_once() -> None:
    """A second gateway has come: half the rate, and half the savings."""
    bucket = TokenBucket(60, now=0)
    bucket.set_rate(30, now=0)
    bucket.take(5, now=0)
    assert bucket.wait_seconds(1, now=0) == pytest.approx(2)


@given(
    per_minute=st.integers(1, 10_000),
    asked=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 500)), max_size=60),
)
def test_a_bucket_never_gives_more_than_its_rate(per_minute: int, asked: list[tuple[float, int]]) -> None:
    """Over any time: the rate, the savings, and one large call beyond them."""
    bucket, now, given_out = TokenBucket(per_minute, now=0), 0.0, 0.0
    largest = max((amount for _, amount in asked), default=0)
    for pause, amount in asked:
        now += pause
        wait = bucket.wait_seconds(amount, now=now)
        now += wait + (1e-6 if wait else 0)
        assert bucket.wait_seconds(amount, now=now) == pytest.approx(0, abs=1e-3)
        bucket.take(amount, now=now)
        given_out += amount
        most = per_minute / 60 * (now + BURST_SECONDS) + 1
        assert given_out <= most + largest + 1e-3


def test_concurrency_is_halved_and_grows_by_one_a_window() -> None:
    """40 in flight, 20, 10; then one more for a window of answers that were held up by the limit."""
    limit = AdaptiveLimit()
    assert limit.admits(10_000)
    limit.overloaded(40, now=0)
    assert limit.value == 20
    assert limit.admits(19)
    assert not limit.admits(20)
    limit.overloaded(20, now=1)
    assert limit.value == 10
    for _ in range(30):
        limit.succeeded(10, now=5)
    assert limit.value == 10
    limit.succeeded(10, now=1 + GROWTH_SECONDS)
    assert limit.value == 11


def test_it_does_not_grow_while_it_holds_nobody_up() -> None:
    """Answers below the limit do not show that more would go."""
    limit = AdaptiveLimit()
    limit.overloaded(20, now=0)
    for second in range(1000):
        limit.succeeded(4, now=second)
    assert limit.value == 10


def test_a_lone_call_was_not_too_many() -> None:
    """A 429 to it is not about concurrency."""
    limit = AdaptiveLimit()
    limit.overloaded(1, now=0)
    assert limit.value is None
    limit.overloaded(3, now=0)
    limit.overloaded(2, now=0)
    limit.overloaded(2, now=0)
    assert limit.value == 1


def served(queue: FairQueue[str], count: int, *, cost: float = 1) -> list[str]:
    """Who is served, always the first in order."""
    order = []
    for _ in range(count):
        item = next(iter(queue))
        queue.serve(item.partition("/")[0], item, cost=cost)
        order.append(item)
    return order


def test_equal_tenants_take_turns() -> None:
    """However many one has brought, and first in, first out inside each."""
    queue: FairQueue[str] = FairQueue(lambda _: 1)
    for number in range(6):
        queue.add("big", f"big/{number}", order=number)
    for number in range(2):
        queue.add("small", f"small/{number}", order=100 + number)
    assert served(queue, 6) == ["big/0", "small/0", "big/1", "small/1", "big/2", "big/3"]


def test_a_heavier_tenant_gets_its_share() -> None:
    """Weight 3 against 1."""
    queue: FairQueue[str] = FairQueue({"a": 3.0, "b": 1.0}.__getitem__)
    for tenant, number in itertools.product("ab", range(40)):
        queue.add(tenant, f"{tenant}/{number}", order=number)
    assert Counter(item[0] for item in served(queue, 40)) == {"a": 30, "b": 10}


def test_who_was_away_is_owed_nothing() -> None:
    """A tenant that comes late does not get everything until it has caught up."""
    queue: FairQueue[str] = FairQueue(lambda _: 1)
    for number in range(100):
        queue.add("early", f"early/{number}", order=number)
    served(queue, 50)
    for number in range(10):
        queue.add("late", f"late/{number}", order=0)
    assert Counter(item.partition("/")[0] for item in served(queue, 10)) == {"early": 5, "late": 5}


def test_a_place_is_kept_by_the_time_of_coming() -> None:
    """One that was parked and comes back stands where it stood."""
    queue: FairQueue[str] = FairQueue(lambda _: 1)
    for number in range(3):
        queue.add("a", f"a/{number}", order=number)
    queue.remove("a", "a/0")
    queue.add("a", "a/back", order=0)
    assert served(queue, 3) == ["a/back", "a/1", "a/2"]
    assert len(queue) == 0


@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 7.0]), min_size=2, max_size=5),
    cost=st.floats(0.1, 1000),
    count=st.integers(20, 150),
)
def test_shares_follow_the_weights(weights: list[float], cost: float, count: int) -> None:
    """While all wait, nobody is ever more than one service away from its share, and the order is always the same."""
    orders = []
    for _ in range(2):
        queue: FairQueue[str] = FairQueue(lambda tenant: weights[int(tenant)])
        for tenant, number in itertools.product(range(len(weights)), range(count)):
            queue.add(str(tenant), f"{tenant}/{number}", order=number)
        orders.append(served(queue, count, cost=cost))
    assert orders[0] == orders[1]
    got: Counter[int] = Counter()
    for position, item in enumerate(orders[0], start=1):
        got[int(item.partition("/")[0])] += 1
        for tenant, weight in enumerate(weights):
            share = position * weight / sum(weights)
            assert abs(got[tenant] - share) <= len(weights)
