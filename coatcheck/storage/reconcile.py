"""Reads and writes of reconcile: which runs the rows call open, and putting right those that are not.

A run's row carries the revision of the step that wrote it (`record.sql`). Everything here is bound to the revision that
was read: whatever is recorded in between makes a repair do nothing, and the next look decides anew.
"""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Final

from pydantic import BaseModel, ConfigDict

from coatcheck.storage.database import Executor, query, storable_json, storage_errors
from coatcheck.storage.state import TurnRecord
from schemas.pipeline import RunStatus

OPEN: Final = (RunStatus.RUNNING, RunStatus.PAUSED, RunStatus.WAITING)
_OPEN: Final = [*(status.value for status in OPEN), "pending"]
_SELECT: Final = """
    SELECT workflow_id AS run_key, metadata ->> 'temporal_workflow_id' AS temporal_workflow_id, status,
        (state_data ->> 'revision')::bigint AS revision, current_step, completed_steps, total_steps, completed_at,
        extract(EPOCH FROM now() - updated_at)::float AS age_seconds
    FROM workflows
    WHERE state_data ? 'revision' AND metadata ? 'temporal_workflow_id' AND
"""
"""Without those two a row was not written by a run of ours."""
_OURS: Final = "coalesce(metadata ->> 'namespace', 'default')"
"""One database may serve several namespaces, and the runs of another one look as if they were gone."""


class RowState(BaseModel):
    """A run as its row tells it."""

    model_config = ConfigDict(frozen=True)

    run_key: str
    temporal_workflow_id: str
    status: str
    revision: int
    current_step: str | None
    completed_steps: int
    total_steps: int
    completed_at: datetime | None
    age_seconds: float
    """Since it was last written, by the database's clock."""

    @property
    def first_run_id(self) -> str:
        """Of the run's first execution."""
        return self.run_key.removeprefix(f"{self.temporal_workflow_id}/")

    @property
    def is_open(self) -> bool:
        """Whether it says that the run has not ended."""
        return self.status in _OPEN


class OpenTask(BaseModel):
    """A round that its row calls open."""

    model_config = ConfigDict(frozen=True)

    task_key: str
    run_key: str
    temporal_workflow_id: str
    stage: str
    round: int
    agent: str
    status: str
    revision: int


class Repair(BaseModel):
    """What a run's row and those of its open rounds should say."""

    model_config = ConfigDict(frozen=True)

    run_key: str
    found_revision: int
    revision: int
    status: str
    reason: str
    completed_at: datetime | None
    completed_steps: int
    tasks: list[str] = []
    """Keys of the rounds that end with it."""
    task_status: str = "cancelled"


async def open_rows(executor: Executor, namespace: str) -> list[RowState]:
    """Every run of that Temporal namespace that its row calls open.

    Raises:
        StorageUnavailableError: PostgreSQL is away; so for all functions of this module.
    """
    with storage_errors():
        rows = await executor.fetch(f"{_SELECT} status = ANY($1) AND {_OURS} = $2", _OPEN, namespace)
    return [RowState(**row) for row in rows]


async def rows_of(executor: Executor, run_keys: Collection[str]) -> dict[str, RowState]:
    """These runs as their rows tell them now."""
    with storage_errors():
        rows = await executor.fetch(f"{_SELECT} workflow_id = ANY($1)", list(run_keys))
    return {row["run_key"]: RowState(**row) for row in rows}


async def ended_rows(executor: Executor, namespace: str, workflow_ids: Collection[str]) -> list[RowState]:
    """Every run of that namespace and of these workflow ids that its row calls ended."""
    if not workflow_ids:
        return []
    with storage_errors():
        rows = await executor.fetch(
            f"{_SELECT} metadata ->> 'temporal_workflow_id' = ANY($1) AND status <> ALL($2) AND {_OURS} = $3",
            list(workflow_ids),
            _OPEN,
            namespace,
        )
    return [RowState(**row) for row in rows]


async def open_tasks(executor: Executor, run_keys: Collection[str]) -> list[OpenTask]:
    """The rounds of these runs that their rows call open."""
    return await _tasks(executor, "run.workflow_id = ANY($2)", list(run_keys))


