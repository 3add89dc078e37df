"""What must be so in any run, whatever it was given: one function per name in `schemas.scenario.Invariant`. Pure.

These look at messages and at what parts of the run say of each other; `coatcheck.bench.lifecycle` has those that
follow the run's state. What cannot be read is told by `readable` and left out by the others.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Final

from coatcheck.bench.findings import Violation
from coatcheck.bench.lifecycle import acceptance, decisions, inputs, rounds, status
from coatcheck.bench.recording import ENDINGS, Recorded, Recording
from coatcheck.bench.run import Run
from schemas.events import (
    AttemptStarted,
    DeliverablePublished,
    Event,
    EvidenceRecorded,
    RunRepaired,
    RunStarted,
    StageCompleted,
    StageParked,
    StageRepaired,
    ToolCompleted,
    TurnCompleted,
    UnknownEvent,
    event_subject,
)
from schemas.notice import Notice
from schemas.roles import SUBMIT_REPORT
from schemas.scenario import Expect, Invariant
from schemas.streams import stream_name
from schemas.subjects import deliverable_subject
from schemas.workflow_ids import activity_id, task_key

Rule = Callable[[Run], Iterator[Violation]]

_OF_PARTS: Final[frozenset[Invariant]] = frozenset(("readable", "ids", "correlation", "order", "end"))
"""Those that need no beginning."""


def broken_invariants(recording: Recording, expect: Expect) -> list[Violation]:
    """Every violation of the invariants that are expected; of a part of a run only those that need no beginning."""
    run = Run(recording, expect)
    names = [name for name in expect.invariants if recording.is_whole or name in _OF_PARTS]
    return [item for name in names for item in _RULES[name](run)]


def _broken(rule: Invariant, message: str, at: Recorded | None) -> Violation:
    return Violation(rule=rule, message=message, sequence=at.sequence if at else None)


# --- messages -------------------------------------------------------------------------------------------------------


def readable(run: Run) -> Iterator[Violation]:
    """Every message is an event of a type and version that this release knows."""
    for message in run.recording.messages:
        if message.event is None:
            yield _broken("readable", f"no event: {message.problem.splitlines()[0]}", message)
        elif isinstance(message.event, UnknownEvent):
            told = f"{message.event.event_type}, version {message.event.version}, is not known to this release"
            yield _broken("readable", told, message)


def ids(run: Run) -> Iterator[Violation]:
    """Each event is stored once, under its own id."""
    seen: dict[str, int] = {}
    for message in run.recording.messages:
        if message.event is None:
            continue
        identity = message.event.event_id
        if message.message_id != identity:
            yield _broken("ids", f"the message id is {message.message_id!r}, the event id {identity!r}", message)
        if identity in seen:
            told = f"{message.event.event_type} {identity} is at sequence {seen[identity]} already"
            yield _broken("ids", told, message)
        seen.setdefault(identity, message.sequence)


def correlation(run: Run) -> Iterator[Violation]:
    """Subject and body agree on who says what of which run; the entity is the round that the payload names."""
    session = run.recording.run_key.rpartition("/")[0]
    for message, event in run.events:
        if message.subject != event.subject:
            yield _broken("correlation", f"stored under {message.subject}, should be {event.subject}", message)
        if event.correlation_id != run.recording.run_key:
            yield _broken("correlation", f"of the run {event.correlation_id}", message)
        if event.session_id != session:
            yield _broken("correlation", f"the session is {event.session_id!r}, not {session!r}", message)
        entity = _entity(run, event)
        if entity is not None and event.entity_id != entity:
            yield _broken("correlation", f"about {event.entity_id}, but the payload means {entity}", message)
    for message, unknown in run.recording.of(UnknownEvent):
        if message.subject.rpartition(".")[2] != event_subject("", "", "", unknown.correlation_id).rpartition(".")[2]:
            yield _broken("correlation", f"stored under {message.subject}, of {unknown.correlation_id}", message)


def _entity(run: Run, event: Event) -> str | None:
    """What the event is about by its payload; a judge's opinion may be of the whole run or of anything in it."""
    stage, number = run.place(event)
    if event.family == "judge":
        return None
    return run.recording.run_key if stage is None else task_key(run.recording.run_key, activity_id(stage, number))


