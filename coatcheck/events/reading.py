"""`SoleReader`: one reader of the audit log at a time, in order, each batch acknowledged after its effect.

Any number of processes may run one of a name: the one that has the lock reads, the others stand by. Whoever dies in
between leaves a batch that its successor reads again. PostgreSQL or NATS may be away for as long as they like.
"""

import abc
import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Final

from coatcheck.errors import CoatcheckError, StorageUnavailableError
from coatcheck.messaging.client import NatsClient, StoredMessage
from coatcheck.messaging.consumer import BatchConsumer
from coatcheck.storage.database import Pool
from coatcheck.storage.events import Connection, sole_reader
from schemas.streams import AUDIT_LOG

LINGER_SECONDS: Final = 0.2
"""After a batch that was not full: a run tells things in bursts, and each batch costs a round trip or a sync."""
WAIT_SECONDS: Final = 2.0
"""Of one request for more."""
STANDBY_SECONDS: Final = 0.5
"""Between two looks at the lock."""
PAUSE_SECONDS: Final = 1.0
"""After a failure."""
CANCEL_SECONDS: Final = 0.5

_log = logging.getLogger(__name__)


class SoleReader(abc.ABC):
    """Reads the audit log from where it was left.

    Args:
        pool: Whose database holds the lock.
        client: The identity `core`.
        name: Of the durable consumer.
        lock: Key of the advisory lock.
        batch: Most events at once.
        linger_seconds: How long to let events gather after a batch that was not full.
    """

    def __init__(
        self,
        pool: Pool,
        client: NatsClient,
        *,
        name: str,
        lock: int,
        batch: int,
        linger_seconds: float = LINGER_SECONDS,
    ) -> None:
        self._pool = pool
        self._client = client
        self._name = name
        self._lock = lock
        self._batch = batch
        self._linger_seconds = linger_seconds
        self._consumer = BatchConsumer(client, stream=AUDIT_LOG.name, name=name)

    @abc.abstractmethod
    async def digest(self, connection: Connection, messages: Sequence[StoredMessage]) -> None:
        """Have the effect of a batch; the same batch may come again.

        Args:
            connection: That holds the lock.
            messages: In the order of the stream, without a gap.

        Raises:
            CoatcheckError: not now; the reader begins again at what is acknowledged.
        """

    def begin(self) -> None:  # noqa: B027  most readers have nothing in mind
        """Forget what was read and not acknowledged: it comes again."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run it in the background until the block ends; what it has in hand then is read again by the next one."""
        task = asyncio.create_task(self.run(), name=self._name)
        try:
            yield
        finally:
            while not task.done():
                # Once is not enough: nats-py swallows a cancellation that meets it in its flush.
                task.cancel()
                await asyncio.wait({task}, timeout=CANCEL_SECONDS)

    async def run(self) -> None:
        """Read, or stand by, until cancelled."""
        while True:
            try:
                await self._session()
            except CoatcheckError as error:
                _log.warning("%s begins again: %s", self._name, error)
                await asyncio.sleep(PAUSE_SECONDS)
            except Exception:  # noqa: BLE001  a reader that silently falls behind is worse than any of them
                _log.exception("%s begins again", self._name)
                await asyncio.sleep(PAUSE_SECONDS)

    async def _session(self) -> None:
        """As long as this is the one reader, and all servers answer."""
        async with sole_reader(self._pool, self._lock) as connection:
            if connection is not None:
                try:
                    self.begin()
                    _log.info("%s reads the audit log from %d", self._name, await self._consumer.rewind())
                    while True:
                        await self._step(connection)
                finally:
                    await self._consumer.close()
        await asyncio.sleep(STANDBY_SECONDS)

    async def _step(self, connection: Connection) -> None:
        messages = await self._consumer.fetch(self._batch, wait_seconds=WAIT_SECONDS)
        if messages:
            with self._client.tracing.processing_batch(AUDIT_LOG.name, [message.headers for message in messages]):
                await self.digest(connection, messages)
            await self._consumer.acknowledge()
        if connection.is_closed():
            raise StorageUnavailableError("the connection to PostgreSQL was lost, and the lock with it")
        if len(messages) < self._batch:
            await asyncio.sleep(self._linger_seconds)
