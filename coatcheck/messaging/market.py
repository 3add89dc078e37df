"""The shares of a resource as an agent's worker knows them: read when they are needed, from a copy that is not old.

An agent may read the bucket `market_prices` and not follow it. Without NATS or the bucket the last known price is
used until it expires, and its floors after that; without any, nothing is shared out. Nobody waits for longer than a
second.
"""

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from pydantic import ValidationError

from coatcheck.errors import CoatcheckError, StreamMissingError
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.keyvalue import kv_get
from schemas.market import MARKET_PRICES, MarketPrice, market_key

FRESH_SECONDS: Final = 15.0
"""A quarter of the market's usual interval."""
READ_SECONDS: Final = 1.0
"""Most time that a read may take; it takes 2 ms."""

_log = logging.getLogger(__name__)


class ShareReader:
    """Reads the shares of one resource.

    Args:
        client: Any identity.
        resource: Such as `check_cpu`.
    """

    def __init__(self, client: NatsClient, resource: str) -> None:
        self._client = client
        self._key = market_key(resource)
        self._price: MarketPrice | None = None
        self._read_at = float("-inf")

    async def shares(self) -> Mapping[str, int]:
        """Agent → basis points now; empty when nothing is shared out."""
        now = asyncio.get_running_loop().time()
        if now - self._read_at > FRESH_SECONDS:
            self._read_at = now
            await self._read()
        return {} if self._price is None else self._price.held(datetime.now(UTC))

    async def _read(self) -> None:
        try:
            async with asyncio.timeout(READ_SECONDS):
                data, _ = await kv_get(self._client, MARKET_PRICES, self._key) or (b"", 0)
            self._price = MarketPrice.model_validate_json(data) if data else None
        except StreamMissingError:
            self._price = None  # as before there was a market
        except (CoatcheckError, TimeoutError, ValidationError) as error:
            _log.warning("the price of %s is not read: %s", self._key, error or type(error).__name__)
