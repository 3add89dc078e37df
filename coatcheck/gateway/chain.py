"""Which model of a chain answers a turn, and when: breakers and capacity together.

The first model whose breaker is closed is asked; one whose window is over is asked by a single turn, its probe. A turn
waits here for a place (20 s at most, fairly by agent and tenant) and for a breaker that will be over in a moment (2 s);
whatever takes longer is *parked*: the stage waits in its workflow, where waiting takes neither a slot nor an attempt.

A model that was refused for good (key, quota, name) is passed over in favour of the others. When there is no other, it
is asked all the same, and the run fails with the provider's own words instead of waiting for nothing.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coatcheck.gateway.breaker import BreakerState, Cause
from coatcheck.gateway.breaker_board import BreakerBoard
from coatcheck.gateway.capacity import Capacity, Slot
from coatcheck.gateway.provider_errors import Blame, ProviderFailure
from coatcheck.gateway.shares import Payer

INSIDE_SECONDS = 2.0
"""A shorter wait is not worth the events that parking leaves in a history."""
QUEUE_SECONDS = 20.0
"""Most that one request waits here, for whatever; its agent's worker keeps a slot for it meanwhile."""
PROBE_AGAIN_SECONDS = 5.0
"""When to come back while another turn's probe is under way: an answer takes about as long."""
MAX_REASON_CHARACTERS = 500
MAX_PLACES_KEPT = 10_000
"""Turns in the queue's order that have been parked; enough for every stage of 1,000 runs."""
_SPREAD = 0.25
"""Of a wait, added by chance, so that those who wait for the same moment do not all come at it."""


@dataclass(frozen=True)
class Permit:
    """Leave for one call of one model; to be ended by `answered` and then `succeeded`, by `failed` or by `unused`."""

    model: str
    slot: Slot
    began: float
    """Seconds since 1970."""
    is_probe: bool = False


@dataclass(frozen=True)
class Parked:
    """No model may be asked for a while."""

    reason: str
    retry_after_seconds: float


