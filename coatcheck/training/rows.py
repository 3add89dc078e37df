"""Makes rows of events: every event, every round that ended, every tool call, every run that ended."""

from typing import Any

from coatcheck.messaging.events import StoredEvent
from coatcheck.training.columns import DataType, Draft
from coatcheck.training.facts import RoundFacts, RunFacts, Spent, mean
from schemas.events import DecisionMade, ToolCompleted

_SOMEBODY = "[redacted:person]"


def event_row(stored: StoredEvent) -> Draft:
    """Any event, those of newer releases too."""
    event = stored.event
    payload = event.model_dump(mode="json", include={"payload"})["payload"] if hasattr(event, "payload") else {}
    if isinstance(event, DecisionMade):
        payload["by"] = _SOMEBODY  # a person's name has no shape by which it could be found
    values = origin(stored) | {
        "event_type": event.event_type,
        "version": event.version,
        "occurrence": event.occurrence,
        "source": event.source,
        "entity_type": event.entity_type,
        "entity_id": event.entity_id,
        "session_id": event.session_id,
        "causation_id": event.causation_id,
        "agent": event.agent,
        "severity": event.severity,
        "payload": payload,
    }
    return Draft(DataType.AGENT_EVENTS, values)


def task_row(stored: StoredEvent, run: RunFacts, found: RoundFacts) -> Draft:
    """A round, at the event that ended it."""
    notice = found.notice
    values = origin(stored) | round_columns(run, found) | found.spent.as_columns()
    values |= {
        "task_type": found.task_type,
        "status": found.status,
        "started_at": found.started_at,
        "seconds": _seconds(found.started_at, stored),
        "inputs": found.inputs,
        "comment": found.comment or None,
        "tools": found.tools,
        "tool_errors": found.tool_errors,
        "attempts": found.attempts,
        "error": found.reason or None,
    }
    if notice is not None:
        values |= {
            "summary": notice.summary,
            "blockers": notice.blockers,
            "deliverable": f"{notice.metadata.stream}:{notice.metadata.sequence}",
            "deliverable_sha256": notice.metadata.sha256,
            "deliverable_bytes": notice.metadata.bytes,
        }
    return Draft(DataType.AGENT_TASKS, values)


def tool_row(stored: StoredEvent, event: ToolCompleted, run: RunFacts) -> Draft:
    """A tool call, with the turn and the model that asked for it."""
    said = event.payload
    found = run.round_of(said.stage, said.round)
    turn, model = found.calls.get(said.tool_call_id, (None, None))
    values = origin(stored) | {
        "task": event.entity_id,
        "stage": said.stage,
        "round": said.round,
        "agent": event.agent,
        "turn": turn,
        "model": model,
        "tool": said.tool,
        "tool_call_id": said.tool_call_id,
        "tool_outcome": said.outcome,
        "seconds": said.seconds,
        "result_bytes": said.result_bytes,
        "error": said.error or None,
        "outcome": run.outcome(found),
        "run_outcome": run.status,
        "judge_score": mean(found.scores),
    }
    return Draft(DataType.TOOL_EXECUTIONS, values)


def run_row(stored: StoredEvent, run: RunFacts) -> Draft:
    """A run, at the event that ended it."""
    spent = Spent()
    for found in run.rounds.values():
        spent.add(found.spent)
    values = origin(stored) | spent.as_columns()
    values |= {
        "models": sorted(spent.models),
        "run_outcome": run.status,
        "reason": run.reason or None,
        "started_at": run.started_at,
        "seconds": _seconds(run.started_at, stored),
        "rounds": {stage: max(n for name, n in run.rounds if name == stage) for stage, _ in run.rounds},
        "decisions": run.decisions,
        "judge_score": mean(run.scores),
        "judge_scores": run.scores,
        "source_sequences": run.sequences,
    }
    if run.started is not None:
        names = ("workflow_id", "feature", "tenant", "priority", "stages", "agents")
        values |= {name: getattr(run.started, name) for name in (*names, "brief_sha256", "brief_bytes", "forked_from")}
    return Draft(DataType.WORKFLOW_DATA, values)


def origin(stored: StoredEvent) -> dict[str, Any]:
    """The event that a row is made for."""
    event = stored.event
    return {
        "sequence": stored.sequence,
        "event_id": event.event_id,
        "occurred_at": event.occurred_at,
        "run": event.correlation_id,
    }


def round_columns(run: RunFacts, found: RoundFacts) -> dict[str, Any]:
    """Where a row about a round comes from, and what became of it."""
    verdict = found.notice.metadata.verdict if found.notice is not None else None
    return {
        "task": found.task_key,
        "feature": run.started.feature if run.started else None,
        "stage": found.stage,
        "round": found.number,
        "agent": found.agent,
        "models": sorted(found.spent.models),
        "outcome": run.outcome(found),
        "outcome_reason": found.accepted_because or found.reason or None,
        "run_outcome": run.status,
        "verdict": str(verdict) if verdict is not None else None,
        "judge_score": mean(found.scores),
        "judge_scores": found.scores,
        "source_sequences": sorted(found.sequences),
    }


def _seconds(started: Any, stored: StoredEvent) -> float | None:
    return None if started is None else round((stored.event.occurred_at - started).total_seconds(), 6)
