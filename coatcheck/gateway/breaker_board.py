"""The breakers of all models, or MCP servers, shared by every gateway through the KV bucket `agent_state`.

A change is made in this process at once and then stored by compare and set. Whoever loses the race takes the other's
state and looks whether its own evidence still changes it: so a window is opened once, however many gateways and calls
meet the same refusal, and `opens` counts the windows. Changes of others arrive by the bucket's repeated subject.

Looking at a breaker is a look into a dictionary. Only a probe waits for the bucket, since one gateway alone may make
it, and not for longer than a second: without the bucket every gateway is on its own, and nothing stands still.
"""

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from pydantic import ValidationError

from coatcheck.errors import CoatcheckError, KeyChangedError
from coatcheck.gateway import breaker
from coatcheck.gateway.breaker import BreakerState, Cause
from coatcheck.messaging.client import ClientSubscription, NatsClient
from coatcheck.messaging.keyvalue import kv_follow, kv_get, kv_put
from schemas.agent_state import MODEL_PREFIX, breaker_key
from schemas.config import ProviderLimits
from schemas.streams import AGENT_STATE

STORE_SECONDS: Final = 1.0
"""Most time that the bucket may take; it takes 2 ms."""
AWAY_SECONDS: Final = 5.0
"""After a failure the bucket is left alone so long."""
REREAD_SECONDS: Final = 15.0
"""Changes during an outage of NATS are not repeated, and a client reconnects without telling: read again."""
_NO_LIMITS: Final = ProviderLimits()
_CLOSED: Final = BreakerState()

