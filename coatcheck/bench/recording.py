"""The events of one run as the audit log holds them, whole: what cannot be read is kept too, since it is a finding.

A recording is a file of JSON lines, one per message, so that a run can be judged again without its servers.
"""

import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Final, Self, TypeVar

from coatcheck.errors import DeliverableNotFoundError
from coatcheck.messaging.client import NatsClient
from schemas.deliverable import HEADER_MESSAGE_ID
from schemas.events import Event, EventInvalidError, UnknownEvent, read_event, run_events
from schemas.streams import AUDIT_LOG

ENDINGS: Final = frozenset({"run.completed", "run.rejected", "run.expired", "run.cancelled", "run.failed"})
"""Event types after which nothing more is done for a run."""

_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class Recorded:
    """One message of the audit log."""

    sequence: int
    stored_at: datetime
    subject: str
    message_id: str
    """`Nats-Msg-Id`; empty when the message has none."""
    body: str

    @cached_property
    def _read(self) -> "Event | UnknownEvent | EventInvalidError":
        try:
            return read_event(self.body.encode("utf-8", "surrogateescape"))
        except EventInvalidError as error:
            return error

    @property
    def event(self) -> Event | UnknownEvent | None:
        """What it says, or `None` when it is no event."""
        return None if isinstance(self._read, EventInvalidError) else self._read

    @property
    def problem(self) -> str:
        """Why it is no event."""
        return str(self._read) if isinstance(self._read, EventInvalidError) else ""

    @cached_property
    def payload(self) -> dict[str, Any]:
        """The payload as it was sent, for paths; empty when it cannot be read."""
        try:
            payload = json.loads(self.body)["payload"]
        except (ValueError, TypeError, KeyError):
            return {}
        return payload if isinstance(payload, dict) else {}

    def to_line(self) -> str:
        """One line of a recording."""
        fields = {
            "sequence": self.sequence,
            "stored_at": self.stored_at.isoformat(),
            "subject": self.subject,
            "message_id": self.message_id,
            "body": self.body,
        }
        return json.dumps(fields)

    @classmethod
    def from_line(cls, line: str) -> Self:
        """Read what `to_line` wrote.

        Raises:
            ValueError: it is not such a line.
        """
        try:
            fields = json.loads(line)
            return cls(**fields | {"stored_at": datetime.fromisoformat(fields["stored_at"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a recorded message: {error}") from error


@dataclass(frozen=True)
class Recording:
    """A run, in the order of the audit log."""

    run_key: str
    messages: tuple[Recorded, ...]
    is_whole: bool = True
    """Whether it was read from the run's start, not from a later sequence or time."""

    def of(self, kind: type[_Kind]) -> list[tuple[Recorded, _Kind]]:
        """The events of one type, each with its message."""
        return [(message, message.event) for message in self.messages if isinstance(message.event, kind)]

    @property
    def events(self) -> list[Event]:
        """What can be read and is of a registered type."""
        read = (message.event for message in self.messages)
        return [event for event in read if event is not None and not isinstance(event, UnknownEvent)]

    @property
    def has_ended(self) -> bool:
        """Whether the end of the run is in it."""
        return any(event.event_type in ENDINGS for event in self.events)

    def since(self, *, sequence: int = 1, moment: datetime | None = None) -> Self:
        """What was stored from that sequence or time on."""
        kept = tuple(
            message
            for message in self.messages
            if message.sequence >= sequence and (moment is None or message.stored_at >= moment)
        )
        is_whole = self.is_whole and len(kept) == len(self.messages)
        return type(self)(self.run_key, kept, is_whole=is_whole)

    def to_lines(self) -> str:
        """The file's text."""
        return "".join(message.to_line() + "\n" for message in self.messages)

    @classmethod
    def from_lines(cls, lines: Iterable[str]) -> Self:
        """Read a file; the run is that of the first event.

        Raises:
            ValueError: a line is not a recorded message, or there is none that is an event.
        """
        messages = tuple(Recorded.from_line(line) for line in lines if line.strip())
        known = next((message.event for message in messages if message.event is not None), None)
        if known is None:
            raise ValueError("there is no event in it")
        return cls(known.correlation_id, messages)


async def read_messages(client: NatsClient, run_key: str, *, from_sequence: int = 1) -> AsyncIterator[Recorded]:
    """The messages under the run's subjects, as they are, readable or not; the server filters.

    Raises:
        StreamMissingError: there is no audit log.
        NotAuthorizedError: this identity may not read it.
        MessagingUnavailableError: no answer.
    """
    pattern, sequence = run_events(run_key), from_sequence
    while True:
        try:
            message = await client.fetch_next(AUDIT_LOG.name, pattern, sequence)
        except DeliverableNotFoundError:
            return
        sequence = message.sequence + 1
        yield Recorded(
            sequence=message.sequence,
            stored_at=message.stored_at,
            subject=message.subject,
            message_id=message.headers.get(HEADER_MESSAGE_ID, ""),
            body=message.data.decode("utf-8", "surrogateescape"),
        )


async def read_recording(
    client: NatsClient, run_key: str, *, from_sequence: int = 1, on_message: Callable[[Recorded], None] | None = None
) -> Recording:
    """The run as it is stored now; raises as `read_messages` does."""
    messages: list[Recorded] = []
    async for message in read_messages(client, run_key, from_sequence=from_sequence):
        messages.append(message)
        if on_message is not None:
            on_message(message)
    return Recording(run_key, tuple(messages), is_whole=from_sequence <= 1)
