"""Rows of runs, tasks and events: one statement writes a step of a run, small typed reads serve people and checks.

The rows are the record for people, not the source of truth of a run (that is Temporal's history), so a step writes
absolute state and can be repeated or come late. The conversation of a finished task is compacted in the same
statement: its last answer holds the whole report, up to 9 MB, and the report is already on its stream.
"""

from collections.abc import Collection
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from coatcheck.errors import CoatcheckError, NotAuthorizedError, TaskClosedError
from coatcheck.storage.database import Executor, query, storable_json, storage_errors
from coatcheck.storage.ledger import ledger_errors
from schemas.activities import STAGE_RETRY, STAGE_START_TO_CLOSE, RecordInput
from schemas.deliverable import DeliverableRef

_MAX_RETRIES: Final = STAGE_RETRY.maximum_attempts - 1
_TIMEOUT_SECONDS: Final = int(STAGE_START_TO_CLOSE.total_seconds())


class RunRecord(BaseModel):
    """One use of a workflow id, as last recorded."""

    model_config = ConfigDict(frozen=True)

    run_key: str
    temporal_workflow_id: str
    feature: str
    tenant: str
    status: str
    current_step: str | None
    total_steps: int
    completed_steps: int
    step_results: dict[str, Any]
    """Stage → its last notice."""
    assigned_agents: list[str]
    error: str | None
    started_at: datetime
    completed_at: datetime | None
    updated_at: datetime


class TaskRecord(BaseModel):
    """One round of one stage."""

    model_config = ConfigDict(frozen=True)

    task_key: str
    run_key: str
    agent: str
    stage: str
    task_type: str
    round: int
    status: str
    output_data: dict[str, Any] | None
    """The notice, once complete."""
    error: str | None
    retry_count: int
    execution_time_ms: float | None
    started_at: datetime
    completed_at: datetime | None


class EventRecord(BaseModel):
    """One line of the audit log."""

    model_config = ConfigDict(frozen=True)

    event_id: str
    event_type: str
    entity_type: str | None
    entity_id: str | None
    run_key: str | None
    agent: str | None
    severity: str
    payload: dict[str, Any]
    created_at: datetime


class DeliverableRecord(BaseModel):
    """A deliverable that a finished task announced."""

    model_config = ConfigDict(frozen=True)

    run_key: str
    task_key: str
    agent: str
    stage: str
    task_type: str
    round: int
    subject: str
    summary: str
    verdict: str | None
    ref: DeliverableRef
    files: int
    """As its notice says."""
    completed_at: datetime


class TurnRecord(BaseModel):
    """A finished model turn of a round that has ended."""

    model_config = ConfigDict(frozen=True)

    task_key: str
    agent: str
    stage: str
    round: int
    turn: int
    model: str
    calls: int
    tokens_in: int
    tokens_out: int
    tokens_cached: int
    cost_usd: Decimal | None
    completed_at: datetime
    seconds: float
    """Of the call that was answered."""
    messages: int
    tool_calls: list[dict[str, str]] | None
    """`tool_call_id` and `tool_name` of each; `None` when there was none."""


async def record(executor: Executor, step: RecordInput) -> list[TurnRecord]:
    """Write everything that one step of a run changes; all of it or nothing, in one round trip.

    Idempotent: a repeated step changes nothing, a step that comes late overwrites nothing newer, a completed task
    stays as it was completed, and a NULL erases nothing of a task.

    Returns:
        The turns of the rounds that ended with this step, by round and turn.

    Raises:
        StorageUnavailableError: PostgreSQL is away; the step may or may not have been written. Write it again.
        InsufficientCreditsError: the step sets a budget that the run's tenant cannot pay; nothing was written.
    """
    document = storable_json(step.model_dump(mode="json", exclude={"events"}))
    with ledger_errors():
        rows = await executor.fetch(query("record"), document, _MAX_RETRIES, _TIMEOUT_SECONDS)
    return [TurnRecord(**row) for row in rows]


async def read_brief(executor: Executor, run_key: str) -> str:
    """The brief of a run, as its first step recorded it (NUL and lone surrogates replaced: `storable_json`).

    Raises:
        CoatcheckError: the run's first step is not recorded.
        StorageUnavailableError: PostgreSQL is away. The other reads raise it too.
    """
    with storage_errors():
        brief: str | None = await executor.fetchval("SELECT description FROM workflows WHERE workflow_id = $1", run_key)
    if brief is None:
        raise CoatcheckError(f"no brief is recorded for the run {run_key}")
    return brief


async def finished_notice(executor: Executor, task_key: str, agent: str) -> dict[str, Any] | None:
    """The notice of the agent's task, once it is recorded as complete; `None` while it is running.

    Raises:
        NotAuthorizedError: no such task of that agent is recorded, whoever else may have one.
        TaskClosedError: it is neither complete nor running.
    """
    with storage_errors():
        row = await executor.fetchrow(
            "SELECT status, output_data FROM task_executions WHERE execution_id = $1 AND agent_id = $2", task_key, agent
        )
    if row is None:
        raise NotAuthorizedError(f"the agent {agent!r} has no task {task_key!r}")
    if row["status"] == "running":
        return None
    if row["status"] == "completed" and row["output_data"] is not None:
        notice: dict[str, Any] = row["output_data"]
        return notice
    raise TaskClosedError(f"the task {task_key!r} of {agent!r} is {row['status']}")