async def orphaned_tasks(executor: Executor, limit: int) -> list[OpenTask]:
    """Rounds that are open although their run's row says that it has ended: a step that came late left them behind."""
    return await _tasks(executor, "run.status <> ALL($1) LIMIT $2", limit)


async def _tasks(executor: Executor, condition: str, argument: object) -> list[OpenTask]:
    with storage_errors():
        rows = await executor.fetch(
            f"""
            SELECT execution_id AS task_key, run.workflow_id AS run_key, task_name AS stage, agent_id AS agent,
                run.metadata ->> 'temporal_workflow_id' AS temporal_workflow_id, task.status,
                (input_data ->> 'round')::int AS round, (input_data ->> 'revision')::bigint AS revision
            FROM task_executions AS task JOIN workflows AS run USING (workflow_id)
            WHERE task.status IN ('pending', 'running') AND $1::text[] IS NOT NULL AND {condition}
            """,  # noqa: S608  the conditions are the two above
            _OPEN,
            argument,
        )
    return [OpenTask(**row) for row in rows]


async def finished_turns(executor: Executor, task_keys: Collection[str]) -> list[TurnRecord]:
    """What the journal has of these rounds, as `record.sql` returns it of rounds that end by themselves."""
    with storage_errors():
        rows = await executor.fetch(
            """
            SELECT execution_id AS task_key, task_name AS stage, (input_data ->> 'round')::int AS round, task.agent_id
                AS agent, turn.turn, turn.model, turn.calls, turn.tokens_in, turn.tokens_out, turn.tokens_cached,
                turn.cost_usd, turn.completed_at,
                extract(EPOCH FROM turn.completed_at - turn.started_at)::float8 AS seconds,
                said.messages, said.tool_calls
            FROM task_executions AS task
            JOIN llm_turns AS turn ON turn.task_key = task.execution_id AND turn.status = 'done'
            CROSS JOIN LATERAL (
                SELECT count(*) AS messages, max(message.tool_calls::text)::jsonb AS tool_calls
                FROM agent_playground_messages AS message
                WHERE message.instance_id = task.execution_id AND message.metadata ->> 'turn' = turn.turn::text
            ) AS said
            WHERE execution_id = ANY($1)
            ORDER BY execution_id, turn.turn
            """,
            list(task_keys),
        )
    return [TurnRecord(**row) for row in rows]


async def tasks_with_late_turns(executor: Executor, since: timedelta) -> list[str]:
    """Keys of the rounds of which a call was answered after they had ended, among the calls begun since then."""
    with storage_errors():
        rows = await executor.fetch(
            """
            SELECT DISTINCT execution_id FROM llm_turns AS turn JOIN task_executions AS task ON execution_id = task_key
            WHERE turn.started_at > now() - $1::interval AND turn.status = 'done'
                AND task.status NOT IN ('pending', 'running') AND turn.completed_at > task.completed_at
            """,
            since,
        )
    return [row["execution_id"] for row in rows]


async def repair(executor: Executor, repairs: Sequence[Repair]) -> dict[str, int]:
    """Put rows right, all or none of the list; returns run key → tasks for those that were still as they were found.

    Idempotent: a repeated repair finds another revision and does nothing.
    """
    document = storable_json([item.model_dump(mode="json") for item in repairs])
    with storage_errors():
        rows = await executor.fetch(query("repair"), document)
    return {row["run_key"]: row["tasks"] for row in rows}


async def close_orphans(executor: Executor, tasks: Sequence[OpenTask], reason: str) -> int:
    """End rounds whose run has ended, unless their rows were written since they were read; returns how many."""
    with storage_errors():
        rows = await executor.fetch(
            """
            UPDATE task_executions AS kept
            SET status = 'cancelled', error = coalesce(kept.error, $3), completed_at = coalesce(run.completed_at, now())
            FROM unnest($1::text[], $2::bigint[]) AS given (task_key, revision), workflows AS run
            WHERE kept.execution_id = given.task_key
                AND kept.status IN ('pending', 'running')
                AND (kept.input_data ->> 'revision')::bigint = given.revision
                AND run.workflow_id = kept.workflow_id
                AND run.status <> ALL($4)
            RETURNING kept.execution_id
            """,
            [task.task_key for task in tasks],
            [task.revision for task in tasks],
            reason,
            _OPEN,
        )
    return len(rows)
