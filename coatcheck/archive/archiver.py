"""`Archiver`: copies every deliverable and its files to the archive, before retention can drop them.

The order of effects is body, files, record, acknowledgement, each read back after it was written: whoever dies in
between leaves objects that its successor finds and does not write again. One archiver is active, others stand by for
its lock. An object storage that is away stops the archiver and nobody else: the streams wait, up to their limits, and
whoever looks is told how near those are. What is no deliverable is kept as it is, since the archive is no judge.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final

from pydantic import ValidationError

from coatcheck.archive.monitoring import Alarm, archive_lags
from coatcheck.archive.shelf import Shelf
from coatcheck.errors import (
    ArtifactInvalidError,
    CoatcheckError,
    DeliverableError,
    StreamMissingError,
)
from coatcheck.failpoints import failpoint
from coatcheck.messaging.accounts import ARCHIVER
from coatcheck.messaging.artifacts import ArtifactStore
from coatcheck.messaging.client import NatsClient, StoredMessage
from coatcheck.messaging.consumer import BatchConsumer
from coatcheck.storage.database import Pool
from coatcheck.storage.events import ARCHIVER_LOCK, sole_reader
from schemas.archive import ArchivedMessage
from schemas.deliverable import Artifact, Deliverable
from schemas.subjects import agent_of, deliverable_wildcard

BATCH: Final = 8
"""Messages in hand for each stream: at worst 80 MB."""
FILES_AT_ONCE: Final = 4
"""Over all streams; a file has 256 MiB at most."""
LINGER_SECONDS: Final = 1.0
"""After a batch that was not full: nobody waits for the archive, and each acknowledgement costs the server a sync."""
WAIT_SECONDS: Final = 5.0
"""Of one request for more."""
STANDBY_SECONDS: Final = 0.5
"""Between two looks at the lock."""
PAUSE_SECONDS: Final = 1.0
"""After a failure; it doubles up to `LONGEST_PAUSE_SECONDS`."""
LONGEST_PAUSE_SECONDS: Final = 30.0
WATCH_SECONDS: Final = 60.0
"""Between two looks at how near the limits are; 5% of a stream's 7 days are 8 h."""
CANCEL_SECONDS: Final = 0.5

_log = logging.getLogger(__name__)


