"""Faults seeded into good recordings, one function per kind.

A mutant is `None` when the kind does not apply there, or when what comes out is void: a run that could have been good.
That is told without the code under test, by what the writers of the log promise (`surgery.must_precede`, and below).
"""

import json
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from coatcheck.bench.recording import Recorded, Recording
from schemas.event_payloads import Scored
from schemas.events import JudgeScored, event_subject
from schemas.scenario import Scenario
from tests.bench import surgery
from tests.bench.surgery import edited, event, fields_of, indexes, replaced, with_fields, with_messages, with_payload

Mutant = Recording | None
Kind = Callable[[Recording, Scenario, random.Random], Mutant]
_AFTERWARDS: Final = frozenset({"turn", "judge"})
"""What may come when the run is over."""
_AGENTS: Final = ("cynthia", "sylvia", "roy", "jen", "billy", "priya")


def is_void_without(recording: Recording, dropped: Sequence[Recorded]) -> bool:
    """Whether nobody can miss them: a judge's opinion, and what an agent did in a round that was cut short."""
    for message in dropped:
        gone = event(message)
        if gone.family == "judge":
            continue
        is_work = gone.family == "agent" or gone.event_type == "turn.completed"
        if not is_work or surgery.is_completed_round(recording, gone.entity_id):
            return False
        later = [
            item
            for item in recording.messages
            if event(item).event_type == "turn.completed"
            and event(item).entity_id == gone.entity_id
            and item not in dropped
            and fields_of(item)["payload"]["turn"] > fields_of(message)["payload"].get("turn", 0)
        ]
        if gone.event_type == "turn.completed" and later:
            return False
    return True