class ModelChain:
    """Gives out permits and learns from what became of them.

    Args:
        board: The breakers.
        capacity: The places.
        chance: Between 0 and 1; spreads waits.
    """

    def __init__(self, board: BreakerBoard, capacity: Capacity, *, chance: Callable[[], float] = random.random) -> None:
        self._board = board
        self._capacity = capacity
        self._chance = chance
        self._first_come: dict[str, float] = {}
        """Turn → when it first came, so that one that was parked has not lost its place."""
        self.closing = False
        """Whether this gateway is stopping."""
        board.listen(self._on_change)

    def share_with(self, gateways: int) -> None:
        """Divide the limits by the number of living gateways."""
        self._capacity.share_with(gateways)

    def close(self) -> None:
        """Let nobody wait any longer: this gateway is stopping."""
        self.closing = True
        self._capacity.send_away()

    def permit_now(self, models: Sequence[str], *, least_tokens: int) -> Permit | None:
        """The usual case: the first model is closed and has room. A look into two dictionaries."""
        model = models[0]
        if not self._board.knows(model) or not self._board.state(model).closed():
            return None
        slot = self._capacity.enter_now(model, least_tokens=least_tokens)
        return None if slot is None else Permit(model, slot, self._board.now())

    async def permit(
        self, models: Sequence[str], *, turn: str, payer: Payer, give_up: float, least_tokens: int
    ) -> Permit | Parked:
        """Wait for leave to ask one of the models.

        Args:
            models: In order of preference.
            turn: Names the turn; it keeps its place in the queue when it comes back after having been parked.
            payer: Which agent asks, and which tenant pays.
            give_up: When waiting here ends, on the loop's clock.
            least_tokens: What the call takes at least.
        """
        clock = asyncio.get_running_loop().time
        came = self._first_come.setdefault(turn, clock())
        for model in models:
            if not self._board.knows(model):
                await self._board.load(model)
        found: Permit | Parked | None = None
        while found is None:
            left = give_up - clock()
            if self.closing:
                found = self._parked("the gateway is stopping", 1.0)
            else:
                found = await self._choose(models, payer=payer, came=came, left=left, least_tokens=least_tokens)
        if isinstance(found, Permit):
            self._first_come.pop(turn, None)
        self._forget_the_oldest()
        return found

    async def _choose(
        self, models: Sequence[str], *, payer: Payer, came: float, left: float, least_tokens: int
    ) -> Permit | Parked | None:
        """One look at the chain; `None`: something has changed, look again."""
        for model in self._candidates(models):
            state = self._board.state(model)
            if state.closed():
                return await self._queue(model, payer=payer, came=came, left=left, least_tokens=least_tokens)
            if state.may_probe(self._board.now()):
                began = await self._board.take_probe(model)
                if began is None:
                    return None
                return Permit(model, self._capacity.enter_anyway(model, least_tokens=least_tokens), began, True)
        if all(self._is_refused(model) for model in models):
            slot = self._capacity.enter_anyway(models[0], least_tokens=least_tokens)
            return Permit(models[0], slot, self._board.now())
        return await self._wait(models, left)

    def _candidates(self, models: Sequence[str]) -> Sequence[str]:
        return [model for model in models if not self._is_refused(model)]

    def _is_refused(self, model: str) -> bool:
        """Closed by key, quota or name, and not yet to be tried again."""
        state = self._board.state(model)
        return state.cause is Cause.REFUSED and not state.closed() and not state.may_probe(self._board.now())

    async def _queue(
        self, model: str, *, payer: Payer, came: float, left: float, least_tokens: int
    ) -> Permit | Parked | None:
        try:
            slot = await self._capacity.enter(
                model, payer=payer, order=came, patience_seconds=max(left, 0.0), least_tokens=least_tokens
            )
        except TimeoutError:
            return self._parked(f"{model} is asked by others for as long as its limits allow", QUEUE_SECONDS / 2)
        if slot is None:
            return None
        if not self._board.state(model).closed():  # it has opened between the place and here
            self._capacity.leave(slot)
            return None
        return Permit(model, slot, self._board.now())

    async def _wait(self, models: Sequence[str], left: float) -> Parked | None:
        """Wait for a breaker that will be over soon, or park until the first one is."""
        now = self._board.now()
        states = {model: self._board.state(model) for model in self._candidates(models)}
        probed = any(state.state == "half_open" for state in states.values())
        wait = min(state.until for state in states.values()) - now
        if probed:
            wait = min(wait, PROBE_AGAIN_SECONDS)
        if left > 0 and not self.closing and (probed or wait <= INSIDE_SECONDS):
            before = self._board.changes
            patience = min(INSIDE_SECONDS, left) if probed else min(wait, left) + 0.05 * self._chance()
            await self._board.changed(timeout_seconds=patience)
            if not probed or self._board.changes != before:
                return None
        return self._parked("; ".join(_closed(model, state) for model, state in states.items()), wait)

    def _parked(self, reason: str, wait: float) -> Parked:
        wait = max(wait, 1.0)
        return Parked(reason[:MAX_REASON_CHARACTERS], wait + max(wait * _SPREAD, 1.0) * self._chance())

    def _forget_the_oldest(self) -> None:
        while len(self._first_come) > MAX_PLACES_KEPT:
            del self._first_come[next(iter(self._first_come))]

    def answered(self, permit: Permit, *, tokens: int) -> None:
        """The model answered: its place is free at once. The breakers learn it by `succeeded`, which takes I/O."""
        self._capacity.leave(permit.slot, tokens=tokens, succeeded=True)

    async def succeeded(self, permit: Permit) -> None:
        """The answer is safe: tell the breakers."""
        await self._board.succeed(permit.model, began=permit.began)

    async def failed(self, permit: Permit, failure: ProviderFailure) -> bool:
        """The call failed; returns whether the breaker is open now, so that the turn is not to blame."""
        model, began = permit.model, permit.began
        try:
            match failure.blame:
                case Blame.BUSY:
                    await self._board.trip(
                        model,
                        began=began,
                        cause=Cause.RATE_LIMIT,
                        reason=failure.message,
                        retry_after=failure.retry_after_seconds,
                    )
                case Blame.REFUSED:
                    await self._board.trip(model, began=began, cause=Cause.REFUSED, reason=failure.message)
                case Blame.OUTAGE:
                    await self._board.fail(model, began=began, reason=failure.message)
                case Blame.REQUEST:  # it has read the request, so it is there
                    await self._board.succeed(model, began=began)
                case Blame.FIT if permit.is_probe:
                    await self._board.give_back(model, taken=began)
        finally:
            self._capacity.leave(permit.slot)
        return not self._board.state(model).closed()

    async def unused(self, permit: Permit) -> None:
        """No call was made."""
        self._capacity.give_back(permit.slot)
        if permit.is_probe:
            await self._board.give_back(permit.model, taken=permit.began)

    def has_recovered(self, model: str, *, within_seconds: float) -> bool:
        """Whether an answer has closed the model's breaker, at most so long ago."""
        recovered = self._board.state(model).recovered
        return recovered is not None and recovered > self._board.now() - within_seconds

    def is_closed(self, model: str) -> bool:
        """Whether the breaker lets everybody ask the model."""
        return self._board.state(model).closed()

    def _on_change(self, model: str, before: BreakerState, now: BreakerState) -> None:
        if now.opens > before.opens and now.cause is Cause.RATE_LIMIT:
            self._capacity.overloaded(model)
        if not now.closed():
            self._capacity.send_away(model)


def _closed(model: str, state: BreakerState) -> str:
    return f"{model} is closed for now: {state.reason}"