async def own_tasks(executor: Executor, agent: str, task_keys: Collection[str]) -> set[str]:
    """Of these tasks, those that are recorded as the agent's, whatever became of them."""
    with storage_errors():
        rows = await executor.fetch(
            "SELECT execution_id FROM task_executions WHERE agent_id = $1 AND execution_id = ANY ($2::text[])",
            *(agent, [key for key in task_keys if "\0" not in key]),  # which no key in the table can have
        )
    return {row["execution_id"] for row in rows}


async def known_runs(executor: Executor, run_keys: Collection[str]) -> set[str]:
    """Of these runs, those that are recorded."""
    with storage_errors():
        rows = await executor.fetch(
            "SELECT workflow_id FROM workflows WHERE workflow_id = ANY ($1::text[])", list(run_keys)
        )
    return {row["workflow_id"] for row in rows}


_RUN: Final = """
    SELECT workflow_id AS run_key, metadata ->> 'temporal_workflow_id' AS temporal_workflow_id, name AS feature,
        metadata ->> 'tenant' AS tenant, status, current_step, total_steps, completed_steps, step_results,
        assigned_agents, error, started_at, completed_at, updated_at
    FROM workflows
"""


async def find_run(executor: Executor, run: str) -> RunRecord | None:
    """Look a run up by its run key, or the latest run of a Temporal workflow id."""
    with storage_errors():
        row = await executor.fetchrow(
            f"""({_RUN} WHERE workflow_id = $1)
            UNION ALL
            ({_RUN} WHERE metadata ->> 'temporal_workflow_id' = $1 ORDER BY started_at DESC LIMIT 1)
            LIMIT 1""",
            run,
        )
    return RunRecord(**row) if row else None


async def list_runs(executor: Executor, limit: int = 50) -> list[RunRecord]:
    """The latest runs, newest first."""
    with storage_errors():
        rows = await executor.fetch(f"{_RUN} ORDER BY started_at DESC, workflow_id LIMIT $1", limit)
    return [RunRecord(**row) for row in rows]


async def tasks(executor: Executor, run_key: str) -> list[TaskRecord]:
    """Every round of every stage of a run, in the order in which they started."""
    with storage_errors():
        rows = await executor.fetch(
            """
            SELECT execution_id AS task_key, workflow_id AS run_key, agent_id AS agent, task_name AS stage, task_type,
                (input_data ->> 'round')::int AS round, status, output_data, error, retry_count, execution_time_ms,
                started_at, completed_at
            FROM task_executions
            WHERE workflow_id = $1
            ORDER BY started_at, execution_id
            """,
            run_key,
        )
    return [TaskRecord(**row) for row in rows]


async def events(executor: Executor, run_key: str) -> list[EventRecord]:
    """What the projector has of a run's events, in the order of the audit log, which may be ahead of it."""
    with storage_errors():
        rows = await executor.fetch(
            """
            SELECT event_id, event_type, entity_type, entity_id, workflow_id AS run_key, agent_id AS agent, severity,
                payload - '_meta' AS payload, created_at
            FROM events
            WHERE workflow_id = $1
            ORDER BY (payload -> '_meta' ->> 'sequence')::bigint, event_id
            """,
            run_key,
        )
    return [EventRecord(**row) for row in rows]


async def deliverable_rows(executor: Executor, feature: str) -> list[DeliverableRecord]:
    """What the runs of a feature delivered, in the order in which it was completed."""
    with storage_errors():
        rows = await executor.fetch(
            """
            SELECT task.workflow_id AS run_key, execution_id AS task_key, agent_id AS agent, task_name AS stage,
                task_type, (input_data ->> 'round')::int AS round, output_data ->> 'nats_channel' AS subject,
                output_data ->> 'summary' AS summary, output_data -> 'metadata' ->> 'verdict' AS verdict,
                output_data -> 'metadata' AS ref, coalesce((output_data ->> 'files_modified')::int, 0) AS files,
                task.completed_at
            FROM task_executions AS task JOIN workflows AS run USING (workflow_id)
            WHERE run.name = $1 AND task.status = 'completed' AND output_data -> 'metadata' ? 'stream'
            ORDER BY task.completed_at, execution_id
            """,
            feature,
        )
    return [DeliverableRecord(**row) for row in rows]


async def earlier_deliverables(
    executor: Executor, ref: DeliverableRef, *, feature: str, task_type: str | None
) -> list[DeliverableRecord]:
    """The last round of every stage of every run of another feature that was completed before a deliverable.

    Before all of them, when no finished task has announced it.
    """
    with storage_errors():
        rows = await executor.fetch(query("earlier_deliverables"), ref.stream, ref.sequence, feature, task_type)
    return [DeliverableRecord(**row) for row in rows]


async def recorded_sequences(executor: Executor) -> dict[str, int]:
    """Stream → the highest sequence that a finished task announced; a stream that ends below it has lost messages."""
    with storage_errors():
        rows = await executor.fetch(
            """
            SELECT output_data -> 'metadata' ->> 'stream' AS stream,
                max((output_data -> 'metadata' ->> 'sequence')::bigint) AS sequence
            FROM task_executions
            WHERE status = 'completed' AND output_data -> 'metadata' ? 'stream'
            GROUP BY 1
            """
        )
    return {row["stream"]: row["sequence"] for row in rows}
