"""`rebuild`: the table `events` from the audit log once more, from its first event, in one transaction.

Readers see the old table until the new one is there. Rows that the stream no longer holds stay: the table keeps what
happened for longer than the stream does. Events that come meanwhile are the projector's, which waits for the end.
"""

from collections.abc import Callable
from dataclasses import dataclass

from coatcheck.events.rows import event_row
from coatcheck.messaging.client import NatsClient, StoredMessage
from coatcheck.messaging.spans import read_span
from coatcheck.storage.database import Pool
from coatcheck.storage.events import Connection, EventRow, RowRefusedError, emptied, project
from schemas.events import EventInvalidError
from schemas.streams import AUDIT_LOG

Progress = Callable[[int, int], None]
"""Called with events read and events to read."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild did."""

    first: int
    """Sequence of the stream's first event."""
    last: int
    removed: int
    """Rows."""
    read: int
    """Events; fewer become rows when some are no events, or were told twice."""


async def rebuild(pool: Pool, client: NatsClient, *, progress: Progress = lambda _read, _all: None) -> Rebuilt:
    """Write the table anew; all of it or nothing.

    Args:
        pool: With the rights of the table's owner.
        client: Any identity that reads the audit log.
        progress: Told after each chunk.

    Raises:
        StreamMissingError: there is no audit log.
        StorageUnavailableError: PostgreSQL is away; the table is as it was.
        MessagingUnavailableError: NATS is away; the table is as it was.
    """
    state = (await client.api(f"STREAM.INFO.{AUDIT_LOG.name}"))["state"]
    first, last = max(state["first_seq"], 1), state["last_seq"]
    read = 0
    async with emptied(pool, first, last) as (connection, removed):
        async for messages in read_span(client, AUDIT_LOG.name, first, last):
            await _insert(connection, [row for message in messages if (row := _row(message)) is not None])
            read += len(messages)
            progress(read, last - first + 1)
    return Rebuilt(first, last, removed, read)


def _row(message: StoredMessage) -> EventRow | None:
    """What is no event is with the dead letters already, or will be when the projector comes to it."""
    try:
        return event_row(message)
    except EventInvalidError:
        return None


async def _insert(connection: Connection, rows: list[EventRow]) -> None:
    if not rows:
        return
    try:
        async with connection.transaction():  # a savepoint: a refused row would end the whole transaction
            await project(connection, rows)
    except RowRefusedError:
        if len(rows) > 1:
            middle = len(rows) // 2
            await _insert(connection, rows[:middle])
            await _insert(connection, rows[middle:])
