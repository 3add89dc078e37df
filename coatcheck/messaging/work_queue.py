"""`WorkQueue`: one durable consumer of a work-queue stream, pulled by any number of processes.

A message is a job: it is this process's until it is `done` or nobody has said `working` for `ACK_WAIT_SECONDS`; then
another process gets it. How many jobs are under way at once, over all processes, is the consumer's `max_ack_pending`,
so it is the server that bounds them.

Pulled with own requests: nats-py's `fetch` leaves a request open when it returns less than was asked for, and what
arrives then lies unseen until the next `fetch`, while its time to be acknowledged runs out.
"""

import asyncio
import itertools
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Final

import nats.errors
from nats.aio.msg import Msg
from pydantic_core import to_json

from coatcheck.errors import CoatcheckError, MessagingUnavailableError
from coatcheck.messaging.client import REQUEST_TIMEOUT_SECONDS, ClientSubscription, NatsClient, StoredMessage

ACK_WAIT_SECONDS: Final = 5.0
"""A dead process's jobs are with another one so much later."""
WORKING_SECONDS: Final = 1.5
"""Three signs of life within the time; one or two may be late."""
PULL_SECONDS: Final = 5.0
"""How long a request for jobs stays open; one that was lost with its connection is repeated after that."""
_GRACE_SECONDS: Final = 1.0
_NANOSECONDS: Final = 1_000_000_000

_log = logging.getLogger(__name__)


async def ensure_work_queue(
    client: NatsClient, *, stream: str, name: str, filter_subject: str, max_ack_pending: int
) -> None:
    """Make the consumer, or bring its settings up to date; safe in several processes.

    Args:
        client: An identity that may manage consumers (`core`).
        stream: A work-queue stream.
        name: Of the consumer.
        filter_subject: Its jobs; no other consumer of the stream may have one of them.
        max_ack_pending: Jobs under way at once, over all processes.

    Raises:
        MessagingUnavailableError: no answer.
        MessagingRefusedError: the stream has another consumer for these jobs.
    """
    config = {
        "durable_name": name,
        "filter_subject": filter_subject,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": int(ACK_WAIT_SECONDS * _NANOSECONDS),
        # Whoever gets a job too often buries it; the server would leave it in the stream, and nobody would be told.
        "max_deliver": -1,
        "max_ack_pending": max_ack_pending,
        "replay_policy": "instant",
    }
    await client.api(
        f"CONSUMER.CREATE.{stream}.{name}.{filter_subject}", {"stream_name": stream, "config": config, "action": ""}
    )