def speakers(run: Run) -> Iterator[Violation]:
    """Whoever is named for a round is the agent of its stage; judges speak only of runs that have ended."""
    for message, event in run.events:
        stage, _ = run.place(event)
        if stage is None:
            continue
        agent = run.agents.get(stage)
        if agent is None:
            yield _broken("speakers", f"there is no stage {stage!r} in the pipeline", message)
        elif event.family != "judge" and event.agent != agent:
            yield _broken("speakers", f"{event.event_type} names {event.agent}, but {stage} is {agent}'s", message)
        if isinstance(event, StageCompleted) and event.payload.notice.agent != agent:
            yield _broken(
                "speakers", f"the notice is {event.payload.notice.agent}'s, but {stage} is {agent}'s", message
            )
    for message, event in run.events:
        if event.family == "judge" and (run.ending is None or message.sequence < run.ending.sequence):
            yield _broken("speakers", f"{event.event_type} of a run that had not ended", message)


def causation(run: Run) -> Iterator[Violation]:
    """Every event but the first, and those of judges, names an earlier one; what is done in a round, its start."""
    earlier: dict[str, Event] = {}
    for message, event in run.events:
        cause = event.causation_id
        if cause is None and not isinstance(event, RunStarted | RunRepaired) and event.family != "judge":
            yield _broken("causation", f"{event.event_type} has no cause", message)
        if cause is not None and cause not in earlier:
            yield _broken("causation", f"the cause {cause} of {event.event_type} is not an earlier event", message)
        is_work = event.family == "agent" or isinstance(event, TurnCompleted)
        if cause in earlier and is_work:
            start = earlier[str(cause)]
            if start.event_type != "stage.started" or start.entity_id != event.entity_id:
                told = (
                    f"the cause of {event.event_type} is {start.event_type} of {start.entity_id}, not its round's start"
                )
                yield _broken("causation", told, message)
        earlier.setdefault(event.event_id, event)


def order(run: Run) -> Iterator[Violation]:
    """The log is in order of time; so is what one workflow or one agent's round tells, the latter before its notice."""
    before: Recorded | None = None
    latest: dict[str, Event] = {}
    noticed: set[str] = set()
    for message in run.recording.messages:
        if before is not None and (message.sequence <= before.sequence or message.stored_at < before.stored_at):
            yield _broken("order", f"stored before sequence {before.sequence}, which comes first", message)
        before = message
    for message, event in run.events:
        voice = _voice(event)
        if voice is None:
            continue
        last = latest.get(voice)
        if last is not None and event.occurred_at < last.occurred_at:
            yield _broken("order", f"{event.event_type} happened before {last.event_type}, which comes first", message)
        if event.family == "agent" and event.entity_id in noticed:
            yield _broken("order", f"{event.event_type} is told after the notice of its round", message)
        if isinstance(event, StageCompleted):
            noticed.add(event.entity_id)
        latest[voice] = event


def _voice(event: Event) -> str | None:
    """Events of one voice are in order; a turn is told by the journal, whose clock is another's."""
    if isinstance(event, TurnCompleted | RunRepaired | StageRepaired) or event.family == "judge":
        return None
    return "workflow" if event.family == "system" else f"{event.source} {event.entity_id}"


def clock(run: Run) -> Iterator[Violation]:
    """Nothing is told before it happened or long after; what is done in a round is done while it is under way."""
    skew, late = timedelta(seconds=run.expect.skew_seconds), timedelta(seconds=run.expect.late_seconds)
    for message, event in run.events:
        if event.occurred_at - message.stored_at > skew:
            ahead = (event.occurred_at - message.stored_at) / timedelta(seconds=1)
            yield _broken("clock", f"{event.event_type} happened {ahead:.1f} s after it was stored", message)
        is_work = event.family == "agent" or isinstance(event, TurnCompleted)
        started, ended = run.span(event.entity_id) if is_work else (None, None)
        told_by = message.stored_at - late
        if is_work and started is not None and event.occurred_at < started - skew:
            yield _broken("clock", f"{event.event_type} happened before its round began", message)
        if is_work and ended is not None and event.occurred_at > ended + max(skew, late if run.is_cut_short else skew):
            yield _broken("clock", f"{event.event_type} happened after its round had ended", message)
        known = ended if is_work else event.occurred_at
        if known is not None and known < told_by and event.family != "judge":
            after = (message.stored_at - known) / timedelta(seconds=1)
            yield _broken("clock", f"{event.event_type} was told {after:.1f} s late", message)


# --- beginning and end ----------------------------------------------------------------------------------------------


def beginning(run: Run) -> Iterator[Violation]:
    """The start of the run comes first, and once."""
    starts = run.recording.of(RunStarted)
    if not starts:
        yield _broken("beginning", "there is no run.started", next(iter(run.recording.messages), None))
    for message, _ in starts[1:]:
        yield _broken("beginning", "the run starts again", message)
    if starts and starts[0][0] is not run.recording.messages[0]:
        yield _broken("beginning", "something comes before run.started", run.recording.messages[0])


