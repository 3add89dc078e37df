"""Cutting recordings open: events with changed parts, messages in another order. For mutants and for variations."""

import json
import random
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from coatcheck.bench.recording import ENDINGS, Recorded, Recording
from schemas.events import Event, UnknownEvent, event_subject
from schemas.workflow_ids import event_id

Fields = dict[str, Any]


def fields_of(message: Recorded) -> Fields:
    """The event as JSON."""
    fields: Fields = json.loads(message.body)
    return fields


def with_fields(message: Recorded, fields: Fields, *, own_id: bool = True) -> Recorded:
    """The message with another event in it; stored as such an event would be, under its own id and subject."""
    if own_id:
        fields = fields | {
            "event_id": event_id(fields["entity_id"], fields["event_type"], fields.get("occurrence", ""))
        }
    family = message.subject.split(".")[2]
    return replace(
        message,
        subject=event_subject(family, fields["source"], fields["event_type"], fields["correlation_id"]),
        message_id=fields["event_id"],
        body=json.dumps(fields, ensure_ascii=False),
    )


def edited(message: Recorded, **changes: Any) -> Recorded:
    """The message with changed parts of the envelope."""
    return with_fields(message, fields_of(message) | changes)


def with_payload(message: Recorded, path: str, value: Any) -> Recorded:
    """The message with another value at a dotted path of its payload."""
    fields = fields_of(message)
    *parents, last = path.split(".")
    place = fields["payload"]
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place[part]
    place[int(last) if isinstance(place, list) else last] = value
    return with_fields(message, fields)


def with_messages(recording: Recording, messages: Iterable[Recorded]) -> Recording:
    """The messages in the places (sequence, time of storing) that the log would give them."""
    listed = list(messages)
    places = [(item.sequence, item.stored_at) for item in recording.messages]
    while len(places) < len(listed):
        sequence, stored = places[-1]
        places.append((sequence + 1, stored + timedelta(milliseconds=1)))
    kept = (
        replace(item, sequence=sequence, stored_at=at) for item, (sequence, at) in zip(listed, places, strict=False)
    )
    return Recording(recording.run_key, tuple(kept))


def replaced(recording: Recording, index: int, message: Recorded) -> Recording:
    """The recording with another message in a place."""
    messages = list(recording.messages)
    messages[index] = message
    return Recording(recording.run_key, tuple(messages))


def event(message: Recorded) -> Event:
    """The event of a good message."""
    found = message.event
    assert found is not None
    assert not isinstance(found, UnknownEvent)
    return found


def indexes(recording: Recording, wanted: Callable[[Event], bool]) -> list[int]:
    """Where the events are that are wanted."""
    return [index for index, message in enumerate(recording.messages) if wanted(event(message))]


def is_completed_round(recording: Recording, entity: str) -> bool:
    """Whether a round has its notice."""
    return any(
        event(message).event_type == "stage.completed" and event(message).entity_id == entity
        for message in recording.messages
    )


def has_completed(recording: Recording) -> bool:
    """Whether the run was completed, so that no agent was cut short."""
    return any(event(message).event_type == "run.completed" for message in recording.messages)


def must_precede(first: Recorded, second: Recorded, *, is_completed: bool) -> bool:
    """Whether a good log can only have the two in this order, by who writes what, and when.

    The workflow tells in the order of its own steps. An agent tells of a round in one request, in order, before the
    round's notice can be told. Turns and judges come on their own ways: a turn after its round's start, and a judge
    after the run's end. What is caused comes after its cause.
    """
    one, other = event(first), event(second)
    if other.causation_id == one.event_id or one.event_type == "run.started":
        return True
    if one.family == "judge" or other.family == "judge":
        return one.event_type in ENDINGS
    turns = [item.event_type == "turn.completed" for item in (one, other)]
    if one.family == other.family == "system" and not any(turns):
        return True
    if one.family == other.family == "agent":
        return one.entity_id == other.entity_id
    if one.family == "agent" and not turns[1]:
        ends_it = other.event_type in {"stage.completed", "stage.failed", "stage.cancelled"}
        return (ends_it and one.entity_id == other.entity_id) or (other.event_type in ENDINGS and is_completed)
    return False


def moved(recording: Recording, source: int, target: int) -> tuple[Recording, bool]:
    """One message moved elsewhere, and whether that is something a good log cannot have."""
    messages = list(recording.messages)
    message = messages.pop(source)
    messages.insert(target, message)
    completed = has_completed(recording)
    between = recording.messages[min(source, target) : max(source, target) + 1]
    passed = between[1:] if source < target else between[:-1]
    pairs = [(message, item) if source < target else (item, message) for item in passed]
    is_wrong = any(must_precede(first, second, is_completed=completed) for first, second in pairs)
    return with_messages(recording, messages), is_wrong


def renamed(recording: Recording, run_key: str) -> Recording:
    """The same run under another key: every id is made anew, as the product would make it."""
    old, session = recording.run_key, run_key.rpartition("/")[0]
    old_session = old.rpartition("/")[0]
    names: dict[str, str] = {}
    messages = []
    for message in recording.messages:
        fields = fields_of(message)
        before = fields["event_id"]
        fields["entity_id"] = run_key + fields["entity_id"].removeprefix(old)
        fields |= {"correlation_id": run_key, "session_id": session}
        if fields.get("causation_id"):
            fields["causation_id"] = names[fields["causation_id"]]
        if fields["event_type"] == "run.started":
            assert fields["payload"]["workflow_id"] == old_session
            fields["payload"]["workflow_id"] = session
        made = with_fields(message, fields)
        names[before] = made.message_id
        messages.append(made)
    return Recording(run_key, tuple(messages))


def new_run_key(recording: Recording, rng: random.Random) -> str:
    """A key of another run of the same scenario."""
    workflow = f"{recording.run_key.rpartition('/')[0].rpartition('-')[0]}-{rng.getrandbits(32):08x}"
    return f"{workflow}/{uuid.UUID(int=rng.getrandbits(128), version=4)}"


def map_times(recording: Recording, change: Callable[[datetime], datetime]) -> Recording:
    """Every time in the recording changed, wherever it is."""

    def walk(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: walk(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item) for item in value]
        if name in {"occurred_at", "until", "deadline", "completion_time"}:
            return change(datetime.fromisoformat(value)).isoformat()
        return value

    messages = (
        replace(with_fields(message, walk(fields_of(message))), stored_at=change(message.stored_at))
        for message in recording.messages
    )
    return Recording(recording.run_key, tuple(messages))
