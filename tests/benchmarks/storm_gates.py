"""Who is let in when a provider has too little for all: three policies behind one door, each with the same bucket.

`Lined` is one heap and an order: first come, first served; or Temporal's, as its documentation and its server have it.
`Market` is the product: its `Capacity`, divided by its auction of what agents bid.

Temporal (https://docs.temporal.io/develop/task-queue-priority-fairness, `service/matching/fair_task_writer.go` and
`counter/map.go` of temporalio/temporal): a lower priority key is always dispatched first; within one, a task gets its
place when it is added, pass = max(where dispatching is, the key's last pass + stride / weight), and the lowest pass
goes first. Tasks are counted, not what they take.
"""

import asyncio
import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Protocol

from coatcheck.economy.auction import clear
from coatcheck.gateway.capacity import Capacity, Division, Slot
from coatcheck.gateway.limits import TokenBucket
from coatcheck.gateway.shares import Payer
from schemas.config import ProviderLimits
from schemas.market import WHOLE, Bid

MODEL: Final = "one:model"
INTERVAL_SECONDS: Final = 60
"""The market's default."""
_STRIDE: Final = 1000
_NEW_MEAN: Final = 0.2
"""As in `Capacity`, so that all estimate alike."""


@dataclass(eq=False)
class Job:
    """A run of one agent: calls one after another, worth something if the last one ends in time."""

    number: int
    agent: str
    tenant: str
    arrives: float
    value: int
    """Micro-credits."""
    deadline: float
    calls: list[int]
    """Tokens of each."""
    priority: int
    """Temporal's key: 1 is first, 5 last."""
    done: int = 0
    ended: float | None = None

    @property
    def left(self) -> int:
        """Tokens of the calls that have not been made."""
        return sum(self.calls[self.done :])


class Gate(Protocol):
    """Where jobs wait for each call."""

    async def enter(self, job: Job, *, tokens: int) -> Slot | float:
        """Wait for a place for a call whose prompt has so many tokens.

        Raises:
            TimeoutError: the job's deadline is over.
        """

    def leave(self, place: Slot | float, *, tokens: int) -> None:
        """Give it back, and tell what the call really took."""


Order = Callable[[Job], tuple[float, ...]]


