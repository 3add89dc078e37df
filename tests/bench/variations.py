"""Good runs that were not recorded: what is legal about a recording, changed."""

import random
from dataclasses import replace
from datetime import datetime, timedelta

from coatcheck.bench.recording import Recorded, Recording
from schemas.event_payloads import AttemptStarted as Attempt
from schemas.event_payloads import Scored
from schemas.events import AttemptStarted, JudgeScored
from tests.bench import surgery


def vary(recording: Recording, rng: random.Random) -> Recording:
    """Another good run: a few legal changes, one after the other."""
    changes = rng.sample([retried, concurrent, paced, spread, judged], k=rng.randint(2, 5))
    varied = surgery.renamed(recording, surgery.new_run_key(recording, rng))
    for change in sorted(changes, key=lambda change: change in (paced, judged)):  # judges come last, whatever the pace
        varied = change(varied, rng)
    return varied


def paced(recording: Recording, rng: random.Random) -> Recording:
    """On another day, by a faster or slower machine."""
    start = recording.messages[0].stored_at
    begin, factor = start + timedelta(hours=rng.uniform(-900, 900)), rng.uniform(0.3, 3)

    def change(moment: datetime) -> datetime:
        return begin + (moment - start) * factor

    return surgery.map_times(recording, change)


def spread(recording: Recording, rng: random.Random) -> Recording:
    """With other runs' events between."""
    sequence, messages = rng.randint(1, 10**6), []
    for message in recording.messages:
        sequence += rng.choice([1, 1, 1, 2, 3, 17, 400])
        messages.append(replace(message, sequence=sequence))
    return Recording(recording.run_key, tuple(messages))


def concurrent(recording: Recording, rng: random.Random) -> Recording:
    """What happens at the same time, told in another order."""
    for _ in range(20):
        source = rng.randrange(len(recording.messages))
        target = min(max(source + rng.choice([-3, -2, -1, 1, 2, 3]), 0), len(recording.messages) - 1)
        varied, is_wrong = surgery.moved(recording, source, target)
        if not is_wrong and all(surgery.event(item).occurred_at <= item.stored_at for item in varied.messages):
            recording = varied
    return recording


def retried(recording: Recording, rng: random.Random) -> Recording:
    """An agent's worker died in a round, and the second attempt told so."""
    ends = surgery.indexes(recording, lambda event: event.event_type == "stage.completed")
    if not ends:
        return recording
    index = rng.choice(ends)
    entity = surgery.event(recording.messages[index]).entity_id
    first = surgery.indexes(recording, lambda event: event.entity_id == entity and event.family == "agent")[0]
    told = surgery.event(recording.messages[first])
    attempt = AttemptStarted.of(
        entity_id=entity,
        occurrence="2",
        source=told.source,
        agent=str(told.agent),
        correlation_id=told.correlation_id,
        causation_id=told.causation_id,
        session_id=told.session_id,
        occurred_at=told.occurred_at - timedelta(milliseconds=1),
        payload=Attempt(stage=told.payload.stage, round=told.payload.round, attempt=2),  # type: ignore[union-attr]
    )
    messages = list(recording.messages)
    messages[index] = surgery.with_payload(messages[index], "notice.metadata.attempt", 2)
    messages.insert(first, _message(messages[first], attempt))
    return surgery.with_messages(recording, messages)


def judged(recording: Recording, rng: random.Random) -> Recording:
    """Judges have looked at it since."""
    last = recording.messages[-1]
    told = surgery.event(last)
    scored = JudgeScored.of(
        entity_id=recording.run_key,
        occurrence="checks/clear",
        correlation_id=recording.run_key,
        session_id=told.session_id,
        occurred_at=last.stored_at + timedelta(hours=2),
        payload=Scored(judge="checks", kind="check", criterion="clear", score=rng.random()),
    )
    message = _message(last, scored)
    later = replace(message, sequence=last.sequence + 9, stored_at=last.stored_at + timedelta(hours=2))
    return Recording(recording.run_key, (*recording.messages, later))


def _message(like: Recorded, event: AttemptStarted | JudgeScored) -> Recorded:
    return replace(like, subject=event.subject, message_id=event.event_id, body=event.to_wire().decode())
