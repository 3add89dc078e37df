"""How many calls may be under way: waiting for a place by the limits of `coatcheck.toml` and by what 429s have taught.

Limits belong to a provider (the part of a model's name before the colon) and are divided by the number of living
gateways; the learnt concurrency belongs to a model. Without limits and 429s nobody waits and nothing is counted but
the calls in flight. The state is this process's own: a restart begins with full buckets.

Who waits is let in by the agents' shares of the provider, if a market has given any, and else by tenant (`shares`).
What a call takes of a provider is measured in seconds of the limit that it uses most of: a large prompt by its tokens,
a small one as a request. So a share is one of tokens and of requests, and nobody has more by making its calls small.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from coatcheck.gateway.limits import AdaptiveLimit, TokenBucket
from coatcheck.gateway.shares import Payer, SharedQueue
from schemas.config import ProviderLimits, Tenant

_NO_LIMITS: Final = ProviderLimits()
_NEW_MEAN: Final = 0.2
"""Weight of the last call in a model's average; about the last ten calls count."""


@dataclass(frozen=True)
class Slot:
    """A place for one call; to be given to `Capacity.leave` exactly once."""

    model: str
    tokens: float
    """The estimate that was taken from the bucket."""
    payer: Payer | None = None
    """Of one that had to wait: nobody is measured by what was there for all."""


@dataclass(eq=False)
class _Waiter:
    model: str
    payer: Payer
    order: float
    tokens: float
    cost: float
    place: asyncio.Future[Slot | None]


@dataclass(frozen=True)
class Division:
    """How a provider is divided among agents."""

    shares: Mapping[str, int] = field(default_factory=dict)
    """Agent → basis points; who is not named has what these leave. Nobody named: tenants alone decide."""
    floors: Mapping[str, int] = field(default_factory=dict)
    """What is left of `shares` after `until`."""
    until: float = math.inf
    """On the clock of `Capacity`."""

    def now(self, now: float) -> Mapping[str, int]:
        """The shares that hold."""
        return self.shares if now < self.until else self.floors


_UNDIVIDED: Final = Division()


@dataclass
class _Model:
    in_flight: int = 0
    adaptive: AdaptiveLimit = field(default_factory=AdaptiveLimit)
    mean_tokens: float = 0.0


@dataclass
class _Provider:
    limits: ProviderLimits
    queue: SharedQueue[_Waiter]
    requests: TokenBucket | None
    tokens: TokenBucket | None
    division: Division = _UNDIVIDED
    in_flight: int = 0
    timer: asyncio.TimerHandle | None = None