def dropped(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """One event is not there."""
    index = rng.randrange(len(recording.messages))
    messages = list(recording.messages)
    gone = messages.pop(index)
    return None if is_void_without(recording, [gone]) else Recording(recording.run_key, tuple(messages))


def duplicated(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """One event is there twice."""
    messages = list(recording.messages)
    index = rng.randrange(len(messages))
    messages.insert(rng.randrange(index + 1, len(messages) + 1), messages[index])
    return with_messages(recording, messages)


def told_twice(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """One event is told again as another occurrence, under an id of its own."""
    messages = list(recording.messages)
    index = rng.randrange(len(messages))
    again = edited(messages[index], occurrence="again")
    messages.insert(index + 1, again)
    first = event(messages[index])
    # A tool call that is carried out again after its worker died, and a judge that is asked again, are no fault.
    is_void = first.family == "judge" or first.event_type == "tool.completed"
    return None if is_void else with_messages(recording, messages)


def reordered(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """One event is elsewhere."""
    source, target = rng.randrange(len(recording.messages)), rng.randrange(len(recording.messages))
    mutant, is_wrong = surgery.moved(recording, source, target)
    return mutant if is_wrong else None


def late(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """One event is told long after everything else."""
    messages = list(recording.messages)
    message = messages.pop(rng.randrange(len(messages)))
    if event(message).family == "judge":
        return None  # who may come at any time after the run
    last = recording.messages[-1]
    stored = last.stored_at + timedelta(seconds=rng.uniform(300, 3600))
    messages.append(replace(message, sequence=last.sequence + 5, stored_at=stored))
    return Recording(recording.run_key, tuple(messages))


def stalled(recording: Recording, scenario: Scenario, rng: random.Random) -> Mutant:
    """From some event on everything happens much later than the scenario allows."""
    begin = recording.messages[rng.randrange(1, len(recording.messages))].stored_at
    stages = [
        item
        for item in recording.messages
        if item.stored_at >= begin and event(item).event_type.partition(".")[0] not in _AFTERWARDS
    ]
    limit = scenario.expect.max_seconds
    if not stages or limit is None:
        return None  # only the turns of the last round, which come after the run's end
    delay = timedelta(seconds=limit * rng.uniform(1.5, 20))

    def change(moment: datetime) -> datetime:
        return moment + delay if moment >= begin else moment

    start = event(stages[0]).occurred_at

    def happened(moment: datetime) -> datetime:
        return moment + delay if moment >= start else moment

    messages = []
    for message in recording.messages:
        fields = fields_of(message)
        is_late = message.stored_at >= begin
        if is_late:
            fields["occurred_at"] = happened(event(message).occurred_at).isoformat()
        messages.append(replace(with_fields(message, fields), stored_at=change(message.stored_at)))
    return Recording(recording.run_key, tuple(messages))


def withheld(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """From some event on everything is told long after it happened."""
    first = rng.randrange(len(recording.messages))
    if {event(item).family for item in recording.messages[first:]} == {"judge"}:
        return None  # who may come at any time after the run
    delay = timedelta(seconds=rng.uniform(200, 3600))
    kept, told = recording.messages[:first], recording.messages[first:]
    late = (replace(item, stored_at=item.stored_at + delay) for item in told)
    return Recording(recording.run_key, (*kept, *late))


def wrong_agent(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """An event is said by, or names, another agent, and is stored as that agent's would be."""
    index = rng.choice(indexes(recording, lambda item: item.agent is not None))
    message = recording.messages[index]
    other = rng.choice([agent for agent in _AGENTS if agent != event(message).agent])
    changes: dict[str, Any] = {"agent": other}
    if event(message).family == "agent":
        changes["source"] = other
    if event(message).event_type == "stage.completed" and rng.random() < 0.5:
        return replaced(recording, index, with_payload(message, "notice.agent", other))
    return replaced(recording, index, edited(message, **changes))


def wrong_correlation(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """An event is of another run: its body, its body as a whole, or its subject too."""
    index = rng.randrange(len(recording.messages))
    message, other = recording.messages[index], surgery.new_run_key(recording, rng)
    fields = fields_of(message)
    how = rng.randrange(3)
    if how > 0:
        fields["entity_id"] = other + fields["entity_id"].removeprefix(recording.run_key)
    fields["correlation_id"] = other
    changed = with_fields(message, fields)
    return replaced(recording, index, changed if how == 2 else replace(changed, subject=message.subject))


def forged_judge(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """Somebody else speaks as a judge, or a judge while the run is under way."""
    index = rng.randrange(len(recording.messages) - 1)
    message, how = recording.messages[index], rng.randrange(4)
    told = event(message)
    scored = JudgeScored.of(
        entity_id=recording.run_key,
        occurrence=f"forged-{rng.getrandbits(32)}",
        correlation_id=recording.run_key,
        session_id=told.session_id,
        occurred_at=told.occurred_at,
        payload=Scored(judge="checks", kind="check", criterion="clear", score=1.0),
    )
    forged = replace(message, subject=scored.subject, message_id=scored.event_id, body=scored.to_wire().decode())
    messages, agent = list(recording.messages), rng.choice(_AGENTS)
    if how == 1:
        forged = replace(forged, subject=event_subject("agent", agent, "judge.scored", recording.run_key))
    elif how == 2:
        forged = replace(forged, body=json.dumps(fields_of(forged) | {"source": agent}))
    elif how == 3:
        works = indexes(recording, lambda item: item.family == "agent")
        index = rng.choice(works)
        by_agent = messages[index]
        subject = event_subject("judge", "judge", event(by_agent).event_type, recording.run_key)
        return replaced(recording, index, replace(by_agent, subject=subject))
    # Under way, so that also the well-formed one is forged: a judge is only asked when the run has ended.
    ended = next(i for i, item in enumerate(messages) if event(item).event_type.startswith("run.") and i)
    messages.insert(rng.randrange(1, ended + 1) if how == 0 else index + 1, forged)
    return with_messages(recording, messages)


def missing_deliverable(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """A round is complete, but what its notice announces was not published, or something else was."""
    works = indexes(
        recording,
        lambda item: (
            item.event_type == "deliverable.published" and surgery.is_completed_round(recording, item.entity_id)
        ),
    )
    if not works:
        return None
    index, how = rng.choice(works), rng.randrange(3)
    message = recording.messages[index]
    if how == 0:
        messages = [item for item in recording.messages if item is not message]
        return Recording(recording.run_key, tuple(messages))
    if how == 1:
        return replaced(recording, index, with_payload(message, "sequence", rng.randrange(10**6, 10**7)))
    return replaced(recording, index, with_payload(message, "sha256", f"{rng.getrandbits(256):064x}"))


def over_budget(recording: Recording, scenario: Scenario, rng: random.Random) -> Mutant:
    """A turn takes more than the whole run may, and its notice agrees."""
    turns = indexes(
        recording,
        lambda item: item.event_type == "turn.completed" and surgery.is_completed_round(recording, item.entity_id),
    )
    if not turns:
        return None
    index, budget = rng.choice(turns), scenario.expect.budget
    message = recording.messages[index]
    if rng.random() < 0.5 and budget.calls is not None:
        return replaced(recording, index, with_payload(message, "calls", budget.calls + rng.randint(1, 50)))
    assert budget.tokens is not None
    more = budget.tokens + rng.randint(1, 10**6)
    mutant = replaced(
        recording, index, with_payload(message, "tokens_in", fields_of(message)["payload"]["tokens_in"] + more)
    )
    entity = event(message).entity_id
    end = indexes(recording, lambda item: item.event_type == "stage.completed" and item.entity_id == entity)[0]
    had = fields_of(mutant.messages[end])["payload"]["notice"]["metadata"]["tokens_in"]
    return replaced(mutant, end, with_payload(mutant.messages[end], "notice.metadata.tokens_in", had + more))


def _other(value: Any, rng: random.Random) -> Any:
    """A value of the same kind that is another."""
    if isinstance(value, int):
        return value + rng.choice([1, 2, 7, 1000])
    if len(value) == 64:
        return f"{rng.getrandbits(256):064x}"
    options = ["approve", "revise", "reject", "pass", "fail", "research", "statistics", "agog.deliverables.roy.x.y"]
    return rng.choice([option for option in options if option != value])


_FACTS: Final[dict[str, tuple[str, ...]]] = {
    "run.started": ("feature", "priority", "tenant", "stages.0", "agents.0", "brief_sha256", "brief_bytes"),
    "stage.started": ("round", "stage"),
    "stage.completed": (
        "round",
        "stage",
        "notice.nats_channel",
        "notice.metadata.stream",
        "notice.metadata.sequence",
        "notice.metadata.sha256",
        "notice.metadata.bytes",
        "notice.metadata.round",
        "notice.metadata.tokens_in",
        "notice.metadata.tokens_out",
        "notice.metadata.verdict",
        "notice.metadata.evidence.passed",
        "notice.metadata.evidence.failed",
        "notice.task",
    ),
    "stage.accepted": ("stage", "rounds"),
    "stage.parked": ("stage", "round"),
    "stage.failed": ("stage", "round"),
    "stage.cancelled": ("stage", "round"),
    "decision.requested": ("stage", "round", "sha256", "subject"),
    "decision.made": ("stage", "round", "sha256", "action"),
    "turn.completed": ("stage", "round", "turn", "tokens_in", "tokens_out", "calls"),
    "tool.completed": ("stage", "round", "tool_call_id", "tool"),
    "deliverable.published": ("stage", "round", "subject", "stream", "sequence", "sha256", "bytes"),
    "evidence.recorded": ("stage", "round", "summary.passed", "summary.failed"),
}
"""What an event claims and somebody else can contradict. Words for people (reasons, summaries, comments), durations,
sizes of results, names of models are not here: any value of those could have been."""


def wrong_payload(recording: Recording, scenario: Scenario, rng: random.Random) -> Mutant:
    """An event says something that is not so."""
    index = rng.randrange(len(recording.messages))
    message = recording.messages[index]
    payload, kind = fields_of(message)["payload"], event(message).event_type
    path = rng.choice(_FACTS.get(kind, ("run.status",)))
    value: Any = payload
    for part in path.split("."):
        value = value[int(part)] if isinstance(value, list) else value.get(part)
        if value is None:
            return None
    if kind == "decision.made" and path == "action":
        new: Any = {"approve": "revise", "revise": "approve", "reject": "approve"}[value]
    else:
        new = _other(value, rng)
    if kind == "turn.completed" and not surgery.is_completed_round(recording, event(message).entity_id):
        return None  # nobody adds up what an unfinished round took
    if kind == "turn.completed" and path == "calls":
        budget = scenario.expect.budget.calls or 0
        new = rng.choice([0, budget + 1])  # one more call may have been: it failed and was repeated
    if (
        kind == "tool.completed"
        and path.startswith("tool")
        and not surgery.is_completed_round(recording, event(message).entity_id)
    ):
        return None
    return replaced(recording, index, with_payload(message, path, new))


def wrong_state(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """An event says that the run is otherwise than it is."""
    index = rng.choice(indexes(recording, lambda item: hasattr(item.payload, "run")))
    message = recording.messages[index]
    point = fields_of(message)["payload"]["run"]
    path = rng.choice(["status", "completed_steps", "current_step"])
    new = {
        "status": rng.choice(
            [item for item in ("running", "paused", "waiting", "completed") if item != point["status"]]
        ),
        "completed_steps": point["completed_steps"] + rng.choice([1, 2]),
        "current_step": rng.choice([item for item in ("qa", "docs", None) if item != point.get("current_step")]),
    }[path]
    return replaced(recording, index, with_payload(message, f"run.{path}", new))


def extra_stage(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """A whole round that nobody asked for: of a stage that the pipeline does not have, or one round more."""
    starts = indexes(recording, lambda item: item.event_type == "stage.accepted")
    if not starts:
        return None
    entity = event(recording.messages[rng.choice(starts)]).entity_id
    group = indexes(recording, lambda item: item.entity_id == entity and item.family == "system")
    stage, number = fields_of(recording.messages[group[0]])["payload"]["stage"], 0
    number = max(
        fields_of(item)["payload"].get("round", 0)
        for item in recording.messages
        if fields_of(item)["payload"].get("stage") == stage
    )
    new = ("docs", 1) if rng.random() < 0.5 else (stage, number + 1)
    copies = []
    for index in group:
        fields = fields_of(recording.messages[index])
        payload = fields["payload"] | {"stage": new[0]}
        payload |= {"rounds": new[1]} if "rounds" in payload else {"round": new[1]}
        fields |= {"payload": payload, "entity_id": f"{recording.run_key}/{new[0]}-{new[1]}"}
        copies.append(with_fields(recording.messages[index], fields))
    messages = list(recording.messages)
    accepted = indexes(recording, lambda item: item.entity_id == entity and item.event_type == "stage.accepted")[-1]
    moment = event(messages[accepted]).occurred_at
    messages[accepted + 1 : accepted + 1] = [edited(item, occurred_at=moment.isoformat()) for item in copies]
    return with_messages(recording, messages)


def truncated(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """The end is not there."""
    kept = rng.randrange(1, len(recording.messages))
    gone = recording.messages[kept:]
    return None if is_void_without(recording, gone) else Recording(recording.run_key, recording.messages[:kept])


def beheaded(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """The beginning is not there."""
    return Recording(recording.run_key, recording.messages[rng.randrange(1, len(recording.messages)) :])


def wrong_cause(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """An event is caused by nothing, by something unheard of, or by something later."""
    index = rng.randrange(1, len(recording.messages))
    later = recording.messages[index:]
    if event(recording.messages[index]).family == "judge":
        return None  # who may name a cause or none
    cause = rng.choice([None, str(uuid.UUID(int=rng.getrandbits(128), version=5)), rng.choice(later).message_id])
    return replaced(recording, index, edited(recording.messages[index], causation_id=cause))


def ahead(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """An event happened after it was stored."""
    index = rng.randrange(len(recording.messages))
    message = recording.messages[index]
    moment = message.stored_at + timedelta(seconds=rng.uniform(60, 10**6))
    return replaced(recording, index, edited(message, occurred_at=moment.isoformat()))


def wrong_id(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """An event has not its own id: one of nobody, that of another event, or a message id that is not its id."""
    index = rng.randrange(len(recording.messages))
    message, stranger = recording.messages[index], str(uuid.UUID(int=rng.getrandbits(128), version=5))
    other = rng.choice([item.message_id for item in recording.messages if item is not message])
    identity, how = rng.choice([stranger, other]), rng.randrange(2)
    if how == 0:
        return replaced(recording, index, replace(message, message_id=identity))
    changed = with_fields(message, fields_of(message) | {"event_id": identity}, own_id=False)
    return replaced(recording, index, changed)


def unknown(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """An event of a type or version that nobody registered."""
    index = rng.randrange(len(recording.messages))
    message = recording.messages[index]
    if rng.random() < 0.5:
        return replaced(recording, index, edited(message, version=99))
    return replaced(recording, index, edited(message, event_type=f"{event(message).event_type}x"))


def garbled(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """A message that was cut, or from which a part was lost."""
    index = rng.randrange(len(recording.messages))
    message = recording.messages[index]
    if rng.random() < 0.5:
        return replaced(recording, index, replace(message, body=message.body[: rng.randrange(len(message.body))]))
    fields = fields_of(message)
    needed = [
        name
        for name in fields
        if name not in {"severity", "traceparent", "source", "version", "occurrence", "causation_id", "agent"}
    ]
    fields.pop(rng.choice(needed))
    return replaced(recording, index, replace(message, body=json.dumps(fields)))


def foreign_subject(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """An event is stored where another speaker's belong."""
    index = rng.randrange(len(recording.messages))
    message = recording.messages[index]
    family, source, kind = message.subject.split(".")[2:5]
    speakers = [("system", "core"), ("judge", "judge"), *(("agent", agent) for agent in _AGENTS)]
    other = rng.choice([speaker for speaker in speakers if speaker != (family, source)])
    subject = event_subject(*other, kind.replace("-", "."), recording.run_key)
    return replaced(recording, index, replace(message, subject=subject))


def wrong_inputs(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """A round is handed another deliverable than the latest, or one that was never made."""
    starts = indexes(recording, lambda item: item.event_type == "stage.started" and bool(item.payload.inputs))  # type: ignore[union-attr]
    if not starts:
        return None
    index = rng.choice(starts)
    message = recording.messages[index]
    inputs: dict[str, str] = fields_of(message)["payload"]["inputs"]
    stage = rng.choice(sorted(inputs))
    kind, sequence, digest, size = inputs[stage].split(":")
    new = rng.choice([f"{kind}:{int(sequence) + 1}:{digest}:{size}", f"{kind}:{sequence}:{digest}:{int(size) + 1}"])
    return replaced(recording, index, with_payload(message, "inputs", inputs | {stage: new}))


def lost_round(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """Everything that one round told is not there."""
    entities = sorted({event(item).entity_id for item in recording.messages} - {recording.run_key})
    gone = rng.choice(entities)
    return Recording(recording.run_key, tuple(item for item in recording.messages if event(item).entity_id != gone))


def lost_stage_events(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """Everything of one type is not there."""
    kinds = sorted({event(item).event_type for item in recording.messages})
    kind = rng.choice(kinds)
    gone = [item for item in recording.messages if event(item).event_type == kind]
    if is_void_without(recording, gone):
        return None
    return Recording(recording.run_key, tuple(item for item in recording.messages if item not in gone))


def forged_decision(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """A decision that nobody was asked for, well-formed and in its place."""
    ends = indexes(recording, lambda item: item.event_type == "stage.completed")
    if not ends:
        return None
    index = rng.choice(ends)
    fields = fields_of(recording.messages[index])
    said = fields["payload"]
    fields["payload"] = {
        "stage": said["stage"],
        "round": said["round"],
        "action": rng.choice(["approve", "revise"]),
        "by": "mallory",
        "sha256": said["notice"]["metadata"]["sha256"],
        "run": said["run"],
    }
    fields |= {"event_type": "decision.made", "causation_id": event(recording.messages[index]).event_id}
    messages = list(recording.messages)
    messages.insert(index + 1, with_fields(messages[index], fields))
    return with_messages(recording, messages)


def wrong_request(recording: Recording, _: Scenario, rng: random.Random) -> Mutant:
    """The run was given something else."""
    message = recording.messages[0]
    path, value = rng.choice(
        [
            ("feature", "something-else"),
            ("tenant", "acme"),
            ("priority", 1),
            ("brief_sha256", f"{rng.getrandbits(256):064x}"),
            ("brief_bytes", rng.randrange(1000, 9999)),
        ]
    )
    return replaced(recording, 0, with_payload(message, path, value))


def failed_tool(recording: Recording, scenario: Scenario, rng: random.Random) -> Mutant:
    """A tool ended with an error where the scenario forbids that; elsewhere it may."""
    tools = indexes(recording, lambda item: item.event_type == "tool.completed")
    if not tools or not scenario.expect.forbidden:
        return None
    index = rng.choice(tools)
    return replaced(recording, index, with_payload(recording.messages[index], "outcome", "error"))


KINDS: Final[tuple[Kind, ...]] = (
    dropped,
    duplicated,
    told_twice,
    reordered,
    late,
    stalled,
    withheld,
    wrong_agent,
    wrong_correlation,
    forged_judge,
    missing_deliverable,
    over_budget,
    wrong_payload,
    wrong_state,
    extra_stage,
    truncated,
    beheaded,
    wrong_cause,
    ahead,
    wrong_id,
    unknown,
    garbled,
    foreign_subject,
    wrong_inputs,
    lost_round,
    lost_stage_events,
    forged_decision,
    wrong_request,
    failed_tool,
)
