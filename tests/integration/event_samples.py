"""Events as a run tells them, made without one."""

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice

from schemas import event_payloads as payloads
from schemas import events
from schemas.events import Event
from schemas.workflow_ids import activity_id, task_key

BEGIN = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
RUNNING = payloads.RunPoint(status="running", current_step="backend", completed_steps=2)


def sample_key(number: int) -> str:
    """The run key of a sample run."""
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return f"feature/sample-{number}/{digest[:8]}-{digest[8:12]}-7{digest[13:16]}-8{digest[17:20]}-{digest[20:32]}"


def sample_events(run: str, count: int) -> list[Event]:
    """The first `count` events of a run that goes on for ever; the same each time."""
    return list(islice(_told(run), count))


def paused(run: str, occurrence: str = "", reason: str = "lunch", **fields: object) -> events.RunPaused:
    """One event about the run itself."""
    payload = payloads.RunChanged(reason=reason, run=payloads.RunPoint(status="paused"))
    return events.RunPaused.of(entity_id=run, occurrence=occurrence, **_of(run, 0), payload=payload, **fields)


def tool(run: str, number: int, agent: str = "roy", error: str = "") -> events.ToolCompleted:
    """What an agent tells."""
    payload = payloads.ToolCompleted(
        stage="backend",
        round=1,
        tool="write_file",
        tool_call_id=f"call_{number:024d}",
        outcome="error" if error else "ok",
        seconds=0.25,
        result_bytes=120 + number,
        error=error,
    )
    return events.ToolCompleted.of(
        entity_id=task_key(run, activity_id("backend", 1)),
        occurrence=payload.tool_call_id,
        source=agent,
        agent=agent,
        **_of(run, number),
        payload=payload,
    )


def completed(run: str) -> events.RunCompleted:
    """The end of a run."""
    payload = payloads.RunChanged(run=payloads.RunPoint(status="completed", completed_steps=6))
    return events.RunCompleted.of(entity_id=run, **_of(run, 60), payload=payload)


def _told(run: str) -> Iterator[Event]:
    started = payloads.StageStarted(stage="backend", task_type="backend", round=1, run=RUNNING)
    task = task_key(run, activity_id("backend", 1))
    yield events.StageStarted.of(entity_id=task, **_of(run, 0), agent="roy", payload=started)
    number = 0
    while True:
        number += 1
        turn = payloads.TurnCompleted(
            stage="backend",
            round=1,
            turn=number,
            model="openai:gpt-5-mini",
            calls=1,
            tokens_in=5000 + number,
            tokens_out=700,
            seconds=4.5,
            messages=2,
        )
        yield events.TurnCompleted.of(
            entity_id=task, occurrence=str(number), **_of(run, number), agent="roy", payload=turn
        )
        yield tool(run, number)
        if not number % 5:
            yield paused(run, str(number))


def _of(run: str, seconds: int) -> dict[str, object]:
    return {
        "correlation_id": run,
        "session_id": run.rpartition("/")[0],
        "occurred_at": BEGIN + timedelta(seconds=seconds),
    }


def rounds_of(runs: Sequence[str], count: int) -> Iterator[list[Event]]:
    """`count` events of each run, interleaved as runs that go on at the same time tell them."""
    told = [sample_events(run, count) for run in runs]
    for position in range(count):
        yield [run_events[position] for run_events in told]
