"""How the market divides providers among agents, as this gateway knows it: the bucket `market_prices`, followed.

Everything happens beside the calls. Without NATS, the bucket or the market the last known shares hold until they
expire and the floors after that; a provider that no market has ever cleared is undivided.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, Self

from pydantic import ValidationError

from coatcheck.errors import CoatcheckError, StreamMissingError
from coatcheck.gateway.capacity import Division
from coatcheck.messaging.client import ClientSubscription, NatsClient
from coatcheck.messaging.keyvalue import kv_follow, kv_get
from schemas.market import MARKET_PRICES, MarketPrice, market_key

REREAD_SECONDS: Final = 15.0
"""Changes during an outage of NATS are not repeated, and a client reconnects without telling: read again."""
LAST_SECONDS: Final = 1.0
"""For a read in hand when all ends: nats-py swallows a cancellation that meets it in its flush."""

OnDivision = Callable[[str, Division], None]
"""Provider, and how it is divided from now on."""

_log = logging.getLogger(__name__)


class MarketBoard:
    """An async context manager that follows the shares of some providers.

    Args:
        client: The gateway's.
        on_division: Called with each change.
        providers: The part of a model's name before the colon.
    """

    def __init__(self, client: NatsClient, on_division: OnDivision, providers: Iterable[str]) -> None:
        self._client = client
        self._on_division = on_division
        self._providers = {market_key(f"llm:{provider}"): provider for provider in providers}
        self._revisions: dict[str, int] = {}
        self._subscription: ClientSubscription | None = None
        self._following: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._following = asyncio.create_task(self._follow(), name="market-prices")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._following is not None:
            await asyncio.wait({self._following}, timeout=LAST_SECONDS)
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        if self._subscription is not None:
            with contextlib.suppress(CoatcheckError):
                await self._client.unsubscribe(self._subscription)

    async def _follow(self) -> None:
        while not self._ended.is_set():
            try:
                if self._subscription is None:
                    self._subscription = await kv_follow(self._client, MARKET_PRICES, self._hear)
                for key in self._providers:
                    await self._read(key)
            except StreamMissingError:
                pass  # as before there was a market
            except CoatcheckError as error:
                _log.warning("the market's prices are not followed: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REREAD_SECONDS):
                    await self._ended.wait()

    async def _read(self, key: str) -> None:
        """Take what is stored, whatever its revision: a restored bucket begins anew. A change heard since is newer."""
        known = self._revisions.get(key)
        data, revision = await kv_get(self._client, MARKET_PRICES, key) or (b"", 0)
        if self._revisions.get(key) == known and revision != (known or 0):
            self._learn(key, data, revision)

    async def _hear(self, key: str, data: bytes, revision: int) -> None:
        if key in self._providers and revision > self._revisions.get(key, 0):
            self._learn(key, data, revision)

    def _learn(self, key: str, data: bytes, revision: int) -> None:
        provider = self._providers[key]
        self._revisions[key] = revision
        try:
            division = _division(MarketPrice.model_validate_json(data)) if data else Division()
        except ValidationError as error:  # written by another version
            _log.warning("the market's price of %s is not readable: %s", provider, error)
            return
        _log.debug("provider=%s shares=%s floors=%s", provider, division.shares, division.floors)
        self._on_division(provider, division)


def _division(price: MarketPrice) -> Division:
    left = price.expires_at.timestamp() - time.time()
    return Division(shares=price.shares, floors=price.floors, until=time.monotonic() + left)
