"""`RunTrace`: folds one run's events into the spans of its trace.

    run <feature>        root: submitted and begun; exported at once, so a trace is there while its run is under way
    └ pipeline           all that the run does, until it ends or Temporal takes it back
      └ <stage>          AGENT: a stage, and its first round by its agent, with what happened in it as moments
        ├ turn <n>       LLM: a model turn, from the proxy's journal
        ├ <tool>         TOOL, or RETRIEVER
        ├ <criterion>    EVALUATOR: a judge's opinion
        └ <stage>, round <n>   AGENT: a later round of the stage, with the same below it

So everything that a stage took is below one span, which no later event has to make (docs/adr/0048).

A pure fold, without a clock: the same events give the same spans, and every parent is made from an event that the run
cannot end without. An event that comes again makes the same span again.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import singledispatchmethod
from typing import Any, Final

from openinference.semconv.trace import SpanAttributes

from coatcheck.telemetry.kinds import (
    DESTINATION,
    MESSAGE_ID,
    REFERENCE,
    RUN_KEY,
    STAGE,
    STATUS,
    TASK_KEY,
    UNKNOWN,
    agent_attributes,
    evaluator_attributes,
    llm_attributes,
    place,
    retriever_attributes,
    tool_attributes,
)
from coatcheck.telemetry.spans import Kind, Moment, Span, Words
from schemas import events
from schemas.deliverable import DeliverableRef
from schemas.events import Event, UnknownEvent
from schemas.notice import Notice
from schemas.roles import FETCH_DELIVERABLE
from schemas.tracing import pipeline_span_id, root_span_id, span_id, trace_id

_INSTANT: Final = timedelta(milliseconds=1)
"""Of what has no duration: no backend draws a span of none."""
_OUTCOMES: Final = {"completed": True, "failed": False}
"""Status → whether it is well; a person's no, a time-out and a cancellation are neither."""


@dataclass
class _Round:
    """A round that has begun and not ended."""

    span_id: str
    parent_id: str
    is_first: bool
    """Of its stage, in its pipeline."""
    stage: str
    number: int
    agent: str
    started_at: datetime
    inputs: dict[str, str]
    comment: str
    moments: list[Moment] = field(default_factory=list)


