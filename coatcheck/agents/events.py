"""`RoundEvents`: what an agent tells of one attempt at one round, sent in one request when it is over.

One request per round, since each would cost as much as a turn's share of the orchestration. Nothing is lost by waiting:
an attempt that dies before it has told is made again, walks through its journalled turns, and tells the same under the
same ids. So a round returns its notice only when its events are stored.
"""

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal, Self

from coatcheck.errors import CoatcheckError
from coatcheck.redaction import redacted
from schemas import event_payloads as payloads
from schemas import events
from schemas.activities import StageOrder
from schemas.deliverable import DeliverableRef
from schemas.events import AgentEvent
from schemas.evidence import EvidenceSummary
from schemas.workflow_ids import activity_id, session_of, task_key

SendEvents = Callable[[Sequence[AgentEvent]], Awaitable[None]]
"""Has events stored; returns when they are. Raises `CoatcheckError`, retryable when nobody answered."""

MAX_ERROR_CHARACTERS: Final = 300
MAX_ARTIFACTS: Final = 100
"""Named in an event; about 15 KB."""

_log = logging.getLogger(__name__)


@dataclass
class RoundEvents:
    """Collects events of one attempt and sends them in the end; an async context manager."""

    agent: str
    order: StageOrder
    send: SendEvents
    _collected: list[AgentEvent] = field(default_factory=list)
    _read: dict[str, DeliverableRef] = field(default_factory=dict)
    """Tool call → the deliverable that it has read."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Have everything stored.

        Raises:
            CoatcheckError: as `send`; not from an attempt that has failed already, whose own error says more.
        """
        if not self._collected or (error is not None and not isinstance(error, Exception)):
            return
        try:
            await self.send(self._collected)
        except CoatcheckError as failure:
            if error is None:
                raise
            _log.warning("%s: what a failed attempt did could not be told: %s", self.agent, failure)

    def attempt(self, number: int) -> None:
        """This is not the first attempt."""
        if number > 1:
            payload = payloads.AttemptStarted(**self._place, attempt=number)
            self._tell(events.AttemptStarted, payload, str(number), severity="warning")

    @contextlib.contextmanager
    def tool(self, name: str, call_id: str) -> Iterator["ToolRun"]:
        """A tool runs inside the block; whatever it raises is its outcome."""
        run, started = ToolRun(), time.monotonic()
        outcome: Literal["ok", "error", "unknown"] = "ok"
        message = ""
        try:
            yield run
            outcome = "unknown" if run.is_unknown else "ok"
        except Exception as error:
            outcome, message = "error", redacted(str(error))[:MAX_ERROR_CHARACTERS] or type(error).__name__
            raise
        finally:
            payload = payloads.ToolCompleted(
                **self._place,
                tool=name,
                tool_call_id=call_id,
                outcome=outcome,
                seconds=round(time.monotonic() - started, 3),
                result_bytes=run.result_bytes,
                document=self._read.pop(call_id, None),
                error=message,
            )
            self._tell(events.ToolCompleted, payload, call_id)

    def read(self, call_id: str, document: DeliverableRef) -> None:
        """A tool call has read a deliverable."""
        self._read[call_id] = document

    def published(self, deliverable: payloads.DeliverablePublished) -> None:
        """The deliverable is stored."""
        self._tell(events.DeliverablePublished, deliverable)

    def evidence(self, isolation: str, summary: EvidenceSummary) -> None:
        """The checks ran on which the verdict rests."""
        payload = payloads.EvidenceRecorded(**self._place, isolation=isolation, summary=summary)
        self._tell(events.EvidenceRecorded, payload, severity="warning" if summary.failed else "info")

    @property
    def _place(self) -> dict[str, Any]:
        return {"stage": self.order.stage, "round": self.order.round}

    def _tell(self, kind: Any, payload: payloads.Payload, occurrence: str = "", severity: str = "info") -> None:
        order = self.order
        self._collected.append(
            kind.of(
                entity_id=task_key(order.run_key, activity_id(order.stage, order.round)),
                occurrence=occurrence,
                source=self.agent,
                agent=self.agent,
                correlation_id=order.run_key,
                causation_id=order.started_event,
                session_id=session_of(order.run_key),
                severity=severity,
                occurred_at=datetime.now(UTC),
                payload=payload,
            )
        )


@dataclass
class ToolRun:
    """What a tool returned."""

    result_bytes: int = 0
    is_unknown: bool = False
    """Whether nobody knows what the tool did."""
