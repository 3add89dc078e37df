"""`Projector`: brings the audit log into the table `events`, in order, each event once.

The order of effects is insert, commit, acknowledge: whoever dies in between leaves events that are read again and are
in the table already. One projector is active, others stand by for its lock; only so do the rows of a run appear in the
order in which things happened. What can never become a row is buried with the dead letters, and the projector goes on.
PostgreSQL or NATS may be away for as long as they like: it waits.
"""

import logging
from collections.abc import Sequence
from typing import Final, TypeAlias

from coatcheck.events.dead_letters import bury
from coatcheck.events.reading import SoleReader
from coatcheck.events.rows import event_row
from coatcheck.failpoints import failpoint
from coatcheck.messaging.accounts import PROJECTOR
from coatcheck.messaging.client import NatsClient, StoredMessage
from coatcheck.storage.database import Pool
from coatcheck.storage.events import PROJECTOR_LOCK, Connection, EventRow, RowRefusedError, project
from schemas.events import EventInvalidError

BATCH: Final = 500
"""Twice as many gain nothing more (see `tests.benchmarks.projector`)."""

_Read: TypeAlias = tuple[StoredMessage, EventRow]
_Dead: TypeAlias = tuple[StoredMessage, str]

_log = logging.getLogger(__name__)


class Projector(SoleReader):
    """Fills the table `events`.

    Args:
        pool: With the rights of the table's owner.
        client: The identity `core`.
        batch: Events per transaction.
    """

    def __init__(self, pool: Pool, client: NatsClient, *, batch: int = BATCH) -> None:
        super().__init__(pool, client, name=PROJECTOR, lock=PROJECTOR_LOCK, batch=batch)

    async def digest(self, connection: Connection, messages: Sequence[StoredMessage]) -> None:
        """Write the rows, and bury what cannot become one; raises as `project` and `bury` do."""
        readable, dead = _read(messages)
        await failpoint("projector.before_insert")
        dead += await _insert(connection, readable)
        await failpoint("projector.after_insert")
        for message, reason in dead:
            _log.error("%s.%d is buried: %.300s", message.stream, message.sequence, reason)
            await bury(self._client, message, consumer=PROJECTOR, reason=reason)


def _read(messages: Sequence[StoredMessage]) -> tuple[list[_Read], list[_Dead]]:
    readable: list[_Read] = []
    dead: list[_Dead] = []
    for message in messages:
        try:
            readable.append((message, event_row(message)))
        except EventInvalidError as error:
            dead.append((message, "not an event: " + " ".join(str(error).split())))
    return readable, dead


async def _insert(connection: Connection, readable: Sequence[_Read]) -> list[_Dead]:
    """Insert all in order, and return what PostgreSQL refuses, found by halving."""
    if not readable:
        return []
    try:
        await project(connection, [row for _, row in readable])
    except RowRefusedError as error:
        if len(readable) == 1:
            return [(readable[0][0], f"PostgreSQL refuses it: {error}")]
        middle = len(readable) // 2
        return await _insert(connection, readable[:middle]) + await _insert(connection, readable[middle:])
    return []