@dataclass
class RunTrace:
    """What is known of one run."""

    run_key: str
    _session_id: str = ""
    _tenant: str = ""
    _began_at: datetime | None = None
    """The pipeline as it is: at the run's start, or when Temporal took the run back."""
    _reset: str = ""
    _is_open: bool = True
    _moments: list[Moment] = field(default_factory=list)
    """Of the pipeline."""
    _rounds: dict[str, _Round] = field(default_factory=dict)
    """Task key → the round that is under way."""
    _latest: dict[str, str] = field(default_factory=dict)
    """Task key → span of its latest round."""
    _begun: set[str] = field(default_factory=set)
    """Spans of all rounds."""
    _stages: dict[tuple[str, str], str] = field(default_factory=dict)
    """Reset and stage → span of the stage: of its first round there."""
    _subjects: dict[tuple[str, int], str] = field(default_factory=dict)
    """Stream and sequence → subject, of what rounds have handed in."""

    def add(self, event: Event | UnknownEvent) -> list[Span]:
        """The spans that are complete with this event."""
        self._session_id = event.session_id
        spans: list[Span] = self._spans(event)
        return spans

    def span_of(self, entity_id: str) -> str:
        """The span that stands for a task, or the root where none does."""
        return self._latest.get(entity_id, root_span_id(self.run_key))

    @singledispatchmethod
    def _spans(self, event: Any) -> list[Span]:  # noqa: ARG002  what makes no span
        return []

    # --- the run ------------------------------------------------------------------------------------------------

    @_spans.register
    def _run_started(self, event: events.RunStarted) -> list[Span]:
        said = event.payload
        self._tenant, self._began_at = said.tenant, self._began_at or event.occurred_at
        for inherited in said.inherited:
            self._know(inherited.notice)
        attributes = {
            RUN_KEY: self.run_key,
            "coatcheck.feature": said.feature,
            "coatcheck.stages": ",".join(said.stages),
            "coatcheck.brief.bytes": said.brief_bytes,
            "coatcheck.brief.sha256": said.brief_sha256,
        }
        root = self._span(
            Kind.CHAIN,
            f"run {said.feature}",
            span_id=root_span_id(self.run_key),
            parent_id=None,
            start=event.occurred_at,
            end=event.occurred_at + _INSTANT,
            attributes=attributes,
            links=[(trace_id(said.forked_from), root_span_id(said.forked_from))] if said.forked_from else [],
            is_ok=True,
        )
        return [root]

    @_spans.register
    def _run_ended(
        self,
        event: events.RunCompleted | events.RunRejected | events.RunExpired | events.RunCancelled | events.RunFailed,
    ) -> list[Span]:
        return self._close(event.occurred_at, event.payload.run.status, event.payload.reason)

    @_spans.register
    def _run_repaired(self, event: events.RunRepaired) -> list[Span]:
        """It was terminated behind our back, timed out or deleted, if it has ended at all."""
        said = event.payload
        return self._close(said.completed_at, said.run.status, said.reason) if said.completed_at else []

    @_spans.register
    def _run_reset(self, event: events.RunReset) -> list[Span]:
        """The run goes on in a pipeline of its own; a round that was under way may well go on, too."""
        spans = [self._pipeline(event.occurred_at, "reset", event.payload.reason)] if self._is_open else []
        self._reset, self._is_open, self._began_at, self._moments = event.occurrence, True, event.occurred_at, []
        return spans

    @_spans.register
    def _run_stirred(
        self, event: events.RunPaused | events.RunResumed | events.DecisionRequested | events.DecisionMade
    ) -> list[Span]:
        stage = getattr(event.payload, "stage", None)
        self._moments.append(Moment(event.event_type, event.occurred_at, {STAGE: stage} if stage else {}))
        return []

    def _close(self, at: datetime, status: str, reason: str) -> list[Span]:
        """The rounds that are still under way, and the pipeline."""
        if not self._is_open:
            return []
        self._is_open = False
        rounds = [span for key in list(self._rounds) for span in self._end(key, at, status, reason)]
        return [*rounds, self._pipeline(at, status, reason)]

    def _pipeline(self, at: datetime, status: str, reason: str) -> Span:
        return self._span(
            Kind.CHAIN,
            "pipeline",
            span_id=pipeline_span_id(self.run_key, self._reset),
            parent_id=root_span_id(self.run_key),
            start=self._began_at or at,
            end=at,
            attributes={RUN_KEY: self.run_key, STATUS: status},
            content={SpanAttributes.OUTPUT_VALUE: reason},
            moments=self._moments,
            is_ok=_OUTCOMES.get(status),
            error=reason if status == "failed" else "",
        )

    # --- rounds -------------------------------------------------------------------------------------------------

    @_spans.register
    def _stage_started(self, event: events.StageStarted) -> list[Span]:
        said, key = event.payload, event.entity_id
        cut_off = self._end(key, event.occurred_at, "reset", "")
        own = self._latest[key] = span_id(event.event_id)
        self._begun.add(own)
        head = self._stages.setdefault((event.occurrence, said.stage), own)
        self._rounds[key] = _Round(
            span_id=own,
            parent_id=pipeline_span_id(self.run_key, event.occurrence) if head == own else head,
            is_first=head == own,
            stage=said.stage,
            number=said.round,
            agent=event.agent or "",
            started_at=event.occurred_at,
            inputs=dict(said.inputs),
            comment=said.comment,
        )
        return cut_off

    @_spans.register
    def _stage_completed(self, event: events.StageCompleted) -> list[Span]:
        notice = event.payload.notice
        self._know(notice)
        return self._end(event.entity_id, event.occurred_at, "completed", notice.summary, notice)

    @_spans.register
    def _stage_ended(self, event: events.StageFailed | events.StageCancelled) -> list[Span]:
        status = "failed" if isinstance(event, events.StageFailed) else "cancelled"
        return self._end(event.entity_id, event.occurred_at, status, event.payload.reason)

    @_spans.register
    def _stage_repaired(self, event: events.StageRepaired) -> list[Span]:
        said = event.payload
        return self._end(event.entity_id, said.completed_at or event.occurred_at, said.status, said.reason)

    def _end(self, key: str, at: datetime, status: str, said: str, notice: Notice | None = None) -> list[Span]:
        """The span of a round, unless it has ended before."""
        if (ended := self._rounds.pop(key, None)) is None:
            return []
        agent = self._span(
            Kind.AGENT,
            ended.stage if ended.is_first else f"{ended.stage}, round {ended.number}",
            span_id=ended.span_id,
            parent_id=ended.parent_id,
            start=ended.started_at,
            end=at,
            attributes={
                TASK_KEY: key,
                STATUS: status,
                **agent_attributes(ended.agent, ended.stage, ended.number, ended.inputs, notice),
            },
            content={SpanAttributes.INPUT_VALUE: ended.comment, SpanAttributes.OUTPUT_VALUE: said},
            moments=ended.moments,
            is_ok=_OUTCOMES.get(status),
            error=said if status == "failed" else "",
        )
        return [agent]

    def _know(self, notice: Notice) -> None:
        self._subjects[notice.ref.stream, notice.ref.sequence] = notice.nats_channel

    # --- within a round -----------------------------------------------------------------------------------------

    @_spans.register
    def _turn_completed(self, event: events.TurnCompleted) -> list[Span]:
        said = event.payload
        cost = UNKNOWN if said.cost_usd is None else str(said.cost_usd)
        attributes = llm_attributes(said.model, said.tokens_in, said.tokens_out, said.tokens_cached, cost)
        attributes |= place(said.stage, said.round)
        attributes |= {REFERENCE: f"{event.entity_id}#{said.turn}", "coatcheck.calls": said.calls}
        span = self._within(event, Kind.LLM, f"turn {said.turn}", said.seconds, attributes, is_ok=True)
        return [replace(span, words=Words(event.entity_id, turn=said.turn))]

    @_spans.register
    def _tool_completed(self, event: events.ToolCompleted) -> list[Span]:
        said = event.payload
        kind = Kind.RETRIEVER if said.tool == FETCH_DELIVERABLE else Kind.TOOL
        if kind is Kind.RETRIEVER:
            read = [self._name(said.document)] if said.document else []
            attributes = retriever_attributes(said.tool, said.tool_call_id, read)
        else:
            attributes = tool_attributes(said.tool, said.tool_call_id)
        attributes |= place(said.stage, said.round)
        attributes |= {REFERENCE: event.entity_id, "coatcheck.result.bytes": said.result_bytes}
        is_ok = said.outcome == "ok"
        span = self._within(event, kind, said.tool, said.seconds, attributes, is_ok=is_ok, error=said.error)
        return [replace(span, words=Words(event.entity_id, call_id=said.tool_call_id))]

    def _name(self, document: DeliverableRef) -> str:
        """Subject, sequence and sha256; the stream in place of a subject that nobody in this run has told."""
        where = self._subjects.get((document.stream, document.sequence), document.stream)
        return f"{where}/{document.sequence}/{document.sha256}"

    @_spans.register
    def _judge_scored(self, event: events.JudgeScored) -> list[Span]:
        said = event.payload
        attributes = evaluator_attributes(said.judge, said.score) | place(said.stage, said.round)
        content = {SpanAttributes.OUTPUT_VALUE: said.explanation or said.label}
        return [self._within(event, Kind.EVALUATOR, said.criterion, 0, attributes, content=content, is_ok=True)]

    @_spans.register
    def _judge_failed(self, event: events.JudgeFailed) -> list[Span]:
        said = event.payload
        attributes = evaluator_attributes(said.judge) | place(said.stage, said.round)
        return [self._within(event, Kind.EVALUATOR, said.criterion, 0, attributes, is_ok=False, error=said.error)]

    @_spans.register
    def _attempt_started(self, event: events.AttemptStarted) -> list[Span]:
        return self._note(event, {"coatcheck.attempt": event.payload.attempt})

    @_spans.register
    def _stage_parked(self, event: events.StageParked) -> list[Span]:
        return self._note(event, {"coatcheck.parked.until": event.payload.until.isoformat()})

    @_spans.register
    def _evidence_recorded(self, event: events.EvidenceRecorded) -> list[Span]:
        said = event.payload.summary
        return self._note(event, {"coatcheck.checks.passed": said.passed, "coatcheck.checks.failed": said.failed})

    @_spans.register
    def _deliverable_published(self, event: events.DeliverablePublished) -> list[Span]:
        said = event.payload
        return self._note(event, {DESTINATION: said.subject, MESSAGE_ID: f"{said.stream}.{said.sequence}"})

    def _note(self, event: Any, attributes: dict[str, Any]) -> list[Span]:
        """A moment of the round that the event is about."""
        if (current := self._rounds.get(event.entity_id)) is not None:
            current.moments.append(Moment(event.event_type, event.occurred_at, attributes))
        return []

    def _within(
        self, event: Any, kind: Kind, name: str, seconds: float, attributes: dict[str, Any], **rest: Any
    ) -> Span:
        """A span below its round's.

        What was done in a round names the event of the round's start as its cause, and so the right one of two that a
        reset has begun under one task key.
        """
        cause = span_id(event.causation_id or "")
        return self._span(
            kind,
            name,
            span_id=span_id(event.event_id),
            parent_id=cause if cause in self._begun else self.span_of(event.entity_id),
            start=event.occurred_at - timedelta(seconds=seconds),
            end=event.occurred_at + (_INSTANT if not seconds else timedelta(0)),
            attributes=attributes,
            **rest,
        )

    def _span(self, kind: Kind, name: str, *, start: datetime, end: datetime, **rest: Any) -> Span:
        attributes = {
            SpanAttributes.OPENINFERENCE_SPAN_KIND: kind.value,
            SpanAttributes.SESSION_ID: self._session_id,
            **({SpanAttributes.USER_ID: self._tenant} if self._tenant else {}),
            **rest.pop("attributes"),
        }
        return Span(
            trace_id=trace_id(self.run_key),
            name=name,
            kind=kind,
            start=start,
            end=max(start, end),  # two clocks may have told them
            attributes=attributes,
            **rest,
        )
