"""`Tracer`: makes each run's trace from the audit log and sends it to the OTLP endpoint.

A second reader beside the projector, with the same promise: whatever dies, every span arrives, and only once by its id
(docs/adr/0020). The order of effects is send, acknowledge. An endpoint that is away costs a growing backlog in the
stream and nothing else; runs do not know of it. What the endpoint refuses for good is counted and left out.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from openinference.semconv.trace import SpanAttributes

from coatcheck.errors import CoatcheckError, StorageUnavailableError, TelemetryUnavailableError
from coatcheck.events.dialogue import with_words
from coatcheck.events.reading import SoleReader
from coatcheck.failpoints import failpoint
from coatcheck.messaging.accounts import TRACER
from coatcheck.messaging.client import NatsClient, StoredMessage
from coatcheck.messaging.events import EventLog
from coatcheck.storage.conversations import conversations
from coatcheck.storage.database import Pool
from coatcheck.storage.events import TRACER_LOCK, Connection
from coatcheck.storage.state import read_brief
from coatcheck.telemetry.kinds import RUN_KEY
from coatcheck.telemetry.privacy import Privacy
from coatcheck.telemetry.run_trace import RunTrace
from coatcheck.telemetry.scores import ScoreSender, annotation
from coatcheck.telemetry.spans import Span
from schemas.events import Event, EventInvalidError, UnknownEvent, read_event

if TYPE_CHECKING:
    from coatcheck.telemetry.exporting import SpanSender

BATCH: Final = 200
"""Events at once: about three runs' worth."""
LINGER_SECONDS: Final = 5.0
"""Nobody waits for a trace, and each batch is a request and a query: 3.5 ms of CPU."""
REMEMBERED_RUNS: Final = 1000
"""At most; what is forgotten is read again when it is needed. About 10 KB each."""
FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 30.0
"""Between two tries to reach the endpoint."""

_log = logging.getLogger(__name__)


class Tracer(SoleReader):
    """Sends the traces of all runs.

    Args:
        pool: With the rights of the tables' owner: content is read from there.
        client: The identity `core`.
        sender: To the endpoint.
        privacy: How much content is sent.
        scores: Where scores and decisions go, if anywhere.
    """

    def __init__(
        self,
        pool: Pool,
        client: NatsClient,
        *,
        sender: "SpanSender",
        privacy: Privacy,
        scores: ScoreSender | None = None,
    ) -> None:
        super().__init__(pool, client, name=TRACER, lock=TRACER_LOCK, batch=BATCH, linger_seconds=LINGER_SECONDS)
        self._sender = sender
        self._privacy = privacy
        self._scores = scores
        self._log = EventLog(client)
        self._traces: dict[str, RunTrace] = {}

    def begin(self) -> None:
        """Forget what was folded: it comes again."""
        self._traces.clear()

    async def digest(self, connection: Connection, messages: Sequence[StoredMessage]) -> None:
        """Send the spans that are complete with these events.

        Raises:
            StorageUnavailableError: the content cannot be read, or the lock is lost.
            MessagingUnavailableError: what was told of a run before cannot be read.
        """
        spans: list[Span] = []
        scores: list[dict[str, Any]] = []
        for message in messages:
            try:
                event = read_event(message.data)
            except EventInvalidError:
                continue  # the projector has buried it
            trace = await self._trace_of(event, message.sequence)
            spans += _folded(trace, event)
            if (score := annotation(event, trace, self._privacy)) is not None:
                scores.append(score)
        await failpoint("tracer.before_send")
        if spans:
            exported = [span.exported(self._privacy) for span in await self._dressed(spans)]
            await _until_taken(lambda: self._sender.send(exported), connection)
        if scores and self._scores is not None:
            send = self._scores.send
            await _until_taken(lambda: send(scores), connection)
        await failpoint("tracer.after_send")

    async def _trace_of(self, event: Event | UnknownEvent, sequence: int) -> RunTrace:
        """What is known of the event's run; read from the log when this process has not seen it from its start."""
        key = event.correlation_id
        trace = self._traces.pop(key, None)
        if trace is None:
            trace = RunTrace(key)
            async for earlier in self._log.read_run(key):
                if earlier.sequence >= sequence:
                    break
                trace.add(earlier.event)
        self._traces[key] = trace
        if len(self._traces) > REMEMBERED_RUNS:
            del self._traces[next(iter(self._traces))]
        return trace

    async def _dressed(self, spans: Sequence[Span]) -> list[Span]:
        """The spans with what was said, if any of that may leave."""
        if not self._privacy.has_content:
            return list(spans)
        tasks = {span.words.task_key for span in spans if span.words is not None}
        said = await conversations(self._pool, tasks) if tasks else {}
        return [
            with_words(span, said.get(span.words.task_key, [])) if span.words else await self._with_brief(span)
            for span in spans
        ]

    async def _with_brief(self, span: Span) -> Span:
        if span.parent_id is not None:
            return span
        try:
            brief = await read_brief(self._pool, str(span.attributes[RUN_KEY]))
        except StorageUnavailableError:
            raise
        except CoatcheckError:
            return span  # the run's first step is told and not yet recorded
        return replace(span, content={SpanAttributes.INPUT_VALUE: brief})


def _folded(trace: RunTrace, event: Event | UnknownEvent) -> list[Span]:
    """The event's spans; none where it tells of times that there are not."""
    try:
        return trace.add(event)
    except (OverflowError, ValueError) as error:
        _log.warning("no span is made of the event %s: %s", event.event_id, error)
        return []


async def _until_taken(send: Callable[[], Awaitable[None]], connection: Connection) -> None:
    """Send until it is taken, however long that lasts: the log holds what comes meanwhile."""
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return await send()
        except TelemetryUnavailableError as error:
            if pause == FIRST_PAUSE_SECONDS:
                _log.warning("traces wait: %s", error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        if connection.is_closed():
            raise StorageUnavailableError("the connection to PostgreSQL was lost, and the lock with it")
