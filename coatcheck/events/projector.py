"""`Projector`: brings the audit log into the table `events`, in order, each event once.

The order of effects is insert, commit, acknowledge: whoever dies in between leaves events that are read again and are
in the table already. One projector is active, others stand by for its lock; only so do the rows of a run appear in the
order in which things happened. What can never become a row is buried with the dead letters, and the projector goes on.
PostgreSQL or NATS may be away for as long as they like: it waits.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Final, TypeAlias

from coatcheck.errors import CoatcheckError, StorageUnavailableError
from coatcheck.events.dead_letters import bury
from coatcheck.events.rows import event_row
from coatcheck.failpoints import failpoint
from coatcheck.messaging.accounts import PROJECTOR
from coatcheck.messaging.client import NatsClient, StoredMessage
from coatcheck.messaging.consumer import BatchConsumer
from coatcheck.storage.database import Pool
from coatcheck.storage.events import PROJECTOR_LOCK, Connection, EventRow, RowRefusedError, project, sole_reader
from schemas.events import EventInvalidError
from schemas.streams import AUDIT_LOG

BATCH: Final = 500
"""Twice as many gain nothing more (see `tests.benchmarks.projector`)."""
LINGER_SECONDS: Final = 0.2
"""After a batch that was not full: a run tells things in bursts, and each batch costs PostgreSQL a sync."""
WAIT_SECONDS: Final = 2.0
"""Of one request for more."""
STANDBY_SECONDS: Final = 0.5
"""Between two looks at the lock."""
PAUSE_SECONDS: Final = 1.0
"""After a failure."""
CANCEL_SECONDS: Final = 0.5

_Read: TypeAlias = tuple[StoredMessage, EventRow]
_Dead: TypeAlias = tuple[StoredMessage, str]

_log = logging.getLogger(__name__)


class Projector:
    """Fills the table `events`.

    Args:
        pool: With the rights of the table's owner.
        client: The identity `core`.
        batch: Events per transaction.
    """

    def __init__(self, pool: Pool, client: NatsClient, *, batch: int = BATCH) -> None:
        self._pool = pool
        self._client = client
        self._batch = batch
        self._consumer = BatchConsumer(client, stream=AUDIT_LOG.name, name=PROJECTOR)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run it in the background until the block ends; what it has in hand then is read again by the next one."""
        task = asyncio.create_task(self.run(), name="projector")
        try:
            yield
        finally:
            while not task.done():
                # Once is not enough: nats-py swallows a cancellation that meets it in its flush.
                task.cancel()
                await asyncio.wait({task}, timeout=CANCEL_SECONDS)

    async def run(self) -> None:
        """Project, or stand by, until cancelled."""
        while True:
            try:
                await self._session()
            except CoatcheckError as error:
                _log.warning("the projector begins again: %s", error)
                await asyncio.sleep(PAUSE_SECONDS)
            except Exception:  # noqa: BLE001  a table that silently falls behind is worse than any of them
                _log.exception("the projector begins again")
                await asyncio.sleep(PAUSE_SECONDS)

    async def _session(self) -> None:
        """As long as this is the one projector, and all servers answer."""
        async with sole_reader(self._pool, PROJECTOR_LOCK) as connection:
            if connection is not None:
                try:
                    _log.info("projecting the audit log from %d", await self._consumer.rewind())
                    while True:
                        await self._step(connection)
                finally:
                    await self._consumer.close()
        await asyncio.sleep(STANDBY_SECONDS)

    async def _step(self, connection: Connection) -> None:
        messages = await self._consumer.fetch(self._batch, wait_seconds=WAIT_SECONDS)
        if messages:
            await self._digest(connection, messages)
            await self._consumer.acknowledge()
        if connection.is_closed():
            raise StorageUnavailableError("the connection to PostgreSQL was lost, and the lock with it")
        if len(messages) < self._batch:
            await asyncio.sleep(LINGER_SECONDS)

    async def _digest(self, connection: Connection, messages: Sequence[StoredMessage]) -> None:
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
