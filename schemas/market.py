"""What is bid for and what is granted: shares of a resource over an interval, in basis points of its capacity.

Percentages of a capacity and not units of it (seed 001, 2.2), so that a bid means the same when a provider raises a
limit or a machine gets more cores. Prices are integer micro-credits and come from bids alone.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from schemas.ledger import MOST_MICROCREDITS
from schemas.subjects import Slug

WHOLE: Final = 10_000
"""Basis points of a whole capacity; one is 0.01%."""

Share = Annotated[int, Field(strict=True, ge=1, le=WHOLE)]
UnitPrice = Annotated[int, Field(strict=True, ge=0, le=MOST_MICROCREDITS // WHOLE)]
"""Micro-credits of one basis point for the interval, so that a whole capacity still fits into one transfer."""


ResourceName = Annotated[str, Field(pattern=r"^(check_cpu|check_memory|llm:[a-z0-9_-]{1,50})$")]
"""A provider's tokens per minute, or what checks may use of the machine."""


class Bid(BaseModel):
    """What an agent would pay for a share of one resource in the next interval. It may be given a part of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bid_id: Annotated[str, Field(min_length=1, max_length=200)]
    agent: Slug
    resource: ResourceName
    share: Share
    price: UnitPrice
    """The most that one basis point may cost."""

    @property
    def worst_case(self) -> int:
        """Micro-credits that have to be reserved for it."""
        return self.share * self.price


MARKET_PRICES: Final = "market_prices"
"""The key-value bucket, and the table, of the last clearing of each resource."""


def market_key(resource: str) -> str:
    """The resource's key in `market_prices`, where a colon may not stand."""
    return resource.replace(":", ".")


class MarketPrice(BaseModel):
    """How a resource is shared out for an interval: what `market_prices` holds under `market_key`."""

    model_config = ConfigDict(frozen=True)

    resource: ResourceName
    interval: int
    """Number of the interval; a later clearing has a higher one."""
    price: UnitPrice
    """Of one basis point for the interval."""
    shares: Mapping[Slug, Annotated[int, Field(ge=0, le=WHOLE)]]
    """Agent → basis points, its floor included; at most `WHOLE` together."""
    floors: Mapping[Slug, Annotated[int, Field(ge=0, le=WHOLE)]]
    """What remains of `shares` once `expires_at` has passed and nothing was cleared since."""
    cleared_at: datetime
    expires_at: datetime

    def held(self, now: datetime) -> Mapping[str, int]:
        """Agent → basis points that it has now."""
        return self.shares if now < self.expires_at else self.floors
