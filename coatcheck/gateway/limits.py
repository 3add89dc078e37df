"""Who goes next when capacity is scarce: token bucket, adaptive concurrency and a fair queue, as pure data structures.

Nothing here waits or reads a clock; `capacity` does. The libraries at hand (aiolimiter, limits, pyrate-limiter) keep
waiters in an order of their own, which would decide instead of the fair queue, and cannot be corrected when a call
took more tokens than was estimated.
"""

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

BURST_SECONDS: Final = 10.0
"""How much a bucket saves up: providers refuse a minute's worth at once, though it is within the limit."""
GROWTH_SECONDS: Final = 10.0
"""Least time between two steps up; each one too many costs everybody a Retry-After."""
HALF: Final = 2

Item = TypeVar("Item")


class TokenBucket:
    """A rate that may be exceeded for a moment and overdrawn by a correction.

    Args:
        per_minute: What flows in per minute.
        now: Monotonic seconds, as in all methods.
    """

    def __init__(self, per_minute: float, *, now: float) -> None:
        self._rate = per_minute / 60
        self._level = self._most
        self._at = now

    def set_rate(self, per_minute: float, *, now: float) -> None:
        """Change the rate; what is saved up beyond the new burst is lost."""
        self._fill(now)
        self._rate = per_minute / 60
        self._level = min(self._level, self._most)

    def wait_seconds(self, amount: float, *, now: float) -> float:
        """Seconds until `amount` may be taken; more than the bucket holds is taken from a full one."""
        self._fill(now)
        missing = min(amount, self._most) - self._level
        return missing / self._rate if missing > 1e-9 else 0.0  # noqa: PLR2004  below a rounding error

    def take(self, amount: float, *, now: float) -> None:
        """Take it, or with a negative amount put it back; the level may fall below zero and is filled up later."""
        self._fill(now)
        self._level = min(self._level - amount, self._most)

    @property
    def _most(self) -> float:
        return max(self._rate * BURST_SECONDS, 1.0)

    def _fill(self, now: float) -> None:
        self._level = min(self._level + max(now - self._at, 0.0) * self._rate, self._most)
        self._at = max(now, self._at)


@dataclass
class AdaptiveLimit:
    """How many calls at once a model takes, learnt from its 429s: halved by one, one more per window of answers."""

    value: int | None = None
    """`None` until the first 429: no limit."""
    _successes: int = field(default=0, repr=False)
    _was_full: bool = field(default=False, repr=False)
    _changed_at: float = field(default=0.0, repr=False)

    def admits(self, in_flight: int) -> bool:
        """Whether one more call may begin."""
        return self.value is None or in_flight < self.value

    def overloaded(self, in_flight: int, *, now: float) -> None:
        """Learn from a window of 429s, which began with so many calls in flight; a lone call was not too many."""
        if in_flight > 1:
            self.value = max(min(in_flight, self.value or in_flight) // HALF, 1)
        self._successes, self._was_full, self._changed_at = 0, False, now

    def succeeded(self, in_flight: int, *, now: float) -> None:
        """Learn from an answer, with `in_flight` calls before it. Grows only when the limit was what held others up."""
        if self.value is None:
            return
        self._successes += 1
        self._was_full |= in_flight >= self.value
        if self._was_full and self._successes >= self.value and now - self._changed_at >= GROWTH_SECONDS:
            self.value += 1
            self._successes, self._was_full, self._changed_at = 0, False, now


class FairQueue(Generic[Item]):
    """Stride scheduling: whoever is served pays cost / weight, and the tenant that has paid least is next.

    FIFO by `order` inside a tenant. Equal payments are decided by the tenant's name, so the order is deterministic. A
    tenant that was away owes nothing and is owed nothing: it begins at what the last one served had paid.

    Args:
        weight: Tenant → its weight, above 0.
    """

    def __init__(self, weight: Callable[[str], float]) -> None:
        self._weight = weight
        self._waiting: dict[str, list[tuple[float, int, Item]]] = {}
        self._paid: dict[str, float] = {}
        self._now = 0.0
        self._number = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Item]:
        """Everybody who waits, in the order in which they may be asked: by tenant, then by arrival."""
        for tenant in sorted(self._waiting, key=lambda name: (self._paid[name], name)):
            for _, _, item in self._waiting[tenant]:
                yield item

    def add(self, tenant: str, item: Item, *, order: float) -> None:
        """Let an item wait; `order` is when it first came."""
        if tenant not in self._waiting:
            self._waiting[tenant] = []
            self._paid[tenant] = max(self._paid.get(tenant, 0.0), self._now)
        self._number += 1
        bisect.insort(self._waiting[tenant], (order, self._number, item), key=lambda entry: entry[:2])

    def remove(self, tenant: str, item: Item) -> None:
        """Take an item out without serving it; does nothing when it is not there."""
        left = [entry for entry in self._waiting.get(tenant, ()) if entry[2] != item]
        if left:
            self._waiting[tenant] = left
        else:
            self._waiting.pop(tenant, None)
            self._forget()

    def serve(self, tenant: str, item: Item, *, cost: float) -> None:
        """Take an item out and let its tenant pay."""
        self._now = max(self._now, self._paid[tenant])
        self._paid[tenant] += cost / self._weight(tenant)
        self.remove(tenant, item)

    def correct(self, tenant: str, *, by: float) -> None:
        """Let a tenant that was served pay more, or with a negative amount less."""
        self._paid[tenant] = self._paid.get(tenant, self._now) + by / self._weight(tenant)
        self._forget()

    def _forget(self) -> None:
        """Tenants that do not wait and have paid no more than a newcomer would begin with need no entry."""
        for tenant in [name for name, paid in self._paid.items() if name not in self._waiting and paid <= self._now]:
            del self._paid[tenant]
