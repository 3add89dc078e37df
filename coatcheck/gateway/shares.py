"""Who goes next when agents have shares of a provider: agents by their shares, and within an agent tenants by weight.

The order among agents is WF²Q+ (Bennett and Zhang 1997, "Hierarchical packet fair queueing algorithms"). Each agent's
next call has a virtual start and an end; among those that have started, the one that ends first goes. What it promises
to an agent with the share r whose calls take at most L, while those of all take at most M:

    From when it begins to wait, with no more than its share behind it, for as long as it waits, it gets of everything
    that is given out at least r less L + r(M - L), which is at most one call.
    Of any interval in which it waits, less 2L(1 - r) + rM, at most two calls: it may have been one ahead before.

And it is work-conserving: somebody always goes, so a share that nobody asks for is lent out at once, to the others in
proportion to theirs. It comes back with the next call that is given out after its owner asks again; nothing is owed
for what was lent, and nothing is saved up by staying away. Who has no share lives on what the shares leave; when they
leave nothing, on what their owners do not ask for.

Nothing here waits or reads a clock; `capacity` does.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from coatcheck.gateway.limits import FairQueue
from schemas.market import WHOLE

OTHERS: Final = ""
"""The name under which all agents without a share wait together, fairly by tenant."""


class Payer(NamedTuple):
    """Whose share and whose weight a call takes from."""

    agent: str
    tenant: str


class Waiting(Protocol):
    """Somebody who waits."""

    payer: Payer
    order: float
    """When it first came; earlier ones of an agent's tenant go first."""
    cost: float
    """What it takes of the whole, in any one unit; it may not change while it waits."""


Item = TypeVar("Item", bound=Waiting)


@dataclass(eq=False)
class _Flow(Generic[Item]):
    """The calls of one agent."""

    share: int
    """Basis points; 0 for `OTHERS` alone."""
    queue: FairQueue[Item]
    start: float
    """In virtual time, of the next call."""

    def length(self, cost: float) -> float:
        """In virtual time; whoever has no share is not measured."""
        return cost * WHOLE / self.share if self.share else 0.0


class SharedQueue(Generic[Item]):
    """Everybody who waits for one provider.

    Args:
        weight: Tenant → its weight, above 0.
    """

    def __init__(self, weight: Callable[[str], float]) -> None:
        self._weight = weight
        self._now = 0.0
        """Virtual time: how much would have been given out if somebody with every share had always been there."""
        self._flows: dict[str, _Flow[Item]] = {OTHERS: self._flow(WHOLE)}

    def __len__(self) -> int:
        return sum(len(flow.queue) for flow in self._flows.values())

    def __iter__(self) -> Iterator[Item]:
        for flow in self._flows.values():
            yield from flow.queue

    def divide(self, shares: Mapping[str, int]) -> None:
        """Give shares to agents from now on; those that wait go on waiting, and who is ahead of its share stays so.

        Args:
            shares: Agent → basis points, at most `WHOLE` together. Without any, tenants alone decide.
        """
        shares = {agent: share for agent, share in shares.items() if share > 0}
        shares[OTHERS] = max(WHOLE - sum(shares.values()), 0)
        if {name: flow.share for name, flow in self._flows.items()} == shares:
            return
        waiting = list(self)
        old, self._flows = self._flows, {}
        for name, share in shares.items():
            flow = self._flows[name] = old.get(name) or self._flow(share)
            if share:
                flow.start = self._now + (flow.start - self._now) * flow.share / share
            flow.share = share
        for item in waiting:
            flow = old.get(item.payer.agent, old[OTHERS])
            if flow is not self._of(item.payer.agent):
                flow.queue.remove(item.payer.tenant, item)
                self.add(item)

    def add(self, item: Item) -> None:
        """Let somebody wait."""
        flow = self._of(item.payer.agent)
        if not len(flow.queue):
            flow.start = max(flow.start, self._now)
        flow.queue.add(item.payer.tenant, item, order=item.order)

    def remove(self, item: Item) -> None:
        """Let somebody go away; does nothing when it is not there."""
        self._of(item.payer.agent).queue.remove(item.payer.tenant, item)

    def first(self, may_go: Callable[[Item], bool]) -> Item | None:
        """Who goes next of those that may; `None` when nobody does."""
        heads = [
            (flow, name, item)
            for name, flow in self._flows.items()
            if (item := next(filter(may_go, flow.queue), None)) is not None
        ]
        heads = [head for head in heads if head[0].share] or heads
        if not heads:
            return None
        self._now = max(self._now, min(flow.start for flow, _, _ in heads))
        _, _, item = min(
            (head for head in heads if head[0].start <= self._now),
            key=lambda head: (head[0].start + head[0].length(head[2].cost), head[1]),
        )
        return item

    def serve(self, item: Item) -> None:
        """Take it out and let its agent and its tenant pay."""
        flow = self._of(item.payer.agent)
        if flow.share:
            self._now += item.cost
            flow.start += flow.length(item.cost)
        flow.queue.serve(item.payer.tenant, item, cost=item.cost)

    def correct(self, payer: Payer, *, by: float) -> None:
        """Let somebody who went pay more, or with a negative amount less: its cost was an estimate."""
        flow = self._of(payer.agent)
        flow.start += flow.length(by)
        flow.queue.correct(payer.tenant, by=by)

    def _of(self, agent: str) -> _Flow[Item]:
        return self._flows.get(agent) or self._flows[OTHERS]

    def _flow(self, share: int) -> _Flow[Item]:
        return _Flow(share, FairQueue(self._weight), self._now)
