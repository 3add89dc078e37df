"""`EventLog`: publish to the audit log, read one run's events, follow a run.

Readers need no consumer, since an identity outside the hub's account may have none: the server itself filters by the
run's subjects, one request per event (0.3 ms). What the server repeats on the live subjects wakes a follower and is
not used otherwise. A plain subscription loses messages while it is away, so everything is read from the stream, and a
follower looks there now and then whether it was woken or not.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import quote

from nats.aio.msg import Msg

from coatcheck.errors import DeliverableNotFoundError, MessagingUnavailableError
from coatcheck.messaging.client import NatsClient, StoredMessage
from coatcheck.telemetry.scope import working_on
from schemas.deliverable import HEADER_SCHEMA, HEADER_TASK
from schemas.events import SCHEMA, Event, EventInvalidError, UnknownEvent, event_subject, read_event, run_events
from schemas.streams import AUDIT_LOG, live_subject
from schemas.tracing import HEADER_TRACEPARENT

MAX_IN_FLIGHT: Final = 256
"""Publishes that wait for their acknowledgement at once."""
LOOK_SECONDS: Final = 2.0
"""How long a follower sleeps at most: what was repeated while its connection was away did not wake it."""

_HEADER_SAFE: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One event as the audit log holds it."""

    sequence: int
    """In the stream: the order of everything that happened, here and across runs."""
    stored_at: datetime
    """By the NATS server's clock."""
    subject: str
    headers: Mapping[str, str]
    event: Event | UnknownEvent


class EventLog:
    """The audit log through one identity's connection.

    Args:
        client: `core` publishes and reads; `observer` and `judge` read.
        look_seconds: How long a follower sleeps at most.
    """

    def __init__(self, client: NatsClient, *, look_seconds: float = LOOK_SECONDS) -> None:
        self._client = client
        self._look_seconds = look_seconds

    async def publish(self, events: Sequence[Event]) -> None:
        """Store events; idempotent by event id.

        They are sent in order over one connection, so the stream has them in that order unless one had to be
        repeated; nobody may rely on it.

        Raises:
            MessagingUnavailableError: at least one is indeterminate, whatever became of the others: publish all again.
            DeliverableTooLargeError: one does not fit into the stream; the others were tried.
            NotAuthorizedError: this identity may not publish events.
            MessagingRefusedError: the stream refused one.
        """
        slots = asyncio.Semaphore(MAX_IN_FLIGHT)

        async def store(event: Event) -> None:
            task = event.entity_id if event.entity_type == "task" else ""
            async with slots:
                with working_on(event.correlation_id, task):
                    await self._client.publish(
                        event.subject,
                        event.to_wire(),
                        message_id=event.event_id,
                        stream=AUDIT_LOG.name,
                        headers=_event_headers(event),
                    )

        done = await asyncio.gather(*(store(event) for event in events), return_exceptions=True)
        failures = [result for result in done if isinstance(result, BaseException)]
        # What no repetition will mend comes first, or the caller would repeat for ever.
        for failure in sorted(failures, key=lambda error: isinstance(error, MessagingUnavailableError)):
            raise failure

    async def read_run(
        self, correlation_id: str, *, from_sequence: int = 1, types: Collection[str] | None = None
    ) -> AsyncGenerator[StoredEvent]:
        """The events of one run that are stored now, in order.

        Args:
            correlation_id: The run key.
            from_sequence: The first sequence of the stream to look at.
            types: Only these event types.

        Raises:
            StreamMissingError: there is no audit log.
            NotAuthorizedError: this identity may not read it.
            MessagingUnavailableError: no answer; go on after the last sequence that was seen.
        """
        pattern = _pattern(correlation_id, types)
        sequence = from_sequence
        while (message := await self._next(pattern, sequence)) is not None:
            sequence = message.sequence + 1
            stored = _parse(message)
            if stored is not None and (types is None or stored.event.event_type in types):
                yield stored

    async def follow_run(
        self, correlation_id: str, *, from_sequence: int = 1, types: Collection[str] | None = None
    ) -> AsyncGenerator[StoredEvent]:
        """The events of one run, stored and to come: in order, none twice, none left out; never ends by itself.

        An outage of NATS is waited for. Close it with `contextlib.aclosing`, or its subscription lives on.

        Args:
            correlation_id: The run key.
            from_sequence: The first sequence of the stream to look at.
            types: Only these event types.

        Raises:
            StreamMissingError: there is no audit log.
            NotAuthorizedError: this identity may not read or follow it.
            MessagingUnavailableError: NATS is away from the beginning.
        """
        stirred = asyncio.Event()

        async def wake(_: Msg) -> None:
            stirred.set()

        subscription = await self._client.subscribe(live_subject(_pattern(correlation_id, types)), wake)
        sequence = from_sequence
        try:
            while True:
                stirred.clear()
                try:
                    async for stored in self.read_run(correlation_id, from_sequence=sequence, types=types):
                        sequence = stored.sequence + 1
                        yield stored
                except MessagingUnavailableError as error:
                    _log.info("the audit log cannot be read, trying again: %s", error)
                await _either(stirred, self._look_seconds)
        finally:
            await self._client.unsubscribe(subscription)

    async def _next(self, pattern: str, sequence: int) -> StoredMessage | None:
        try:
            return await self._client.fetch_next(AUDIT_LOG.name, pattern, sequence)
        except DeliverableNotFoundError:
            return None


async def _either(stirred: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stirred.wait()
    except TimeoutError:
        pass


def _pattern(correlation_id: str, types: Collection[str] | None) -> str:
    """What the server filters by; of several types it sends all, and the reader picks."""
    if types is not None and len(types) == 1:
        return event_subject("*", "*", next(iter(types)), correlation_id)
    return run_events(correlation_id)


def read_stored(message: StoredMessage) -> Event | UnknownEvent:
    """The event of a message, with the trace context of its headers.

    Raises:
        EventInvalidError: it is no event.
    """
    event = read_event(message.data)
    traceparent = message.headers.get(HEADER_TRACEPARENT)
    return event.model_copy(update={"traceparent": traceparent}) if traceparent else event


def _parse(message: StoredMessage) -> StoredEvent | None:
    try:
        event = read_stored(message)
    except EventInvalidError as error:
        _log.warning("%s.%d is no event: %s", message.stream, message.sequence, error)
        return None
    return StoredEvent(message.sequence, message.stored_at, message.subject, message.headers, event)


def _event_headers(event: Event) -> dict[str, str]:
    headers = {HEADER_SCHEMA: SCHEMA}
    if event.entity_type == "task":
        headers[HEADER_TASK] = quote(event.entity_id, safe=_HEADER_SAFE)
    return headers
