"""Reads the audit log by sequence and says which day an event belongs to.

A day is a function of what is stored, never of when somebody exports: the UTC day on which an event happened, unless
that day was over for more than `GRACE` when the server stored it; then the latest day that was not. So a day is closed
once the log goes on for longer than that after it, and no later event can belong to it.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from coatcheck.errors import DeliverableNotFoundError
from coatcheck.messaging.client import NatsClient, StoredMessage
from coatcheck.messaging.events import EventLog, StoredEvent
from coatcheck.training.facts import ROUND_ENDS, RUN_ENDS, RunFacts
from schemas.events import EventInvalidError, ToolCompleted, read_event
from schemas.streams import AUDIT_LOG

GRACE: Final = timedelta(hours=6)
"""Turns are told when their round ends, which takes an hour at most unless it is parked; judges speak after the run."""
MARGIN: Final = timedelta(hours=1)
"""Times in a stream follow its sequences but for steps of the server's clock, of which we allow so much."""
IN_FLIGHT: Final = 128
"""Reads under way at once: 5 times as fast as one after the other, and at most 8 MB."""
KEPT_RUNS: Final = 256
"""Runs whose facts are kept in memory, each a few KB; more than the runs of one block of reads."""
_ALL: Final = AUDIT_LOG.subjects[0]
_NEED_FACTS: Final = (*ROUND_ENDS, *RUN_ENDS, ToolCompleted)


@dataclass
class _Folded:
    """Facts, and the sequence up to which the log was read for them."""

    facts: RunFacts
    until: int = 0


@dataclass(frozen=True)
class Bounds:
    """The part of the log that there is to read."""

    first: int
    last: int

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it."""
        return self.last < self.first


@dataclass(frozen=True)
class DayRange:
    """Where the events of one day lie among others."""

    day: date
    first: int
    last: int
    """What was stored later is not looked at, not even for the outcome of a run of that day."""
    is_closed: bool


class AuditLog:
    """The log as it was when `bounds` was asked."""

    def __init__(self, client: NatsClient) -> None:
        self._client = client
        self._log = EventLog(client)
        self._runs: dict[str, _Folded] = {}
        self.unreadable = 0
        """Messages that are no events; a projector has put them among the dead letters."""

    async def bounds(self) -> Bounds:
        """The first and the last sequence now; raises as `NatsClient.api` does."""
        state = (await self._client.api(f"STREAM.INFO.{AUDIT_LOG.name}"))["state"]
        return Bounds(state["first_seq"], state["last_seq"])

    async def days(self, bounds: Bounds, *, since: date | None = None, until: date | None = None) -> list[date]:
        """Every day that may have events, in order."""
        if bounds.is_empty:
            return []
        first, last = await self._stored_at(bounds.first), await self._stored_at(bounds.last)
        start = max(since or date.min, (first - GRACE - MARGIN).date())
        end = min(until or date.max, (last + MARGIN).date())
        return [start + timedelta(days=number) for number in range((end - start).days + 1)]

    async def range_of(self, day: date, bounds: Bounds) -> DayRange:
        """Where to look for the events of a day, found in a few reads."""
        begin = datetime.combine(day, time(), UTC)
        end = begin + timedelta(days=1) + GRACE
        first = await self._first_stored_at(begin - MARGIN, bounds)
        last = await self._first_stored_at(end + MARGIN, bounds) - 1
        return DayRange(day, first, last, is_closed=last < bounds.last)

    async def read(self, span: DayRange) -> AsyncGenerator[StoredEvent]:
        """The day's events, in order."""
        for start in range(span.first, span.last + 1, IN_FLIGHT):
            sequences = range(start, min(start + IN_FLIGHT, span.last + 1))
            messages = await asyncio.gather(*(self._message(sequence) for sequence in sequences))
            events = [event for message in messages if message is not None and (event := self._event(message))]
            events = [event for event in events if day_of(event) == span.day]
            # Beforehand and side by side, which is several times as fast as one run after the other.
            runs = {item.event.correlation_id for item in events if isinstance(item.event, _NEED_FACTS)}
            await asyncio.gather(*(self.facts(run, span.last) for run in sorted(runs)))
            for event in events:
                yield event

    async def facts(self, run_key: str, until: int) -> RunFacts:
        """What the events of a run up to a sequence say. Days are asked for in their order, so facts only grow."""
        folded = self._runs.pop(run_key, None)
        if folded is None or folded.until > until:
            folded = _Folded(RunFacts(run_key))
        if folded.until < until:
            async for stored in self._log.read_run(run_key, from_sequence=folded.until + 1):
                if stored.sequence > until:
                    break
                folded.facts.add(stored.sequence, stored.event)
            folded.until = until
        while len(self._runs) >= KEPT_RUNS:
            del self._runs[next(iter(self._runs))]
        self._runs[run_key] = folded
        return folded.facts

    async def _first_stored_at(self, moment: datetime, bounds: Bounds) -> int:
        """The first sequence that was stored at or after a moment, or the one after the last."""
        low, high = bounds.first, bounds.last + 1
        while low < high:
            middle = (low + high) // 2
            message = await self._next(middle)
            if message is None or message.sequence >= high:
                high = middle
            elif message.stored_at < moment:
                low = message.sequence + 1
            else:
                high = middle
        return low

    async def _stored_at(self, sequence: int) -> datetime:
        message = await self._next(sequence)
        assert message is not None
        return message.stored_at

    async def _next(self, sequence: int) -> StoredMessage | None:
        """The first message at or after a sequence, since there may be gaps."""
        try:
            return await self._client.fetch_next(AUDIT_LOG.name, _ALL, sequence)
        except DeliverableNotFoundError:
            return None

    async def _message(self, sequence: int) -> StoredMessage | None:
        try:
            return await self._client.fetch_by_sequence(AUDIT_LOG.name, sequence)
        except DeliverableNotFoundError:
            return None

    def _event(self, message: StoredMessage) -> StoredEvent | None:
        try:
            event = read_event(message.data)
        except EventInvalidError:
            self.unreadable += 1
            return None
        return StoredEvent(message.sequence, message.stored_at, message.subject, message.headers, event)


def day_of(stored: StoredEvent) -> date:
    """The day in whose files an event is."""
    earliest, latest = (stored.stored_at - GRACE).astimezone(UTC).date(), stored.stored_at.astimezone(UTC).date()
    occurred = stored.event.occurred_at
    happened = (occurred if occurred.tzinfo else occurred.replace(tzinfo=UTC)).astimezone(UTC).date()
    return min(max(happened, earliest), latest)
