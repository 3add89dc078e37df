"""What the files hold: for each type its columns, and for each column what may stand in it.

A column lets through what its kind declares safe, and nothing else: a number, a time, an id of a fixed form. Any other
text goes through the redactor. What cannot be let through is left out, and the row says so in `withheld`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from coatcheck.training.redaction import RedactionError, Redactor, plain


class Kind(StrEnum):
    """What may stand in a column."""

    NUMBER = "number"
    MOMENT = "moment"
    """In UTC."""
    ID = "id"
    """A UUID or a sha256: too regular to hide anything that somebody wrote."""
    TEXT = "text"
    JSON = "json"


class DataType(StrEnum):
    """The kinds of training data: seed 004, Training Data Store, and two that a model is trained on at once."""

    AGENT_EVENTS = "agent_events"
    AGENT_TASKS = "agent_tasks"
    TOOL_EXECUTIONS = "tool_executions"
    WORKFLOW_DATA = "workflow_data"
    SFT = "sft"
    PREFERENCES = "preferences"


_ORIGIN: Final = {
    "sequence": Kind.NUMBER,
    "event_id": Kind.ID,
    "occurred_at": Kind.MOMENT,
    "run": Kind.TEXT,
}
"""Of every row: the event that it was made for, and the run."""
_ROUND: Final = {
    "task": Kind.TEXT,
    "feature": Kind.TEXT,
    "stage": Kind.TEXT,
    "round": Kind.NUMBER,
    "agent": Kind.TEXT,
    "models": Kind.JSON,
    "outcome": Kind.TEXT,
    "outcome_reason": Kind.TEXT,
    "run_outcome": Kind.TEXT,
    "verdict": Kind.TEXT,
    "judge_score": Kind.NUMBER,
    "judge_scores": Kind.JSON,
    "source_sequences": Kind.JSON,
}
"""Where a row about a round comes from, and what became of it."""

COLUMNS: Final[Mapping[DataType, Mapping[str, Kind]]] = {
    DataType.AGENT_EVENTS: {
        **_ORIGIN,
        "event_type": Kind.TEXT,
        "version": Kind.NUMBER,
        "occurrence": Kind.TEXT,
        "source": Kind.TEXT,
        "entity_type": Kind.TEXT,
        "entity_id": Kind.TEXT,
        "session_id": Kind.TEXT,
        "causation_id": Kind.ID,
        "agent": Kind.TEXT,
        "severity": Kind.TEXT,
        "payload": Kind.JSON,
    },
    DataType.AGENT_TASKS: {
        **_ORIGIN,
        **_ROUND,
        "task_type": Kind.TEXT,
        "status": Kind.TEXT,
        "started_at": Kind.MOMENT,
        "seconds": Kind.NUMBER,
        "inputs": Kind.JSON,
        "comment": Kind.TEXT,
        "summary": Kind.TEXT,
        "blockers": Kind.TEXT,
        "deliverable": Kind.TEXT,
        "deliverable_sha256": Kind.ID,
        "deliverable_bytes": Kind.NUMBER,
        "turns": Kind.NUMBER,
        "calls": Kind.NUMBER,
        "tokens_in": Kind.NUMBER,
        "tokens_out": Kind.NUMBER,
        "tokens_cached": Kind.NUMBER,
        "cost_usd": Kind.NUMBER,
        "tools": Kind.NUMBER,
        "tool_errors": Kind.NUMBER,
        "attempts": Kind.NUMBER,
        "error": Kind.TEXT,
    },
    DataType.TOOL_EXECUTIONS: {
        **_ORIGIN,
        "task": Kind.TEXT,
        "stage": Kind.TEXT,
        "round": Kind.NUMBER,
        "agent": Kind.TEXT,
        "turn": Kind.NUMBER,
        "model": Kind.TEXT,
        "tool": Kind.TEXT,
        "tool_call_id": Kind.TEXT,
        "tool_outcome": Kind.TEXT,
        "seconds": Kind.NUMBER,
        "result_bytes": Kind.NUMBER,
        "error": Kind.TEXT,
        "outcome": Kind.TEXT,
        "run_outcome": Kind.TEXT,
        "judge_score": Kind.NUMBER,
    },
    DataType.WORKFLOW_DATA: {
        **_ORIGIN,
        "workflow_id": Kind.TEXT,
        "feature": Kind.TEXT,
        "tenant": Kind.TEXT,
        "priority": Kind.NUMBER,
        "stages": Kind.JSON,
        "agents": Kind.JSON,
        "models": Kind.JSON,
        "run_outcome": Kind.TEXT,
        "reason": Kind.TEXT,
        "started_at": Kind.MOMENT,
        "seconds": Kind.NUMBER,
        "rounds": Kind.JSON,
        "decisions": Kind.JSON,
        "turns": Kind.NUMBER,
        "calls": Kind.NUMBER,
        "tokens_in": Kind.NUMBER,
        "tokens_out": Kind.NUMBER,
        "tokens_cached": Kind.NUMBER,
        "cost_usd": Kind.NUMBER,
        "brief_sha256": Kind.ID,
        "brief_bytes": Kind.NUMBER,
        "forked_from": Kind.TEXT,
        "judge_score": Kind.NUMBER,
        "judge_scores": Kind.JSON,
        "source_sequences": Kind.JSON,
    },
    DataType.SFT: {**_ORIGIN, **_ROUND, "messages": Kind.JSON},
    DataType.PREFERENCES: {
        **_ORIGIN,
        **_ROUND,
        "rejected_task": Kind.TEXT,
        "rejected_models": Kind.JSON,
        "rejected_judge_score": Kind.NUMBER,
        "prompt": Kind.JSON,
        "chosen": Kind.JSON,
        "rejected": Kind.JSON,
    },
}
"""Type → column → kind, in the order of the files. `redactions` and `withheld` end every row."""
REDACTIONS: Final = "redactions"
WITHHELD: Final = "withheld"

_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{64}")


def column_names(data_type: DataType) -> tuple[str, ...]:
    """The header of a type's files."""
    return (*COLUMNS[data_type], REDACTIONS, WITHHELD)


