"""The fold of a run's events into its trace: a whole tree, whatever happened and in whatever pieces it is told."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.bench.recording import Recording
from coatcheck.telemetry.kinds import COST, UNKNOWN
from coatcheck.telemetry.run_trace import RunTrace
from coatcheck.telemetry.spans import Kind, Span
from schemas import event_payloads as payloads
from schemas import events
from schemas.events import Event
from schemas.roles import FETCH_DELIVERABLE
from schemas.tracing import pipeline_span_id, root_span_id, span_id, trace_id
from schemas.workflow_ids import event_id
from tests.bench.record import recorded
from tests.telemetry.tree import check_tree, fold

CORPUS = recorded()
DEMO = recorded("er_001")[0][1]
"""A revision and a rework."""
NOW = datetime(2026, 11, 27, tzinfo=UTC)


def spans_of(recording: Recording) -> list[Span]:
    """The trace of a recorded run."""
    return fold(recording.run_key, recording.events)


@pytest.mark.parametrize("recording", [item for _, item in CORPUS], ids=[name for name, _ in CORPUS])
def test_every_recorded_run_is_one_tree(recording: Recording) -> None:
    """Completed, failed, cancelled, rejected, expired, forked: nothing hangs in the air."""
    spans = spans_of(recording)
    check_tree(spans)
    assert all(span.kind in {Kind.CHAIN, Kind.AGENT, Kind.LLM, Kind.TOOL, Kind.RETRIEVER} for span in spans)


def test_a_run_with_a_revision_and_a_rework() -> None:
    """At most 45 spans; a stage has all its rounds below it; all that was paid is in the turns."""
    spans = spans_of(DEMO)
    kinds = Counter(span.kind for span in spans)
    assert len(spans) <= 45
    assert kinds[Kind.AGENT] == 10
    assert kinds[Kind.LLM] == 17
    pipeline = next(span for span in spans if span.name == "pipeline")
    assert pipeline.parent_id == root_span_id(DEMO.run_key)
    rounds = {span.name: span for span in spans if span.kind is Kind.AGENT}
    stages = {name for name, span in rounds.items() if span.parent_id == pipeline.span_id}
    assert stages == {"research", "critique", "backend", "frontend", "qa", "statistics"}
    later = {name: span.parent_id for name, span in rounds.items() if name not in stages}
    repeated = ("research", "critique", "backend", "qa")
    assert later == {f"{stage}, round 2": rounds[stage].span_id for stage in repeated}
    assert {span.attributes["agent.name"] for span in spans if span.kind is Kind.AGENT} == {
        "cynthia",
        "sylvia",
        "roy",
        "jen",
        "billy",
        "priya",
    }
    told = [event.payload for _, event in DEMO.of(events.TurnCompleted)]
    tokens = sum(int(span.attributes["llm.token_count.total"]) for span in spans if span.kind is Kind.LLM)
    assert tokens == sum(turn.tokens_in + turn.tokens_out for turn in told)


def test_what_was_read_is_named() -> None:
    """By subject, sequence and sha256; by its stream where the run has not told the subject."""
    read = next(event for _, event in DEMO.of(events.ToolCompleted) if event.payload.tool == FETCH_DELIVERABLE)
    notice = next(event for _, event in DEMO.of(events.StageCompleted)).payload.notice
    foreign = notice.ref.model_copy(update={"sequence": 10_000})
    ids = []
    for document in (notice.ref, foreign, None):
        retold = read.model_copy(update={"payload": read.payload.model_copy(update={"document": document})})
        spans = fold(DEMO.run_key, [retold if event is read else event for event in DEMO.events])
        [span] = [span for span in spans if span.span_id == span_id(read.event_id)]
        assert span.kind is Kind.RETRIEVER
        ids.append(span.attributes.get("retrieval.documents.0.document.id"))
    assert ids == [
        f"{notice.nats_channel}/{notice.ref.sequence}/{notice.ref.sha256}",
        f"{notice.ref.stream}/10000/{notice.ref.sha256}",
        None,
    ]


def test_the_root_is_there_from_the_beginning() -> None:
    """A trace can be found while its run is under way."""
    [root] = fold(DEMO.run_key, DEMO.events[:1])
    assert root.parent_id is None
    assert root.trace_id == trace_id(DEMO.run_key)
    assert root.end - root.start < timedelta(seconds=1)


@given(st.data())
def test_order_within_what_is_told_at_once_does_not_matter(data: st.DataObject) -> None:
    """A publish that is repeated comes later than its neighbours: the same spans, but for the order of moments."""
    told = list(DEMO.events)
    position = data.draw(st.integers(0, len(told) - 2))
    if not _are_independent(told[position], told[position + 1]):
        return
    told[position : position + 2] = [told[position + 1], told[position]]
    swapped = {span.span_id: replace(span, moments=()) for span in fold(DEMO.run_key, told)}
    assert swapped == {span.span_id: replace(span, moments=()) for span in spans_of(DEMO)}


def _are_independent(first: Event, second: Event) -> bool:
    """What the workflow tells in one step has one time, but for microseconds; the end of a run is told last."""
    ended = events.RunCompleted
    return second.occurred_at - first.occurred_at < timedelta(microseconds=100) and not isinstance(second, ended)


def test_a_repeated_event_makes_the_same_span() -> None:
    """Whoever reads a batch again sends what was sent, under the same ids."""
    trace = RunTrace(DEMO.run_key)
    once = [span for event in DEMO.events for span in trace.add(event)]
    again = fold(DEMO.run_key, DEMO.events)
    assert again == once
    assert [span for event in DEMO.events for span in trace.add(event) if span.name == "pipeline"] == []


def test_a_terminated_run_is_closed_by_its_repair() -> None:
    """Terminated in the middle of a round: Reconcile tells so, and the round and the pipeline end."""
    position = next(number for number, event in enumerate(DEMO.events) if event.event_type == "turn.completed")
    begun = DEMO.events[:position]
    repaired = events.RunRepaired.of(
        entity_id=DEMO.run_key,
        occurrence="1",
        correlation_id=DEMO.run_key,
        session_id=begun[0].session_id,
        occurred_at=NOW,
        payload=payloads.RunRepaired(
            found="running",
            reason="terminated in Temporal",
            completed_at=begun[-1].occurred_at,
            run=payloads.RunPoint(status="cancelled"),
        ),
    )
    late = [event for event in DEMO.events[position:] if event.event_type == "turn.completed"][:1]
    spans = fold(DEMO.run_key, [*begun, repaired, *late])
    check_tree(spans)
    assert spans[-2].name == "pipeline"
    assert spans[-2].attributes["coatcheck.status"] == "cancelled"


def test_a_reset_begins_another_pipeline_in_the_same_trace() -> None:
    """The rounds before belong to the first, those after to the second; one cut off ends with its successor."""
    spans = fold(DEMO.run_key, _reset_in_the_middle())
    check_tree(spans)
    pipelines = [span for span in spans if span.name == "pipeline"]
    assert [span.attributes["coatcheck.status"] for span in pipelines] == ["reset", "completed"]
    assert [span.span_id for span in pipelines] == [
        pipeline_span_id(DEMO.run_key),
        pipeline_span_id(DEMO.run_key, "@5"),
    ]
    [first, second] = [span for span in spans if span.kind is Kind.AGENT and span.name == "research"]
    assert (first.attributes["coatcheck.status"], second.attributes["coatcheck.status"]) == ("reset", "completed")
    assert (first.parent_id, second.parent_id) == (pipelines[0].span_id, pipelines[1].span_id)


def _reset_in_the_middle() -> list[Event]:
    """Research had begun; then Temporal took the run back to its first task."""
    started = next(event for event in DEMO.events if isinstance(event, events.StageStarted))
    run_started = DEMO.events[0]
    point = payloads.RunPoint(status="running")

    def told(kind: type, entity: str, occurrence: str, payload: payloads.Payload, agent: str | None = None) -> Event:
        event: Event = kind.of(  # type: ignore[attr-defined]
            entity_id=entity,
            occurrence=occurrence,
            correlation_id=DEMO.run_key,
            session_id=started.session_id,
            agent=agent,
            occurred_at=started.occurred_at + timedelta(seconds=1),
            payload=payload,
        )
        return event

    task = started.entity_id
    notice = next(event for event in DEMO.events if isinstance(event, events.StageCompleted)).payload.notice
    completed = payloads.StageCompleted(stage="research", round=1, notice=notice, run=point)
    return [
        run_started,
        started,
        told(events.RunReset, DEMO.run_key, "@5", payloads.RunChanged(run=point)),
        told(events.StageStarted, task, "@5", started.payload, "cynthia"),
        told(events.StageCompleted, task, "@5", completed, "cynthia"),
        told(events.RunCompleted, DEMO.run_key, "@5", payloads.RunChanged(run=payloads.RunPoint(status="completed"))),
    ]


def test_a_judge_after_the_end_finds_its_round() -> None:
    """Its opinion hangs below the round, or below the root when it is about the run."""
    task = next(event.entity_id for event in DEMO.events if event.event_type == "stage.completed")
    judged = [_score(task, "clarity"), _score(DEMO.run_key, "whole")]
    spans = fold(DEMO.run_key, [*DEMO.events, *judged])
    check_tree(spans)
    by_name = {span.name: span for span in spans}
    assert by_name["clarity"].parent_id == span_id(event_id(task, "stage.started"))
    assert by_name["whole"].parent_id == root_span_id(DEMO.run_key)
    assert by_name["whole"].kind is Kind.EVALUATOR


def _score(entity: str, criterion: str) -> Event:
    return events.JudgeScored.of(
        entity_id=entity,
        occurrence=criterion,
        correlation_id=DEMO.run_key,
        session_id=DEMO.events[0].session_id,
        occurred_at=NOW,
        payload=payloads.Scored(judge="strict", kind="llm", criterion=criterion, score=0.5),
    )


def test_an_unknown_price_is_said() -> None:
    """Phoenix would show 0."""
    position, turn = next(
        (number, event) for number, event in enumerate(DEMO.events) if isinstance(event, events.TurnCompleted)
    )
    costs = []
    for cost in (None, Decimal("0.0125")):
        priced = turn.model_copy(update={"payload": turn.payload.model_copy(update={"cost_usd": cost})})
        spans = fold(DEMO.run_key, [*DEMO.events[:position], priced, *DEMO.events[position + 1 :]])
        costs.append(next(span for span in spans if span.span_id == span_id(turn.event_id)).attributes)
    assert costs[0][COST] == UNKNOWN
    assert "llm.cost.total" not in costs[0]
    assert costs[1][COST] == "0.0125"
    assert costs[1]["llm.cost.total"] == 0.0125
