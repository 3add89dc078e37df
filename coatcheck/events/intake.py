"""`EventIntake`: serves `agog.svc.events.<reporter>` and stores what agents and judges tell.

Agents cannot write the audit log themselves: whoever may publish to a stream can take another's message id first, and
the real event is then acknowledged as a duplicate and never stored. Here every event is held against the registry,
against who asks (the subject says so, never the body) and against the task that it is about.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

from pydantic import ValidationError

from coatcheck.errors import CoatcheckError, EventRefusedError
from coatcheck.failpoints import failpoint
from coatcheck.messaging.events import EventLog
from schemas import errors
from schemas.event_reports import EventReply, EventReport
from schemas.events import JUDGE, MAX_EVENT_BYTES, VERSION, AgentEvent, JudgeEvent

OwnTasks = Callable[[str, Collection[str]], Awaitable[Collection[str]]]
"""Agent and task keys → those that are recorded as the agent's."""
KnownRuns = Callable[[Collection[str]], Awaitable[Collection[str]]]
"""Run keys → those that are recorded."""

_SHOWN: Final = 500
"""Characters of a refusal; a report may have a hundred mistakes."""


class EventIntake:
    """Stores reported events.

    Args:
        log: Of an identity that may write it.
        own_tasks: Looks tasks up.
        known_runs: Looks runs up.
    """

    def __init__(self, log: EventLog, *, own_tasks: OwnTasks, known_runs: KnownRuns) -> None:
        self._log = log
        self._own_tasks = own_tasks
        self._known_runs = known_runs

    async def handle(self, reporter: str, payload: bytes) -> bytes:
        """Answer one report of `reporter`, whose name comes from the subject; all of it is stored or none.

        Returns:
            An `EventReply` as JSON.
        """
        try:
            report = EventReport.model_validate_json(payload)
        except ValidationError as error:
            return _encode(EventReply(code=errors.EVENT_REFUSED, message=str(error)[:_SHOWN]))
        try:
            await self._check(reporter, report.events, may_be_large=len(payload) > MAX_EVENT_BYTES)
            await failpoint("events.before_store")
            await self._log.publish(report.events)
        except CoatcheckError as error:
            return _encode(EventReply(code=error.code, message=str(error)[:_SHOWN], retryable=error.retryable))
        return _encode(EventReply(stored=len(report.events)))

    async def _check(self, reporter: str, events: Sequence[AgentEvent | JudgeEvent], *, may_be_large: bool) -> None:
        for event in events:
            if event.source != reporter:
                raise EventRefusedError(f"{reporter} cannot tell what is {event.source}'s to tell: {event.event_type}")
            if event.version != VERSION:
                raise EventRefusedError(f"{event.event_type} has no version {event.version} here")
            if may_be_large and len(event.to_wire()) > MAX_EVENT_BYTES:
                raise EventRefusedError(f"{event.event_type} has more than {MAX_EVENT_BYTES:,} bytes")
        if reporter == JUDGE:
            runs = {event.correlation_id for event in events}
            missing = runs - set(await self._known_runs(runs))
        else:
            tasks = {event.entity_id for event in events}
            missing = tasks - set(await self._own_tasks(reporter, tasks))
        if missing:
            raise EventRefusedError(f"{reporter} cannot tell about {', '.join(sorted(missing))}")


def _encode(reply: EventReply) -> bytes:
    return reply.model_dump_json().encode()
