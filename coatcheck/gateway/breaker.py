"""The circuit breaker of one model as a value: who may ask now, and what a failure, a probe or an answer makes of it.

Pure: no clock, no I/O. `breaker_board` shares the value between gateways by compare and set, which is why it is a
value and why each step says "nothing changes" by `None`: of many gateways that meet the same outage, one opens the
breaker, and the others find it open.

    closed ── trip ──► open ── until is over, one asks ──► half_open ── answer ──► closed
                        ▲                                      │
                        └────────────── trip ──────────────────┘

Evidence that is older than the state says nothing about it: a call begun before the breaker closed cannot open it.
"""

from enum import StrEnum
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

RATE_LIMIT_SECONDS: Final = 5.0
"""After a 429 that names no time; doubled each time it is answered again."""
LONGEST_RATE_LIMIT_SECONDS: Final = 60.0
"""Providers count by the minute."""
LONGEST_OUTAGE_SECONDS: Final = 300.0
"""Most outages end within the hour; found out 5 minutes late, at the cost of one call per 5 minutes."""
REFUSED_SECONDS: Final = 300.0
"""A key, a quota or a model's name is mended by people."""
LONGEST_RETRY_AFTER_SECONDS: Final = 3600.0
"""A provider that says "tomorrow" is asked once an hour all the same."""
PROBE_SECONDS: Final = 30.0
"""How long a probe keeps others out; a gateway that dies with it does so no longer. Most answers take less."""
_WORTH_EXTENDING_SECONDS: Final = 1.0
"""A hundred 429s of one burst name times that differ by fractions of a second."""


class Cause(StrEnum):
    """Why a breaker is open."""

    RATE_LIMIT = "rate_limit"
    """429, or any refusal that names its end."""
    OUTAGE = "outage"
    """Failed calls in a row."""
    REFUSED = "refused"
    """Key, quota or name: waiting mends nothing, so it closes the model only in favour of others."""


class BreakerState(BaseModel):
    """What is stored in KV under the model; times are seconds since 1970, so gateways need clocks that agree."""

    model_config = ConfigDict(frozen=True)

    state: Literal["closed", "open", "half_open"] = "closed"
    until: float = 0.0
    """Open: when one call may try again. Half-open: until when the call that tries keeps the others out."""
    since: float = 0.0
    """When it came into this state."""
    opens: int = 0
    """How often it has opened since it was first stored."""
    streak: int = 0
    """How often of those in a row for the same cause, without an answer in between."""
    cause: Cause | None = None
    reason: str = ""
    """For people: the provider's words."""
    recovered: float | None = None
    """When an answer last closed it; `None` when none has, or when that is not known."""

    def closed(self) -> bool:
        """Whether anybody may ask."""
        return self.state == "closed"

    def may_probe(self, now: float) -> bool:
        """Whether one may try, who has to take the probe first."""
        return self.state != "closed" and self.until <= now


def trip(
    state: BreakerState,
    *,
    now: float,
    began: float,
    cause: Cause,
    reason: str,
    retry_after: float | None,
    base_seconds: float,
) -> BreakerState | None:
    """Open the breaker, or keep it open for longer, after a failed call.

    Args:
        state: What it is.
        now: Seconds since 1970, as `began`.
        began: When the call was begun.
        cause: Of the failure.
        reason: For people.
        retry_after: What the provider asked for, in seconds.
        base_seconds: How long a first outage closes the model.

    Returns:
        The new state, or `None` when the failure changes nothing.
    """
    if retry_after is not None:
        retry_after = min(max(retry_after, 0.0), LONGEST_RETRY_AFTER_SECONDS)
    if state.state == "open" and state.until > now:
        later = now + (retry_after or 0.0)
        return state.model_copy(update={"until": later}) if later > state.until + _WORTH_EXTENDING_SECONDS else None
    if began < state.since:
        return None
    streak = state.streak if cause is state.cause else 0
    wait = retry_after if retry_after is not None else _wait_seconds(cause, streak, base_seconds)
    return BreakerState(
        state="open",
        until=now + wait,
        since=now,
        opens=state.opens + 1,
        streak=streak + 1,
        cause=cause,
        reason=reason,
        recovered=state.recovered,
    )


def probe(state: BreakerState, *, now: float) -> BreakerState | None:
    """Take the one call that may try; `None` when it is not time, or somebody else has it."""
    if not state.may_probe(now):
        return None
    return state.model_copy(update={"state": "half_open", "since": now, "until": now + PROBE_SECONDS})


def give_back(state: BreakerState, *, now: float, taken: float) -> BreakerState | None:
    """Return a probe that came to nothing, because its turn needed no call; the next one may try at once."""
    if state.state != "half_open" or state.since != taken:
        return None
    return state.model_copy(update={"state": "open", "since": now, "until": now})


def recover(state: BreakerState, *, now: float, began: float) -> BreakerState | None:
    """Close the breaker after an answer to a call that was begun in this state; `None` when that changes nothing.

    A call that slipped in, because its gateway had not heard yet, does not cut a Retry-After short.
    """
    is_told_to_wait = state.state == "open" and state.until > now and state.cause is Cause.RATE_LIMIT
    if state.closed() or began < state.since or is_told_to_wait:
        return None
    return BreakerState(since=now, opens=state.opens, recovered=now)


def _wait_seconds(cause: Cause, streak: int, base_seconds: float) -> float:
    if cause is Cause.REFUSED:
        return REFUSED_SECONDS
    first, longest = (
        (RATE_LIMIT_SECONDS, LONGEST_RATE_LIMIT_SECONDS)
        if cause is Cause.RATE_LIMIT
        else (base_seconds, max(base_seconds, LONGEST_OUTAGE_SECONDS))
    )
    return float(min(first * 2 ** min(streak, 10), longest))