Step = Callable[[BreakerState], BreakerState | None]
OnChange = Callable[[str, BreakerState, BreakerState], None]
"""Model, state before, state now."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Entry:
    state: BreakerState = _CLOSED
    revision: int = 0
    """Of the stored value that this one is, or follows."""
    stored: bool = True


class BreakerBoard:
    """An async context manager; any number of them on one bucket.

    Args:
        client: Whose identity may put keys with the prefix; `None` keeps everything in this process.
        limits: Provider (or server) → when its breakers open, and for how long.
        prefix: Of the keys: models' or, for "model" read "server" below, MCP servers'.
        clock: Seconds since 1970, the same in every gateway.
    """

    def __init__(
        self,
        client: NatsClient | None,
        limits: Mapping[str, ProviderLimits],
        *,
        prefix: str = MODEL_PREFIX,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._limits = limits
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._names: dict[str, str] = {}
        """Key in the bucket → model; a long name cannot be read from its key."""
        self._failures: defaultdict[str, int] = defaultdict(int)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._away_until = 0.0
        self._changed = asyncio.Event()
        self.changes = 0
        """How often any breaker has changed."""
        self._on_change: list[OnChange] = []
        self._subscription: ClientSubscription | None = None
        self._rereading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._client is not None:
            self._subscription = await kv_follow(self._client, AGENT_STATE, self._hear, key=f"{self._prefix}>")
            self._rereading = asyncio.create_task(self._reread(), name="breakers-reread")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rereading is not None:
            self._rereading.cancel()
            await asyncio.gather(self._rereading, return_exceptions=True)
        if self._client is not None and self._subscription is not None:
            with contextlib.suppress(CoatcheckError):
                await self._client.unsubscribe(self._subscription)

    def now(self) -> float:
        """Seconds since 1970."""
        return self._clock()

    def listen(self, on_change: OnChange) -> None:
        """Call `on_change` for every change, whoever made it."""
        self._on_change.append(on_change)

    def knows(self, model: str) -> bool:
        """Whether the bucket has been asked for that model."""
        return model in self._entries

    async def load(self, model: str) -> None:
        """Ask the bucket for a model that is met for the first time; without it, the breaker is taken as closed."""
        async with self._locks[model]:
            if model not in self._entries:
                self._names[breaker_key(self._prefix, model)] = model
                self._entries[model] = _Entry()
                await self._fetch(model)

    def state(self, model: str) -> BreakerState:
        """The breaker as this gateway knows it."""
        entry = self._entries.get(model)
        return entry.state if entry is not None else _CLOSED

    async def changed(self, *, timeout_seconds: float) -> None:
        """Wait for a change of any breaker, or so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._changed.wait()

    async def trip(
        self, model: str, *, began: float, cause: Cause, reason: str, retry_after: float | None = None
    ) -> None:
        """Take a refusal that closes the model at once."""
        limits = self._limits.get(model.partition(":")[0], _NO_LIMITS)
        self._failures[model] = 0
        await self._change(
            model,
            lambda state: breaker.trip(
                state,
                now=self._clock(),
                began=began,
                cause=cause,
                reason=reason,
                retry_after=retry_after,
                base_seconds=limits.open_seconds,
            ),
        )

    async def fail(self, model: str, *, began: float, reason: str) -> None:
        """Take a failed call: enough of them in a row open the breaker, and one does when it was the probe."""
        limits = self._limits.get(model.partition(":")[0], _NO_LIMITS)
        self._failures[model] += 1
        if not self.state(model).closed() or self._failures[model] >= limits.failures_to_open:
            await self.trip(model, began=began, cause=Cause.OUTAGE, reason=reason)

    async def succeed(self, model: str, *, began: float) -> None:
        """Take an answer."""
        self._failures.pop(model, None)
        if not self.state(model).closed():
            await self._change(model, lambda state: breaker.recover(state, now=self._clock(), began=began))

    async def take_probe(self, model: str) -> float | None:
        """Take the one call that may try; returns when it began, or `None` when another has it."""
        taken: list[float] = []

        def step(state: BreakerState) -> BreakerState | None:
            taken.clear()
            probing = breaker.probe(state, now=self._clock())
            if probing is not None:
                taken.append(probing.since)
            return probing

        await self._change(model, step)
        return taken[0] if taken else None

    async def give_back(self, model: str, *, taken: float) -> None:
        """Return a probe for which no call was made."""
        await self._change(model, lambda state: breaker.give_back(state, now=self._clock(), taken=taken))

    async def _change(self, model: str, step: Step) -> None:
        """Make a change here at once, then for everybody; a lost race begins again from the other's state."""
        async with self._locks[model]:
            while True:
                entry = self._entries.get(model, _Entry())
                new = step(entry.state)
                if new is None:
                    return
                self._set(model, _Entry(new, entry.revision, stored=False))
                if await self._store(model, new, entry.revision):
                    return

    async def _store(self, model: str, state: BreakerState, revision: int) -> bool:
        """Put a state that follows `revision`; false when another was there first, which is known then."""
        if self._client is None or self._clock() < self._away_until:
            return True
        try:
            async with asyncio.timeout(STORE_SECONDS):
                stored = await kv_put(
                    self._client,
                    AGENT_STATE,
                    breaker_key(self._prefix, model),
                    state.model_dump_json().encode(),
                    expected_revision=revision,
                )
        except KeyChangedError:
            return not await self._fetch(model, overrule=True)
        except (CoatcheckError, TimeoutError) as error:
            self._is_away(error)
            return True
        if self._entries[model].revision <= stored:
            self._entries[model] = _Entry(state, stored)
        return True

    async def _fetch(self, model: str, *, overrule: bool = False) -> bool:
        """Read a model's state; false when the bucket is away."""
        if self._client is None:
            return False
        try:
            async with asyncio.timeout(STORE_SECONDS):
                found = await kv_get(self._client, AGENT_STATE, breaker_key(self._prefix, model))
        except (CoatcheckError, TimeoutError) as error:
            self._is_away(error)
            return False
        data, revision = found or (b"", 0)
        self._learn(model, data, revision, overrule=overrule)
        return True

    async def _hear(self, key: str, data: bytes, revision: int) -> None:
        model = self._names.get(key)  # one that is met later is read then
        if model is not None:
            self._learn(model, data, revision)

    def _learn(self, model: str, data: bytes, revision: int, *, overrule: bool = False) -> None:
        """Take what is stored when it is newer than what is known; `overrule` also drops a change that lost a race."""
        entry = self._entries.get(model, _Entry())
        if revision <= entry.revision and not (overrule and not entry.stored):
            return
        try:
            state = BreakerState.model_validate_json(data) if data else BreakerState()
        except ValidationError as error:  # written by another version
            _log.warning("the stored state of %s is not readable: %s", model, error)
            state = BreakerState()
        self._set(model, _Entry(state, revision))

    def _set(self, model: str, entry: _Entry) -> None:
        before = self.state(model)
        self._entries[model] = entry
        if entry.state == before:
            return
        _tell(self._prefix.rstrip("."), model, before, entry.state)
        for on_change in self._on_change:
            on_change(model, before, entry.state)
        self.changes += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def _is_away(self, error: Exception) -> None:
        if self._clock() >= self._away_until:
            _log.warning("breakers are not shared: %s", error or type(error).__name__)
        self._away_until = self._clock() + AWAY_SECONDS

    async def _reread(self) -> None:
        """Read every known model again for ever, and store what could not be stored."""
        while True:
            await asyncio.sleep(REREAD_SECONDS)
            for model in list(self._entries):
                await self.refresh(model)

    async def refresh(self, model: str) -> None:
        """Read a model's state again; an open window that could not be stored is stored now if it lasts longer."""
        async with self._locks[model]:
            mine = self._entries.get(model, _Entry())
            reached = await self._fetch(model, overrule=True)
        if reached and not mine.stored and mine.state.state == "open":
            await self._change(
                model, lambda found: mine.state if mine.state.until > max(found.until, self._clock()) else None
            )


def _tell(kind: str, name: str, before: BreakerState, now: BreakerState) -> None:
    """One line per change, for people and for counting: `breaker=… model=… until=… opens=… cause=…`, or `mcp=…`."""
    if (now.state, now.opens) == (before.state, before.opens):
        return
    _log.log(
        logging.WARNING if now.state == "open" else logging.INFO,
        "breaker=%s %s=%s until=%.3f opens=%d cause=%s reason=%s",
        *(now.state, kind, name, now.until, now.opens, now.cause or "-", now.reason or "-"),
    )