def end(run: Run) -> Iterator[Violation]:
    """The run ends, once; after that only turns are told, judges speak, and agents that were cut short.

    How long after it, is for `clock` to say.
    """
    endings = [(message, event) for message, event in run.events if event.event_type in ENDINGS]
    if run.ending is None:
        last = run.recording.messages[-1] if run.recording.messages else None
        yield _broken("end", "the run has not ended here: its events are cut off, or it is still under way", last)
        return
    for message, event in endings[1:]:
        yield _broken("end", f"{event.event_type}, but the run had ended already", message)
    for message, event in run.events:
        if message.sequence <= run.ending.sequence or event.family == "judge" or event.event_type in ENDINGS:
            continue
        may_come = isinstance(event, TurnCompleted | RunRepaired | StageRepaired) or (
            event.family == "agent" and run.is_cut_short
        )
        if not may_come:
            yield _broken("end", f"{event.event_type} after the run's end", message)


# --- what a round leaves --------------------------------------------------------------------------------------------


def deliverables(run: Run) -> Iterator[Violation]:
    """Every completed round has told of its deliverable, exactly as the notice names it; none has two."""
    published = run.by_entity(DeliverablePublished)
    taken: dict[tuple[str, int], str] = {}
    for message, event in run.recording.of(StageCompleted):
        told = published.get(event.entity_id, [])
        if not told:
            yield _broken("deliverables", f"{_round(event)} is complete, but its deliverable was not told", message)
        yield from _misplaced(run, event.payload.notice, event, message)
        for at, item in told:
            if differing := _differences(item, event.payload.notice):
                yield _broken("deliverables", f"{_round(event)}: {differing} differ from the notice", at)
    for entity, items in published.items():
        for at, item in items:
            place = (item.payload.stream, item.payload.sequence)
            if taken.setdefault(place, entity) != entity:
                yield _broken("deliverables", f"{place[0]}:{place[1]} is the deliverable of {taken[place]} already", at)
        for at, _ in items[1:]:
            yield _broken("deliverables", "a round has one deliverable, this is another", at)


def _misplaced(run: Run, notice: Notice, event: StageCompleted, at: Recorded) -> Iterator[Violation]:
    kind = run.task_types.get(event.entity_id)
    if kind is not None and run.started is not None:
        subject = deliverable_subject(str(event.agent), kind, run.started.feature)
        if notice.nats_channel != subject or notice.metadata.stream != stream_name(kind):
            yield _broken("deliverables", f"{_round(event)} delivered to {notice.nats_channel}, not {subject}", at)
        if notice.task != run.started.feature:
            yield _broken("deliverables", f"the notice is about {notice.task!r}, not {run.started.feature!r}", at)
    if notice.metadata.round != event.payload.round:
        yield _broken("deliverables", f"{_round(event)} has the notice of round {notice.metadata.round}", at)


def _differences(event: DeliverablePublished, notice: Notice) -> str:
    meta, told = notice.metadata, event.payload
    pairs = {
        "subject": (told.subject, notice.nats_channel),
        "stream": (told.stream, meta.stream),
        "sequence": (told.sequence, meta.sequence),
        "sha256": (told.sha256, meta.sha256),
        "bytes": (told.bytes, meta.bytes),
        "agent": (event.agent, notice.agent),
    }
    return " and ".join(name for name, (one, other) in pairs.items() if one != other)


def evidence(run: Run) -> Iterator[Violation]:
    """What the checks did is told by the agent and in the notice, the same."""
    recorded = run.by_entity(EvidenceRecorded)
    for message, event in run.recording.of(StageCompleted):
        claimed = event.payload.notice.metadata.evidence
        told = recorded.get(event.entity_id, [])
        if claimed is not None and not told:
            yield _broken("evidence", f"the notice of {_round(event)} has evidence that was not told", message)
        for at, item in told:
            summary = item.payload.summary
            if claimed is None or (claimed.passed, claimed.failed) != (summary.passed, summary.failed):
                has = "none" if claimed is None else f"{claimed.passed} passed, {claimed.failed} failed"
                said = f"{summary.passed} passed, {summary.failed} failed"
                yield _broken("evidence", f"{_round(event)}: {said}, but the notice has {has}", at)