class Archiver:
    """Fills the archive.

    Args:
        pool: Whose database holds the lock.
        client: The identity `core`.
        shelf: The archive.
    """

    def __init__(self, pool: Pool, client: NatsClient, shelf: Shelf) -> None:
        self._pool = pool
        self._client = client
        self._shelf = shelf
        self._files = ArtifactStore(client, archived=False)
        self._gate = asyncio.Semaphore(FILES_AT_ONCE)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run it in the background until the block ends; what it has in hand then comes again to the next one."""
        task = asyncio.create_task(self.run(), name=ARCHIVER)
        try:
            yield
        finally:
            await _end([task])

    async def run(self) -> None:
        """Archive, or stand by, until cancelled."""
        while True:
            try:
                async with sole_reader(self._pool, ARCHIVER_LOCK) as connection:
                    if connection is not None:
                        async with self._working() as watch:
                            # A lost connection, and the lock with it, wakes nobody.
                            while not (connection.is_closed() or watch.done()):  # noqa: ASYNC110
                                await asyncio.sleep(STANDBY_SECONDS)
            except CoatcheckError as error:
                _log.warning("the archiver begins again: %s", error)
            except Exception:  # noqa: BLE001  an archive that silently falls behind loses deliverables
                _log.exception("the archiver begins again")
            await asyncio.sleep(STANDBY_SECONDS)

    @contextlib.asynccontextmanager
    async def _working(self) -> AsyncIterator[asyncio.Task[None]]:
        """Follow every stream of deliverables; those of roles that were removed still have some.

        Yields:
            A task that ends when there are others.
        """
        streams = await deliverable_streams(self._client)
        _log.info("archiving %d streams to %s", len(streams), self._shelf.place)
        tasks = [asyncio.create_task(self._follow(stream), name=f"archive-{stream}") for stream in streams]
        watch = asyncio.create_task(self._watch(streams), name="archive-watch")
        try:
            yield watch
        finally:
            await _end([*tasks, watch])

    async def _follow(self, stream: str) -> None:
        pause = PAUSE_SECONDS
        while True:
            consumer = BatchConsumer(self._client, stream=stream, name=ARCHIVER)
            try:
                expected = await consumer.rewind()
                while True:
                    expected = await self._step(consumer, expected)
                    pause = PAUSE_SECONDS
            except CoatcheckError as error:
                _log.warning("%s is not archived just now: %s", stream, error)
            except Exception:  # noqa: BLE001  as above
                _log.exception("%s is not archived just now", stream)
            finally:
                await consumer.close()
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _step(self, consumer: BatchConsumer, expected: int) -> int:
        """Archive a batch; returns the sequence that comes next."""
        messages = await consumer.fetch(BATCH, wait_seconds=WAIT_SECONDS)
        if messages:
            for message in messages:
                _tell_gap(message, expected)
                expected = message.sequence + 1
            await self.store(messages)
            await consumer.acknowledge()
        if len(messages) < BATCH:
            await asyncio.sleep(LINGER_SECONDS)
        return expected

    async def store(self, messages: Sequence[StoredMessage]) -> None:
        """Archive messages; idempotent.

        Raises:
            DestinationError: the archive refuses.
            DestinationDownError: the archive does not answer.
            MessagingUnavailableError: NATS does not answer.
        """
        # All are waited for: an object that is being written must not be met again by the next attempt.
        done = await asyncio.gather(*(self._store(message) for message in messages), return_exceptions=True)
        for failure in done:
            if failure is not None:
                raise failure

    async def _store(self, message: StoredMessage) -> None:
        await failpoint("archive.before_store")
        digest = await self._shelf.keep_body(message.data)
        for artifact in _artifacts(message):
            await self._store_file(message, artifact)
        await failpoint("archive.before_record")
        await self._shelf.keep_record(
            ArchivedMessage(
                stream=message.stream,
                sequence=message.sequence,
                subject=message.subject,
                headers=dict(message.headers),
                stored_at=message.stored_at,
                sha256=digest,
                bytes=len(message.data),
            )
        )
        await failpoint("archive.after_store")

    async def _store_file(self, message: StoredMessage, artifact: Artifact) -> None:
        """A file that the bucket does not have will not come, so it does not keep the message waiting."""
        async with self._gate:
            if await self._shelf.holds(artifact.sha256):
                return
            try:
                data = await self._files.get(agent_of(message.subject), artifact)
            except (DeliverableError, ArtifactInvalidError, StreamMissingError) as error:
                _log.error("%s.%d is archived without a file: %s", message.stream, message.sequence, error)
                return
            await self._shelf.keep_file(artifact.sha256, data)

    async def _watch(self, streams: Sequence[str]) -> None:
        """Raise the alarm, until there are other streams."""
        alarm = Alarm()
        while True:
            try:
                for lag in await archive_lags(self._client, streams):
                    alarm.look(lag)
                if await deliverable_streams(self._client) != streams:
                    return
            except CoatcheckError as error:
                _log.warning("how far behind the archive is cannot be told: %s", error)
            await asyncio.sleep(WATCH_SECONDS)


async def deliverable_streams(client: NatsClient) -> list[str]:
    """The streams that hold deliverables; `client` may list streams."""
    return sorted((await client.api("STREAM.NAMES", {"subject": deliverable_wildcard("*")}))["streams"] or [])


def _artifacts(message: StoredMessage) -> Iterable[Artifact]:
    try:
        return Deliverable.model_validate_json(message.data).artifacts
    except ValidationError:
        _log.warning("%s.%d is archived, though it is no deliverable", message.stream, message.sequence)
        return []


def _tell_gap(message: StoredMessage, expected: int) -> None:
    if message.sequence > expected:
        span = f"{expected:,} to {message.sequence - 1:,}"
        _log.error("%s: retention has dropped %s before they were archived", message.stream, span)


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel until they end: nats-py swallows a cancellation that meets it in its flush."""
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=CANCEL_SECONDS)
