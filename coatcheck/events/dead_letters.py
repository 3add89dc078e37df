"""Dead letters: messages that a consumer could not digest, kept whole so that what went wrong can be seen and mended.

They are buried before they are acknowledged, under an id of their own, so that a death in between buries them once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import quote, unquote

from coatcheck.messaging.client import NatsClient, StoredMessage
from coatcheck.messaging.spans import read_span
from schemas.deliverable import HEADER_MESSAGE_ID
from schemas.streams import DEAD_LETTERS
from schemas.subjects import PREFIX

HEADER_CONSUMER: Final = "Coatcheck-Dead-Consumer"
HEADER_STREAM: Final = "Coatcheck-Dead-Stream"
HEADER_SEQUENCE: Final = "Coatcheck-Dead-Sequence"
HEADER_SUBJECT: Final = "Coatcheck-Dead-Subject"
HEADER_ID: Final = "Coatcheck-Dead-Message-Id"
HEADER_REASON: Final = "Coatcheck-Dead-Reason"
"""Percent-encoded where it is not printable ASCII."""
_MAX_REASON: Final = 1000
_SAFE: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was buried."""

    sequence: int
    """In the stream of dead letters."""
    buried_at: datetime
    consumer: str
    stream: str
    """It came from here."""
    stream_sequence: int
    subject: str
    message_id: str
    reason: str
    data: bytes


async def bury(client: NatsClient, message: StoredMessage, *, consumer: str, reason: str) -> None:
    """Keep a message that `consumer` cannot digest; idempotent.

    Raises:
        MessagingUnavailableError: indeterminate; bury it again.
        MessagingRefusedError: the stream of dead letters does not take it.
    """
    headers = {
        HEADER_CONSUMER: consumer,
        HEADER_STREAM: message.stream,
        HEADER_SEQUENCE: str(message.sequence),
        HEADER_SUBJECT: message.subject,
        HEADER_ID: _header(message.headers.get(HEADER_MESSAGE_ID, "")),
        HEADER_REASON: _header(reason),
    }
    await client.publish(
        f"{PREFIX}.dead.{consumer}",
        message.data,
        message_id=f"{consumer}.{message.stream}.{message.sequence}",
        stream=DEAD_LETTERS.name,
        headers=headers,
    )


async def count_dead_letters(client: NatsClient) -> int:
    """How many there are; whoever watches the system should be told when it is not 0.

    Raises:
        StreamMissingError: there is no such stream yet.
        MessagingUnavailableError: no answer.
    """
    count: int = (await client.api(f"STREAM.INFO.{DEAD_LETTERS.name}"))["state"]["messages"]
    return count


async def read_dead_letters(client: NatsClient, *, latest: int) -> list[DeadLetter]:
    """The latest ones, oldest of them first; raises as `count_dead_letters` does."""
    state = (await client.api(f"STREAM.INFO.{DEAD_LETTERS.name}"))["state"]
    first = max(state["first_seq"], state["last_seq"] - latest + 1, 1)
    return [
        _dead_letter(message)
        async for messages in read_span(client, DEAD_LETTERS.name, first, state["last_seq"])
        for message in messages
    ]


def _dead_letter(message: StoredMessage) -> DeadLetter:
    said: Mapping[str, str] = message.headers
    return DeadLetter(
        sequence=message.sequence,
        buried_at=message.stored_at,
        consumer=said.get(HEADER_CONSUMER, ""),
        stream=said.get(HEADER_STREAM, ""),
        stream_sequence=int(said.get(HEADER_SEQUENCE, "0")),
        subject=said.get(HEADER_SUBJECT, ""),
        message_id=unquote(said.get(HEADER_ID, "")),
        reason=unquote(said.get(HEADER_REASON, "")),
        data=message.data,
    )


def _header(text: str) -> str:
    """One line of ASCII."""
    return quote(" ".join(text.split())[:_MAX_REASON], safe=_SAFE, errors="replace").strip()