def turns(run: Run) -> Iterator[Violation]:
    """The turns of a round are numbered 1, 2, 3 …, and their tokens and costs add up to those of its notice."""
    told = run.by_entity(TurnCompleted)
    for items in told.values():
        numbers = [event.payload.turn for _, event in items]
        if sorted(numbers) != list(range(1, len(numbers) + 1)):
            at, event = items[-1]
            yield _broken("turns", f"{_round(event)} has the turns {', '.join(map(str, sorted(numbers)))}", at)
        for at, event in items:
            if event.payload.calls < 1:
                yield _broken("turns", f"turn {event.payload.turn} of {_round(event)} was answered without a call", at)
    if run.ending is None:  # the turns of a round are told right after its end
        return
    for message, completed in run.recording.of(StageCompleted):
        spent = [turn.payload for _, turn in told.get(completed.entity_id, [])]
        meta = completed.payload.notice.metadata
        costs = [turn.cost_usd for turn in spent]
        known = [cost for cost in costs if cost is not None]
        sums: dict[str, tuple[Decimal | int | None, Decimal | int | None]] = {
            "tokens_in": (sum(turn.tokens_in for turn in spent), meta.tokens_in),
            "tokens_out": (sum(turn.tokens_out for turn in spent), meta.tokens_out),
            "tokens_cached": (sum(turn.tokens_cached for turn in spent), meta.tokens_cached or 0),
            "cost_usd": (sum(known, Decimal(0)) if len(known) == len(costs) else None, meta.cost_usd),
        }
        for name, (added, claimed) in sums.items():
            is_unpriced = name == "cost_usd" and not spent  # what a command costs nobody knows
            if added != claimed and not is_unpriced:
                told_of = f"{_round(completed)}: {name} of its {len(spent)} turns is {added}, the notice has {claimed}"
                yield _broken("turns", told_of, message)


def tools(run: Run) -> Iterator[Violation]:
    """A tool runs only when a turn of its round has called it.

    Of a round that was cut short a turn may be missing: it was answered when the round's turns had been told.
    """
    told = run.by_entity(TurnCompleted)
    completed = {event.entity_id for _, event in run.recording.of(StageCompleted)}
    for message, event in run.recording.of(ToolCompleted):
        asked = {
            (call.tool_call_id, call.tool)
            for _, turn in told.get(event.entity_id, [])
            for call in turn.payload.tool_calls
        }
        if event.entity_id in completed and (event.payload.tool_call_id, event.payload.tool) not in asked:
            call = f"{event.payload.tool} ({event.payload.tool_call_id})"
            yield _broken("tools", f"no turn of {_round(event)} has called {call}", message)


def calls(run: Run) -> Iterator[Violation]:
    """Every tool call of a completed round was carried out.

    Of a model that makes malformed calls this is not so: those are answered with what is wrong, and no tool runs.
    """
    done = {(event.entity_id, event.payload.tool_call_id) for _, event in run.recording.of(ToolCompleted)}
    completed = {event.entity_id for _, event in run.recording.of(StageCompleted)}
    for message, event in run.recording.of(TurnCompleted):
        for call in event.payload.tool_calls:
            is_done = call.tool == SUBMIT_REPORT or (event.entity_id, call.tool_call_id) in done
            if event.entity_id in completed and not is_done:
                told = f"{_round(event)}: the call of {call.tool} ({call.tool_call_id}) has no tool.completed"
                yield _broken("calls", told, message)


def attempts(run: Run) -> Iterator[Violation]:
    """The attempt that gave the notice was told, unless it was the first; each once, and none after it."""
    told = run.by_entity(AttemptStarted)
    parked = {event.entity_id for _, event in run.recording.of(StageParked)}
    for message, event in run.recording.of(StageCompleted):
        last = event.payload.notice.metadata.attempt or 1
        numbers = Counter(item.payload.attempt for _, item in told.get(event.entity_id, []))
        if twice := [number for number, times in numbers.items() if times > 1]:
            yield _broken("attempts", f"{_round(event)}: attempt {max(twice)} was told more than once", message)
        if last > 1 and last not in numbers:
            yield _broken("attempts", f"{_round(event)}: attempt {last} gave the notice and was not told", message)
        # A parked round begins again with its first attempt.
        if beyond := [number for number in numbers if number > last and event.entity_id not in parked]:
            yield _broken("attempts", f"{_round(event)}: attempt {max(beyond)}, but {last} gave the notice", message)


def _round(event: StageCompleted | DeliverablePublished | TurnCompleted | ToolCompleted) -> str:
    return f"{event.payload.stage}, round {event.payload.round}"


_RULES: Final[dict[Invariant, Rule]] = {
    "readable": readable,
    "ids": ids,
    "correlation": correlation,
    "speakers": speakers,
    "causation": causation,
    "order": order,
    "clock": clock,
    "beginning": beginning,
    "end": end,
    "rounds": rounds,
    "status": status,
    "acceptance": acceptance,
    "inputs": inputs,
    "decisions": decisions,
    "deliverables": deliverables,
    "evidence": evidence,
    "turns": turns,
    "tools": tools,
    "calls": calls,
    "attempts": attempts,
}
