"""`state.record`: writes one step of a run to PostgreSQL, and tells what happened in the audit log."""

import asyncio
from collections.abc import Sequence

import asyncpg
from temporalio import activity

from activities.budgets import Budgets
from coatcheck.errors import BudgetError, InsufficientCreditsError
from coatcheck.failpoints import failpoint
from coatcheck.messaging.events import EventLog
from coatcheck.storage import state
from coatcheck.storage.known_tasks import KnownTasks
from coatcheck.storage.state import TurnRecord
from coatcheck.telemetry.instruments import RunInstruments
from coatcheck.telemetry.scope import working_on
from schemas.activities import RECORD_STATE, RecordInput
from schemas.event_payloads import ToolCall
from schemas.event_payloads import TurnCompleted as Turn
from schemas.events import TurnCompleted
from schemas.workflow_ids import event_id, run_key_of


class StateActivities:
    """Activities of the core worker; they own the transaction."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        log: EventLog,
        tasks: KnownTasks,
        measures: RunInstruments,
        *,
        budgets: Budgets | None = None,
    ) -> None:
        self._pool = pool
        self._budgets = budgets or Budgets()
        self._log = log
        self._tasks = tasks
        self._measures = measures

    @activity.defn(name=RECORD_STATE)
    async def record(self, step: RecordInput) -> None:
        """Store the step.

        Idempotent: the rows are absolute, guarded by the run's revision, and event ids are deterministic, so a worker
        that dies anywhere in between leaves, in the end, the same rows and the same events behind. Rows and
        events do not wait for each other, but the turns of a round come from the rows, and a run's end is told last.

        Raises:
            BudgetError: the request names a budget that does not exist, or that its tenant cannot pay; not retried.
        """
        with working_on(step.run.run_key):
            await self._record(step)

    async def _record(self, step: RecordInput) -> None:
        await failpoint("state.before_record")
        step = self._budgets.resolved(step)
        if step.run.completed_at is None:
            turns, _ = await asyncio.gather(self._store(step), self._log.publish(step.events))
            told = turn_events(step, turns)
            await failpoint("state.before_turns")
            await self._log.publish(told)
        else:
            told = turn_events(step, await self._store(step))
            await failpoint("state.before_turns")
            await self._log.publish([*told, *step.events])
        for task in step.tasks:
            self._tasks.note(task.task_key, task.agent)
        self._measures.recorded(step, told)
        await failpoint("state.after_record")

    async def _store(self, step: RecordInput) -> list[TurnRecord]:
        try:
            return await state.record(self._pool, step)
        except InsufficientCreditsError as error:
            raise BudgetError(f"the budget of {step.run.budget} cannot be paid: {error}") from error


def turn_events(step: RecordInput, turns: Sequence[TurnRecord]) -> list[TurnCompleted]:
    """What the audit log says of the turns of the rounds that ended with this step."""
    resets = {task.task_key: task.reset for task in step.tasks}
    return [turn_event(turn, resets[turn.task_key], step.run.temporal_workflow_id) for turn in turns]


def turn_event(turn: TurnRecord, reset: str, session_id: str) -> TurnCompleted:
    """What the audit log says of one turn; `reset` as in the task's `StageOrder`."""
    calls = [ToolCall(tool=call["tool_name"], tool_call_id=call["tool_call_id"]) for call in turn.tool_calls or []]
    said = turn.model_dump(exclude={"task_key", "agent", "completed_at", "tool_calls"})
    return TurnCompleted.of(
        entity_id=turn.task_key,
        occurrence=str(turn.turn),  # a turn is paid for once, also when its round begins again after a reset
        correlation_id=run_key_of(turn.task_key),
        causation_id=event_id(turn.task_key, "stage.started", reset),
        session_id=session_id,
        agent=turn.agent,
        occurred_at=turn.completed_at,
        payload=Turn(**said, tool_calls=calls),
    )
