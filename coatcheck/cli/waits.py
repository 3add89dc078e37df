"""What a run that is under way waits for: a person, a time, an agent, a worker or a server; and what to do about it."""

from collections.abc import Iterable
from datetime import datetime

from coatcheck.cli.explanation import Facts, Wait
from coatcheck.cli.pending import PendingActivity
from coatcheck.storage.spending import Spending
from schemas.pipeline import RunStatus, StageProgress, StageState, Waiting
from schemas.streams import stream_name
from schemas.task_queues import CORE
from schemas.workflow_ids import activity_id, task_key

_WORKERS_REMEDY = "coatcheck up"
SHOWN_SHA256 = 12
"""Characters of a hash in a command; `decide` wants at least 8."""


def waits_of(facts: Facts) -> list[Wait]:
    """Everything that has to happen before the run goes on; empty when it has ended."""
    if facts.has_ended:
        return []
    progress = facts.progress
    found = list(facts.troubles)
    if progress is not None:
        found += [_decision(facts, waiting) for waiting in progress.waiting]
        found += _recorded_decisions(facts)
        found += [_parked(row) for row in progress.stages if row.state is StageState.PARKED]
    if facts.status == RunStatus.PAUSED:
        what = "the run is paused: no stage begins"
        found.append(
            Wait(what=what, since=_last(facts, "run.paused"), remedies=[f"coatcheck resume {facts.workflow_id}"])
        )
    found += _agents(facts)
    found += _core(facts)
    return found or [Wait(what="the core worker, which takes the next step")]


def _decision(facts: Facts, waiting: Waiting) -> Wait:
    rows = facts.progress.stages if facts.progress else []
    sequence = next((row.sequence for row in rows if row.stage == waiting.stage), None)
    decide = f"coatcheck decide {facts.workflow_id} {waiting.stage}"
    return Wait(
        what=f"a decision on {activity_id(waiting.stage, waiting.round)}: {waiting.reason}",
        stage=waiting.stage,
        since=_last(facts, "decision.requested", waiting.stage),
        until=waiting.deadline,
        remedies=[
            f"{decide} approve --sha256 {waiting.sha256[:SHOWN_SHA256]}  (or revise, or reject)",
            f"coatcheck fetch {stream_name(waiting.subject.split('.')[3])}:{sequence}",
        ],
    )


def _recorded_decisions(facts: Facts) -> list[Wait]:
    """What the rows know of a question, when the workflow itself could not be asked."""
    if facts.has_answered or facts.record is None or facts.record.status != RunStatus.WAITING:
        return []
    stage = facts.record.current_step
    asked = [event for event in facts.events if event.event_type == "decision.requested"]
    asked = [event for event in asked if event.payload.get("stage") == stage]
    latest = next((item for item in reversed(facts.notices) if item.stage == stage), None)
    reason = asked[-1].payload.get("reason", "") if asked else ""
    remedies = []
    if latest is not None:
        sha256 = latest.notice.metadata.sha256[:SHOWN_SHA256]
        decide = f"coatcheck decide {facts.workflow_id} {stage}"
        remedies = [f"{decide} approve --sha256 {sha256}  (or revise, or reject; takes a core worker)"]
    since = asked[-1].created_at if asked else None
    return [Wait(what=f"a decision on {stage}: {reason}", stage=stage, since=since, remedies=remedies)]


def _parked(row: StageProgress) -> Wait:
    return Wait(
        what=f"{activity_id(row.stage, row.round)} is parked: {row.reason}", stage=row.stage, until=row.parked_until
    )


# --- agents -------------------------------------------------------------------------------------------------------


def _agents(facts: Facts) -> list[Wait]:
    if facts.view is None:
        return _recorded_rounds(facts)
    return [_agent(facts, item) for item in facts.view.pending]


def _agent(facts: Facts, item: PendingActivity) -> Wait:
    agent = item.activity.partition(".")[0] if item.queue != CORE else None
    who, worker = (agent, f"{agent}'s worker") if agent else ("the core worker", "a core worker")
    parts = [f"{who}, who works on {item.activity_id}" if item.is_started else f"{worker} to take {item.activity_id}"]
    if item.attempt > 1:
        parts.append(f"attempt {item.attempt}" + (f" of {item.max_attempts}" if item.max_attempts else ""))
    if not item.pollers:
        parts.append(f"nobody polls {item.queue}")
    if item.last_failure:
        code = f" ({item.last_failure_code})" if item.last_failure_code else ""
        parts.append(f"the last attempt failed: {item.last_failure}{code}")
    parts += _model_call(facts, item)
    start = f"coatcheck worker agents {agent}" if agent else "coatcheck worker core"
    return Wait(
        what="; ".join(parts),
        stage=item.stage,
        since=item.started_at or item.scheduled_at,
        until=item.next_attempt_at,
        remedies=[] if item.pollers else [_WORKERS_REMEDY, start],
    )


def _model_call(facts: Facts, item: PendingActivity) -> list[str]:
    """What the journal says of the round's latest turn."""
    key = task_key(facts.run_key, item.activity_id)
    turns = [row for row in (facts.calls.rows if facts.calls else []) if row.label["task"] == key]
    if not turns:
        return []
    latest = max(turns, key=lambda row: int(row.label["turn"]))
    return [_turn(latest)]


def _turn(row: Spending) -> str:
    turn, model, status = row.label["turn"], row.label["model"], row.label["status"]
    if status == "in_flight":
        return f"turn {turn} is with {model} since {row.first_at:%H:%M:%S}"
    if status == "failed":
        return f"turn {turn} failed at {model} ({row.label['error']}), {row.calls} calls so far"
    return f"{turn} turns done, the last by {model}"


def _recorded_rounds(facts: Facts) -> list[Wait]:
    """The rounds that were under way when something was last recorded."""
    return [
        Wait(
            what=f"{task.agent}, who works on {activity_id(task.stage, task.round)} as far as is recorded",
            stage=task.stage,
            since=task.started_at,
        )
        for task in facts.tasks
        if task.status == "running"
    ]


# --- the core worker ----------------------------------------------------------------------------------------------


def _core(facts: Facts) -> Iterable[Wait]:
    view = facts.view
    if view is None:
        return
    if not view.core_pollers:
        what = f"a core worker: nobody polls {CORE}"
        yield Wait(what=what, remedies=[_WORKERS_REMEDY, "coatcheck worker core"])
    elif view.workflow_task_attempt > 1:
        what = f"the core worker, which has failed to take the next step {view.workflow_task_attempt - 1} times"
        yield Wait(what=what, remedies=["coatcheck status  (names the core worker's log)"])


def _last(facts: Facts, event_type: str, stage: str | None = None) -> datetime | None:
    """When it last happened, as far as is recorded."""
    for event in reversed(facts.events):
        if event.event_type == event_type and stage in (None, event.payload.get("stage")):
            return event.created_at
    return None
