"""Agents' shares of a provider: what each is promised, on a clock that the tests hold."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.gateway.capacity import Capacity, Division
from coatcheck.gateway.shares import Payer, SharedQueue
from schemas.config import ProviderLimits, Tenant
from tests.virtual_time import run_virtually

MODEL = "one:model"


@dataclass(eq=False)
class Call:
    """Somebody who waits."""

    payer: Payer
    cost: float
    order: float = 0.0


def a_call(agent: str, cost: float = 1.0, tenant: str = "x") -> Call:
    """A call of that agent."""
    return Call(Payer(agent, tenant), cost)


def serve(queue: SharedQueue[Call]) -> Call | None:
    """Let the next one go."""
    item = queue.first(lambda _: True)
    if item is not None:
        queue.serve(item)
    return item


def order(queue: SharedQueue[Call], calls: int) -> str:
    """First letters of the agents that go."""
    return "".join(item.payer.agent[0] for _ in range(calls) if (item := serve(queue)) is not None)


AGENTS = ("a", "b", "c", "d", "e", "f")
WEIGHTS = st.lists(st.sampled_from([0, 1, 1, 2, 20]), min_size=6, max_size=6)
SIZES = st.sampled_from([1.0, 1.0, 5.0, 30.0])
ACTIONS = st.lists(st.one_of(st.tuples(st.sampled_from(AGENTS), SIZES), st.just(("serve", 0.0))), min_size=30)


@dataclass
class Ledger:
    """What an agent with a share got less than that share while it waited, at the worst and since it began."""

    share: float
    is_behind: bool
    """Whether it had used no more than its share when it began to wait."""
    missed: float = 0.0
    missed_at_worst: float = 0.0

    def book(self, given_out: float, got: float) -> None:
        """Note one call, whosever it was."""
        self.missed += self.share * given_out - got
        self.missed_at_worst = max(self.missed_at_worst + self.share * given_out - got, 0.0)

    def check(self, own: float, largest: float) -> None:
        """What `coatcheck.gateway.shares` promises."""
        assert self.missed_at_worst <= 2 * own * (1 - self.share) + self.share * largest + 1e-6
        assert not self.is_behind or self.missed <= own + self.share * (largest - own) + 1e-6


@given(weights=WEIGHTS, waiting_first=st.integers(0, 6), actions=ACTIONS)
def test_whoever_waits_gets_its_share_less_one_call(
    weights: Sequence[int], waiting_first: int, actions: Sequence[tuple[str, float]]
) -> None:
    """And over any interval less two, whatever the others do, and whatever the sizes of the calls."""
    queue: SharedQueue[Call] = SharedQueue(lambda _: 1.0)
    shares = {agent: 10_000 * weight // max(sum(weights), 1) for agent, weight in zip(AGENTS, weights, strict=True)}
    queue.divide(shares)
    waiting: dict[str, list[float]] = {agent: [] for agent in AGENTS}
    ledgers: dict[str, Ledger] = {}
    largest = dict.fromkeys(AGENTS, 0.0)
    first = [(agent, 1.0) for agent in AGENTS for _ in range(waiting_first)]
    for action, size in [*first, *actions]:
        if action != "serve":
            if not waiting[action]:
                is_behind = queue._of(action).start <= queue._now
                ledgers[action] = Ledger(shares[action] / 10_000, is_behind)
            queue.add(a_call(action, size))
            waiting[action].append(size)
            largest[action] = max(largest[action], size)
            continue
        item = serve(queue)
        assert (item is None) == (not any(waiting.values())), "nobody waits while there is something to give out"
        if item is None:
            continue
        for agent, ledger in ledgers.items():
            ledger.book(item.cost, item.cost if agent == item.payer.agent else 0.0)
            ledger.check(largest[agent], max(largest.values()))
        waiting[item.payer.agent].pop()
        if not waiting[item.payer.agent]:
            ledgers.pop(item.payer.agent)


def test_a_share_is_lent_and_comes_back_with_the_next_call() -> None:
    """While its owner is away the others have it; when it asks again it goes at once, and nobody has to pay back."""
    queue: SharedQueue[Call] = SharedQueue(lambda _: 1.0)
    queue.divide({"owner": 7500, "borrower": 2500})
    for _ in range(40):
        queue.add(a_call("borrower"))
    assert order(queue, 20) == "b" * 20
    for _ in range(40):
        queue.add(a_call("owner"))
    assert order(queue, 1) == "o"
    assert Counter(order(queue, 16)) == Counter(o=12, b=4)


def test_who_has_no_share_lives_on_what_the_shares_leave() -> None:
    """A fifth is left here, and its agents share it by tenant; when nothing is left, on what is not asked for."""
    queue: SharedQueue[Call] = SharedQueue({"big": 3.0, "small": 1.0}.__getitem__)
    queue.divide({"owner": 8000})
    for number in range(60):
        queue.add(a_call("owner", tenant="big"))
        queue.add(a_call(f"x{number % 3}", tenant="big"))
        queue.add(a_call(f"y{number % 3}", tenant="small"))
    assert Counter(order(queue, 40)) == Counter(o=32, x=6, y=2)
    queue.divide({"owner": 10_000})
    assert order(queue, 28) == "o" * 28
    assert order(queue, 2) == "xy"  # the owner waits for nothing more


def test_within_a_share_tenants_are_served_by_weight() -> None:
    """An agent's share is not its first tenant's."""
    queue: SharedQueue[Call] = SharedQueue({"big": 3.0, "small": 1.0}.__getitem__)
    queue.divide({"owner": 5000, "another": 5000})
    for _ in range(40):
        queue.add(a_call("owner", tenant="big"))
        queue.add(a_call("owner", tenant="small"))
        queue.add(a_call("another", tenant="small"))
    served = Counter(item.payer for _ in range(32) if (item := serve(queue)))
    assert served == {("owner", "big"): 12, ("owner", "small"): 4, ("another", "small"): 16}


def test_a_new_division_keeps_who_waits_and_who_is_ahead() -> None:
    """Between two clearings nobody is forgotten, nor forgiven what it was missing."""
    queue: SharedQueue[Call] = SharedQueue(lambda _: 1.0)
    for _ in range(30):
        queue.add(a_call("a"))
        queue.add(a_call("b"))
    queue.divide({"a": 5000, "b": 5000})
    queue.divide({"a": 9000, "b": 1000})
    assert Counter(order(queue, 20)) == Counter(a=18, b=2)
    queue.divide({"b": 9000, "a": 1000})
    assert Counter(order(queue, 20)) == Counter(a=2, b=18)
    queue.divide({})
    assert len(queue) == 20
    assert len(order(queue, 30)) == 20


def test_what_a_call_took_more_than_was_estimated_is_paid_for() -> None:
    """Shares are of what is really used."""
    queue: SharedQueue[Call] = SharedQueue(lambda _: 1.0)
    queue.divide({"a": 5000, "b": 5000})
    for _ in range(60):
        queue.add(a_call("a"))
        queue.add(a_call("b"))
    used: Counter[str] = Counter()
    for _ in range(40):
        item = serve(queue)
        assert item is not None
        really = 3 if item.payer.agent == "a" else 1
        queue.correct(item.payer, by=really - 1)
        used[item.payer.agent] += really
    assert used["a"] == pytest.approx(used["b"], abs=3)


def test_a_small_share_gets_its_call_though_its_turns_are_parked() -> None:
    """1% is due every 100 calls; a turn that leaves every 20 calls and comes back does not begin anew."""
    queue: SharedQueue[Call] = SharedQueue(lambda _: 1.0)
    queue.divide({"small": 100, "large": 9900})
    for _ in range(400):
        queue.add(a_call("large"))
    served = ""
    for _ in range(10):
        call = a_call("small")
        queue.add(call)
        served += order(queue, 20)
        queue.remove(call)
        served += order(queue, 10)
    assert served.count("s") == 3


def test_leaving_the_queue_forgives_nothing() -> None:
    """One that asks call by call, and is away in between, gets of what nobody owns in proportion to its share, too."""
    queue: SharedQueue[Call] = SharedQueue(lambda _: 1.0)
    queue.divide({"small": 100, "large": 4900})
    for _ in range(300):
        queue.add(a_call("large"))
    served = ""
    for _ in range(200):
        if "s" not in {item.payer.agent[0] for item in queue}:
            queue.add(a_call("small"))
        served += order(queue, 1)
    assert Counter(served) == Counter(s=4, l=196)


# --- with a clock and a provider's limits ------------------------------------------------------------------------


@dataclass
class Storm:
    """Callers of one provider in virtual time; each asks again as soon as it is answered."""

    capacity: Capacity
    got: Counter[str] = field(default_factory=Counter)
    """Agent → tokens."""

    async def caller(self, agent: str, tokens: int, *, tenant: str = "x", took: int | None = None) -> None:
        """Ask for ever."""
        while True:
            slot = await self.capacity.enter(
                MODEL, payer=Payer(agent, tenant), order=0, patience_seconds=1e6, least_tokens=tokens
            )
            assert slot is not None
            await asyncio.sleep(0.5)
            self.capacity.leave(slot, tokens=took or tokens, succeeded=True)
            self.got[agent] += took or tokens

    async def during(self, seconds: float) -> Counter[str]:
        """What each gets in that time."""
        self.got.clear()
        await asyncio.sleep(seconds)
        return self.got.copy()


def test_the_buckets_of_a_provider_are_divided() -> None:
    """Shares while they hold, the floors once they have expired, and all of it for the one who is alone."""

    async def storm() -> None:
        clock = asyncio.get_running_loop().time
        capacity = Capacity({"one": ProviderLimits(tokens_per_minute=60_000)}, {}, clock=clock)
        capacity.divide("one", Division({"a": 7500, "b": 2500}, {"a": 2000, "b": 3000}, until=1000))
        storm = Storm(capacity)
        a = [asyncio.create_task(storm.caller("a", 1000)) for _ in range(20)]
        b = [asyncio.create_task(storm.caller("b", 1000, took=1400)) for _ in range(20)]
        await storm.during(100)  # until the average of the calls is known
        got = await storm.during(400)
        assert got.total() == pytest.approx(400_000, rel=0.03)
        assert got["a"] / got.total() == pytest.approx(0.75, abs=0.01)
        await storm.during(500)
        got = await storm.during(400)  # of each other's floors what is left goes by their floors
        assert got["a"] / got.total() == pytest.approx(0.4, abs=0.01)
        for task in a:
            task.cancel()
        await storm.during(10)
        alone = await storm.during(100)
        assert alone == Counter(b=alone.total())
        assert alone.total() == pytest.approx(100_000, rel=0.05)
        for task in b:
            task.cancel()

    run_virtually(storm())


def test_small_calls_take_from_a_share_as_requests() -> None:
    """600 requests and 60,000 tokens a minute: one asks with ten tokens, the other with a thousand; each has half."""

    async def storm() -> None:
        clock = asyncio.get_running_loop().time
        limits = ProviderLimits(tokens_per_minute=60_000, requests_per_minute=600)
        capacity = Capacity({"one": limits}, {"t": Tenant(weight=5)}, clock=clock)
        capacity.divide("one", Division({"many": 5000, "large": 5000}))
        storm = Storm(capacity)
        tasks = [asyncio.create_task(storm.caller("many", 10)) for _ in range(40)]
        tasks += [asyncio.create_task(storm.caller("large", 1000, tenant="t")) for _ in range(40)]
        await storm.during(100)
        got = await storm.during(300)
        assert got["many"] / 10 >= 0.5 * 600 * 5 * 0.98
        assert got["large"] >= 0.5 * 60_000 * 5 * 0.98
        for task in tasks:
            task.cancel()

    run_virtually(storm())
