"""Clears one resource for one interval: a uniform-price auction above guaranteed floors, pure and deterministic.

Whoever offers most per basis point is served first, until nothing is left; the last one served may get a part. All pay
one price: that of the best offer which was not served whole, or nothing when all were. So nobody pays more than was
offered, and a bidder who wants one unit gains nothing by offering another price than what it is worth to it: its own
offer decides whether it wins and never what it pays (Vickrey's argument, for units that are alike). Who wants several
units may gain by asking for fewer, as in every uniform-price auction; that is the price of one price for all.

Equal offers are served in an order that follows from the interval and the bid and that nobody can choose, since
whoever could would be the first in every interval.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from schemas.market import WHOLE, Bid


@dataclass(frozen=True)
class Award:
    """What a bid has won."""

    bid_id: str
    agent: str
    share: int
    """Basis points, at most what was bid for."""
    cost: int
    """Micro-credits: the share at the clearing price."""


@dataclass(frozen=True)
class Clearing:
    """How a resource was shared out."""

    price: int
    """Micro-credits per basis point; 0 when there was enough for everybody."""
    awards: tuple[Award, ...]
    """Of the bids that won something, best offer first."""
    shares: Mapping[str, int]
    """Agent → its floor and what it has won; at most 10,000 together."""
    left: int
    """Basis points that nobody wanted."""


def clear(bids: Collection[Bid], *, floors: Mapping[str, int], interval: str) -> Clearing:
    """Share out what the floors leave.

    Args:
        bids: For this resource, at most one per agent; all of them affordable.
        floors: Agent → basis points that it has in any case, at no cost.
        interval: Names the interval; it decides between equal offers.

    Raises:
        ValueError: the floors are more than the whole or one is negative, two bids are one agent's, or they are for
            different resources.
    """
    left = _above(floors)
    if len({bid.agent for bid in bids}) < len(bids) or len({bid.resource for bid in bids}) > 1:
        raise ValueError("one bid per agent, and one resource per auction")
    price, won = 0, []
    for bid in sorted(bids, key=lambda bid: (-bid.price, _lot(interval, bid.bid_id))):
        share = min(bid.share, left)
        left -= share
        if share:
            won.append((bid, share))
        if share < bid.share:
            price = bid.price
            break
    awards = tuple(Award(bid.bid_id, bid.agent, share, share * price) for bid, share in won)
    shares = dict(floors)
    for award in awards:
        shares[award.agent] = shares.get(award.agent, 0) + award.share
    return Clearing(price=price, awards=awards, shares=shares, left=left)


def _above(floors: Mapping[str, int]) -> int:
    if any(floor < 0 for floor in floors.values()) or (left := WHOLE - sum(floors.values())) < 0:
        raise ValueError(f"the floors are {sum(floors.values()):,} of {WHOLE:,} basis points")
    return left


def _lot(interval: str, bid_id: str) -> bytes:
    return hashlib.blake2b(f"{interval}\0{bid_id}".encode(), digest_size=8).digest()