class Job:
    """One message of a work queue."""

    def __init__(self, message: Msg) -> None:
        self._message = message
        metadata = message.metadata
        self.stream = metadata.stream
        self.sequence = metadata.sequence.stream
        self.deliveries = metadata.num_delivered
        """How often it was handed out, this time included."""
        self.stored_at: datetime = metadata.timestamp
        self.data = message.data

    def stored(self, subject: str) -> StoredMessage:
        """The message as the stream holds it."""
        return StoredMessage(
            stream=self.stream,
            sequence=self.sequence,
            subject=subject,
            headers=self._message.headers or {},
            data=self.data,
            stored_at=self.stored_at,
        )

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Within the block nobody else gets the job, as long as NATS hears of us."""
        beat = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            beat.cancel()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(WORKING_SECONDS)
            with suppress(OSError, nats.errors.Error):
                await self._message.in_progress()

    async def done(self) -> None:
        """Take it off the queue; returns when the server has confirmed it.

        Raises:
            MessagingUnavailableError: not confirmed; it may come again.
        """
        try:
            await self._message.ack_sync(timeout=REQUEST_TIMEOUT_SECONDS)
        except (OSError, nats.errors.Error) as error:
            raise MessagingUnavailableError(f"{self.stream}: acknowledgement not confirmed: {error!r}") from error


class WorkQueue:
    """Pulls jobs and runs a task for each, at most `slots` at once.

    Args:
        client: Of an identity that may pull from the consumer and acknowledge.
        stream: The stream.
        name: The consumer.
        slots: Jobs under way in this process at most.
        work: What to do with a job; its errors are logged, and the job comes again.
    """

    def __init__(
        self, client: NatsClient, *, stream: str, name: str, slots: int, work: Callable[[Job], Awaitable[None]]
    ) -> None:
        self._client = client
        self._next = f"{client.js_prefix}.CONSUMER.MSG.NEXT.{stream}.{name}"
        self._slots = slots
        self._work = work
        self._inbox = ""
        self._numbers = itertools.count(1)
        self._asked: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """Open requests, oldest first: how many jobs each may still bring, and when it is given up."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._subscription: ClientSubscription | None = None
        self._pulling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to pull.

        Raises:
            NotAuthorizedError: this identity may not.
            MessagingUnavailableError: no answer.
        """
        self._inbox = (await self._client.connection()).raw.new_inbox()
        self._subscription = await self._client.subscribe(f"{self._inbox}.*", self._take)
        self._pulling = asyncio.create_task(self._pull())

    async def stop(self, drain_seconds: float) -> None:
        """Take no more jobs and finish those in hand; what takes longer comes again elsewhere."""
        if self._pulling is not None and self._subscription is not None:
            self._pulling.cancel()
            with suppress(OSError, CoatcheckError, nats.errors.Error):
                await self._client.unsubscribe(self._subscription)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=drain_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _pull(self) -> None:
        """Keep as many jobs asked for as there are free slots."""
        clock = asyncio.get_running_loop().time
        while True:
            self._changed.clear()
            for token in [token for token, (_, until) in self._asked.items() if until <= clock()]:
                del self._asked[token]
            wanted = self._slots - len(self._tasks) - sum(count for count, _ in self._asked.values())
            if wanted > 0:
                await self._ask(wanted, clock() + PULL_SECONDS + _GRACE_SECONDS)
            next_end = min((until for _, until in self._asked.values()), default=clock() + _GRACE_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_end):
                    await self._changed.wait()

    async def _ask(self, count: int, until: float) -> None:
        token = str(next(self._numbers))
        request = to_json({"batch": count, "expires": int(PULL_SECONDS * _NANOSECONDS)})
        try:
            connection = await self._client.connection()
            await connection.raw.publish(self._next, request, reply=f"{self._inbox}.{token}")
        except (OSError, CoatcheckError, nats.errors.Error) as error:
            _log.warning("cannot ask for jobs: %r", error)
            await asyncio.sleep(_GRACE_SECONDS)
        else:
            self._asked[token] = (count, until)

    async def _take(self, message: Msg) -> None:
        if not message.reply:  # a status: the request named by its subject is over
            self._asked.pop(message.subject.rpartition(".")[2], None)
            self._changed.set()
            return
        for token, (count, until) in self._asked.items():  # the server serves the oldest request first
            if count > 1:
                self._asked[token] = (count - 1, until)
            else:
                del self._asked[token]
            break
        task = asyncio.create_task(self._run(Job(message)))
        self._tasks.add(task)
        task.add_done_callback(self._finish)

    async def _run(self, job: Job) -> None:
        try:
            await self._work(job)
        except Exception as error:  # noqa: BLE001  the job comes again, and is buried when it comes too often
            _log.warning("%s.%d: %s: %s", job.stream, job.sequence, type(error).__name__, error)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed.set()


@asynccontextmanager
async def working(queues: Sequence[WorkQueue], drain_seconds: float) -> AsyncIterator[None]:
    """Work on all of them until the block ends; they are then stopped at the same time."""
    try:
        for queue in queues:
            await queue.start()
        yield
    finally:
        await asyncio.gather(*(queue.stop(drain_seconds) for queue in queues))