class Lined:
    """One heap: whoever has the least place goes next, as soon as the bucket has what it takes.

    Args:
        per_minute: Tokens.
        order: Says a waiting call's place when it comes.
    """

    def __init__(self, per_minute: int, order: Order) -> None:
        self._clock = asyncio.get_running_loop().time
        self._bucket = TokenBucket(per_minute, now=self._clock())
        self._order = order
        self._heap: list[tuple[tuple[float, ...], int, float, asyncio.Future[float]]] = []
        self._numbers = itertools.count()
        self._mean = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.dispatched: tuple[float, ...] = ()
        """The last one's place."""

    async def enter(self, job: Job, *, tokens: int) -> float:
        """As `Gate` has it."""
        place: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        estimate = float(max(self._mean, tokens))
        heapq.heappush(self._heap, (self._order(job), next(self._numbers), estimate, place))
        self._serve()
        async with asyncio.timeout_at(job.deadline):
            return await place

    def leave(self, place: Slot | float, *, tokens: int) -> None:
        """As `Gate` has it."""
        assert isinstance(place, float)
        self._bucket.take(tokens - place, now=self._clock())
        self._mean += _NEW_MEAN * (tokens - self._mean) if self._mean else tokens
        self._serve()

    def _serve(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        while self._heap:
            order, _, estimate, place = self._heap[0]
            if not place.done():
                now = self._clock()
                if (wait := self._bucket.wait_seconds(estimate, now=now)) > 0:
                    self._timer = asyncio.get_running_loop().call_later(wait, self._serve)
                    return
                self._bucket.take(estimate, now=now)
                self.dispatched = order
                place.set_result(estimate)
            heapq.heappop(self._heap)


def first_come(per_minute: int) -> Lined:
    """By the time at which the call came."""
    clock = asyncio.get_running_loop().time
    return Lined(per_minute, lambda _: (clock(),))


def temporal(per_minute: int, weights: Mapping[str, float], *, with_priorities: bool) -> Lined:
    """Fairness by tenant, within priority keys if there are any."""
    passes: defaultdict[tuple[int, str], float] = defaultdict(float)

    def order(job: Job) -> tuple[float, ...]:
        level = job.priority if with_priorities else 3
        base = bases[level] = max(bases[level], gate.dispatched[1] if gate.dispatched[:1] == (level,) else 0.0)
        key = level, job.tenant
        passes[key] = max(base, passes[key] + _STRIDE / weights[job.tenant])
        return level, passes[key]

    bases: defaultdict[int, float] = defaultdict(float)
    gate = Lined(per_minute, order)
    return gate


@dataclass
class Market:
    """The product's capacity, and agents that bid what their waiting work is worth to them.

    An agent bids once an interval: for the share that its work needs above its floor (what waits, and as much as has
    come in the last interval), at that work's value per token, as far as its money goes. It pays the clearing price.
    """

    per_minute: int
    floors: Mapping[str, int]
    money: dict[str, int]
    """Agent → micro-credits."""
    jobs: dict[str, list[Job]] = field(default_factory=lambda: defaultdict(list))
    """Agent → its jobs that have come and neither ended nor been given up."""
    paid: int = 0

    def __post_init__(self) -> None:
        """Begin with the floors."""
        self._clock = asyncio.get_running_loop().time
        limits = {"one": ProviderLimits(tokens_per_minute=self.per_minute)}
        self._capacity = Capacity(limits, {}, clock=self._clock)
        self._capacity.divide("one", Division(self.floors, self.floors))
        self._came: defaultdict[str, int] = defaultdict(int)
        """Agent → tokens of the jobs that came in this interval."""

    async def enter(self, job: Job, *, tokens: int) -> Slot:
        """As `Gate` has it."""
        if not job.done:
            self.jobs[job.agent].append(job)
            self._came[job.agent] += job.left
        now, payer = self._clock(), Payer(job.agent, job.tenant)
        slot = await self._capacity.enter(
            MODEL, payer=payer, order=now, patience_seconds=job.deadline - now, least_tokens=tokens
        )
        assert slot is not None
        return slot

    def leave(self, place: Slot | float, *, tokens: int) -> None:
        """As `Gate` has it."""
        assert isinstance(place, Slot)
        self._capacity.leave(place, tokens=tokens, succeeded=True)

    async def clear_for_ever(self) -> None:
        """Clear the market at the beginning of each interval."""
        for interval in itertools.count():
            now = self._clock()
            found = clear(list(self._bids(now)), floors=self.floors, interval=str(interval))
            for award in found.awards:
                self.money[award.agent] -= award.cost
                self.paid += award.cost
            self._capacity.divide("one", Division(found.shares, self.floors, until=now + 2 * INTERVAL_SECONDS))
            self._came.clear()
            await asyncio.sleep(INTERVAL_SECONDS)

    def _bids(self, now: float) -> Iterator[Bid]:
        whole = self.per_minute * INTERVAL_SECONDS / 60
        for agent, jobs in self.jobs.items():
            with suppress(ZeroDivisionError):
                jobs[:] = [job for job in jobs if job.ended is None and job.deadline > now]
                tokens = sum(job.left for job in jobs)
                price = int(sum(job.value for job in jobs) / tokens * whole / WHOLE)
                wanted = int((tokens + self._came[agent]) / whole * WHOLE) - self.floors[agent]
                share = min(wanted, WHOLE, self.money[agent] // price)
                if share > 0:
                    yield Bid(bid_id=agent, agent=agent, resource="llm:one", share=share, price=price)