@dataclass(frozen=True)
class Draft:
    """A row before redaction; it never leaves the process."""

    data_type: DataType
    values: Mapping[str, Any]
    withheld: tuple[str, ...] = ()
    """Columns that could not be filled, each with its reason, as `messages: deliverable.expired`."""


def redact(draft: Draft, redactor: Redactor) -> dict[str, Any]:
    """The row as it may be published: JSON values in the order of the columns.

    Raises:
        KeyError: a value has no column, and so nobody has said what may stand in it.
    """
    kinds = COLUMNS[draft.data_type]
    if undeclared := draft.values.keys() - kinds.keys():
        raise KeyError(f"{draft.data_type}: no column is declared for {', '.join(sorted(undeclared))}")
    row: dict[str, Any] = {}
    count, withheld = 0, list(draft.withheld)
    for name, kind in kinds.items():
        try:
            row[name], found = _let_through(draft.values.get(name), kind, redactor)
            count += found
        except (ValueError, ArithmeticError, RecursionError, TypeError) as error:
            row[name] = None
            reason = str(error) if isinstance(error, RedactionError) else type(error).__name__
            withheld.append(f"{name}: {reason}")
    return {**row, REDACTIONS: count, WITHHELD: "; ".join(withheld) or None}


def _let_through(value: Any, kind: Kind, redactor: Redactor) -> tuple[Any, int]:
    if value is None:
        return None, 0
    match kind:
        case Kind.NUMBER if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
            return (format(value, "f") if isinstance(value, Decimal) else value), 0
        case Kind.MOMENT if isinstance(value, datetime):
            return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"), 0
        case Kind.ID if isinstance(value, str) and _ID.fullmatch(value):
            return value, 0
        case Kind.TEXT if isinstance(value, str):
            found = redactor.text(value)
            return found.value, found.count
        case Kind.JSON:
            found = redactor.json(plain(value))
            return found.value, found.count
    raise RedactionError(f"not a {kind}")