class Capacity:
    """Every place for a call in this gateway.

    Args:
        limits: Provider → its limits.
        tenants: Tenant → its share; one that is not named has weight 1.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        limits: Mapping[str, ProviderLimits],
        tenants: Mapping[str, Tenant],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._tenants = tenants
        self._clock = clock
        self._gateways = 1
        self._models: dict[str, _Model] = {}
        self._providers: dict[str, _Provider] = {}

    def share_with(self, gateways: int) -> None:
        """Divide the limits by the number of living gateways, this one included."""
        gateways = max(gateways, 1)
        if gateways == self._gateways:
            return
        self._gateways = gateways
        now = self._clock()
        for provider in self._providers.values():
            if provider.requests is not None and provider.limits.requests_per_minute is not None:
                provider.requests.set_rate(provider.limits.requests_per_minute / gateways, now=now)
            if provider.tokens is not None and provider.limits.tokens_per_minute is not None:
                provider.tokens.set_rate(provider.limits.tokens_per_minute / gateways, now=now)
            self._serve(provider)

    def divide(self, provider: str, division: Division) -> None:
        """Divide a provider among agents from now on, those that wait included."""
        found = self._provider(provider)
        found.division = division
        self._serve(found)

    def enter_now(self, model: str, *, least_tokens: int = 0) -> Slot | None:
        """A place at once, or `None` when somebody has to wait."""
        provider = self._provider(model)
        tokens = self._estimate(model, least_tokens)
        if len(provider.queue) or self._is_full(model) or self._wait_seconds(provider, tokens):
            return None
        return self._begin(provider, model, tokens)

    def enter_anyway(self, model: str, *, least_tokens: int = 0) -> Slot:
        """A place beside the queue: for the one call that finds out whether a model is back."""
        return self._begin(self._provider(model), model, self._estimate(model, least_tokens))

    async def enter(
        self, model: str, *, payer: Payer, order: float, patience_seconds: float, least_tokens: int = 0
    ) -> Slot | None:
        """Wait for a place: by the agent's share, then fairly by tenant.

        Args:
            model: `provider:model`.
            payer: Which agent asks, and which tenant pays.
            order: When the turn first came, in any one clock; earlier ones of the tenant are served first.
            patience_seconds: How long to wait.
            least_tokens: What the call takes at least; the average of the model's last calls may be more.

        Returns:
            The place, or `None` when the waiters of that model were sent away: look again which model is to be asked.

        Raises:
            TimeoutError: the patience is used up.
        """
        provider = self._provider(model)
        place: asyncio.Future[Slot | None] = asyncio.get_running_loop().create_future()
        tokens = self._estimate(model, least_tokens)
        waiter = _Waiter(model, payer, order, tokens, self._cost(provider, tokens), place)
        provider.queue.add(waiter)
        self._serve(provider)
        try:
            async with asyncio.timeout(patience_seconds):
                return await asyncio.shield(place)
        except BaseException:
            provider.queue.remove(waiter)
            if place.done() and (slot := place.result()) is not None:
                self.leave(slot)
            self._serve(provider)
            raise

    def leave(self, slot: Slot, *, tokens: int | None = None, succeeded: bool = False) -> None:
        """Give a place back.

        Args:
            slot: The place.
            tokens: What the call really took; `None` for a failed one, which keeps its estimate.
            succeeded: Whether the model answered.
        """
        provider, model = self._provider(slot.model), self._model(slot.model)
        now = self._clock()
        if tokens is not None:
            if provider.tokens is not None:
                provider.tokens.take(tokens - slot.tokens, now=now)
            model.mean_tokens += _NEW_MEAN * (tokens - model.mean_tokens) if model.mean_tokens else tokens
            self._correct(provider, slot, self._cost(provider, tokens) - self._cost(provider, slot.tokens))
        if succeeded:
            model.adaptive.succeeded(model.in_flight, now=now)
        provider.in_flight -= 1
        model.in_flight -= 1
        self._serve(provider)

    def give_back(self, slot: Slot) -> None:
        """Give a place back that no call was made on, with the request and the tokens that were taken for it."""
        provider, now = self._provider(slot.model), self._clock()
        if provider.requests is not None:
            provider.requests.take(-1, now=now)
        if provider.tokens is not None:
            provider.tokens.take(-slot.tokens, now=now)
        self._correct(provider, slot, -self._cost(provider, slot.tokens))
        self.leave(slot)

    def overloaded(self, model: str) -> None:
        """Learn from a window of 429s: half of what is in flight is allowed from now on."""
        found = self._model(model)
        found.adaptive.overloaded(found.in_flight, now=self._clock())

    def send_away(self, model: str | None = None) -> None:
        """Let those who wait for that model, or for any, look again."""
        for provider in self._providers.values():
            for waiter in [item for item in provider.queue if model in (None, item.model)]:
                provider.queue.remove(waiter)
                if not waiter.place.done():
                    waiter.place.set_result(None)

    def _serve(self, provider: _Provider) -> None:
        """Give out the places that there are; come back by oneself when a bucket has filled up."""
        if provider.timer is not None:
            provider.timer.cancel()
            provider.timer = None
        provider.queue.divide(provider.division.now(self._clock()))
        while (waiter := provider.queue.first(lambda item: not self._is_full(item.model))) is not None:
            wait = self._wait_seconds(provider, waiter.tokens)
            if wait > 0:  # nobody overtakes: a large call would wait for ever
                if wait < math.inf:
                    provider.timer = asyncio.get_running_loop().call_later(wait, self._serve, provider)
                return
            provider.queue.serve(waiter)
            if not waiter.place.done():
                waiter.place.set_result(self._begin(provider, waiter.model, waiter.tokens, waiter.payer))

    def _begin(self, provider: _Provider, model: str, tokens: float, payer: Payer | None = None) -> Slot:
        now = self._clock()
        if provider.requests is not None:
            provider.requests.take(1, now=now)
        if provider.tokens is not None:
            provider.tokens.take(tokens, now=now)
        provider.in_flight += 1
        self._model(model).in_flight += 1
        return Slot(model, tokens, payer)

    @staticmethod
    def _correct(provider: _Provider, slot: Slot, by: float) -> None:
        if slot.payer is not None and by:
            provider.queue.correct(slot.payer, by=by)

    @staticmethod
    def _cost(provider: _Provider, tokens: float) -> float:
        """Seconds of the provider that a call takes: of its tokens or of its requests, whichever are more.

        The dominant share of Ghodsi et al. 2011. Without a limit of either, calls are counted.
        """
        limits = provider.limits
        by_request = 60 / limits.requests_per_minute if limits.requests_per_minute else 0.0
        by_tokens = tokens * 60 / limits.tokens_per_minute if limits.tokens_per_minute else 0.0
        return max(by_request, by_tokens) or 1.0

    def _is_full(self, name: str) -> bool:
        model = self._model(name)
        return not model.adaptive.admits(model.in_flight)

    def _wait_seconds(self, provider: _Provider, tokens: float) -> float:
        """0: at once; infinite: until a call ends."""
        most = provider.limits.max_concurrent
        if most is not None and provider.in_flight >= max(most // self._gateways, 1):
            return math.inf
        now = self._clock()
        wait = provider.requests.wait_seconds(1, now=now) if provider.requests is not None else 0.0
        return max(wait, provider.tokens.wait_seconds(tokens, now=now)) if provider.tokens is not None else wait

    def _estimate(self, model: str, least_tokens: int) -> float:
        return max(self._model(model).mean_tokens, least_tokens, 1.0)

    def _model(self, name: str) -> _Model:
        found = self._models.get(name)
        if found is None:
            found = self._models[name] = _Model()
        return found

    def _provider(self, model: str) -> _Provider:
        name = model.partition(":")[0]
        found = self._providers.get(name)
        if found is None:
            limits = self._limits.get(name, _NO_LIMITS)
            found = self._providers[name] = _Provider(
                limits,
                SharedQueue(lambda tenant: self._tenants[tenant].weight if tenant in self._tenants else 1.0),
                requests=self._bucket(limits.requests_per_minute),
                tokens=self._bucket(limits.tokens_per_minute),
            )
        return found

    def _bucket(self, per_minute: int | None) -> TokenBucket | None:
        return None if per_minute is None else TokenBucket(per_minute / self._gateways, now=self._clock())
