"""`reconcile.compare`: one look at whether the rows say what Temporal says, and what is done about it.

Cheap when all is well: one query for the rows, the list of open runs in pages, no question per run. Only what differs
is a suspect, and is looked at closely, in this order:

1. the execution, in Temporal: which one carries the run now (a reset makes a new one with the same first run id), and
   whether it has really ended; the list may lag behind;
2. the row, once more: a run records its last step before it ends, so a row that still says "open" after Temporal has
   said "ended" will not be written by that execution any more, but for a step that was under way when it was killed;
3. the event, then the row. Both can be repeated: the event's id follows from the execution and the new status, and the
   row is changed at the revision at which it was found and at no other.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from pydantic import ValidationError
from temporalio import activity
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowHistoryEventFilterType,
)
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from activities.heartbeats import heartbeats
from activities.queues import queue_state
from activities.state import turn_event
from coatcheck.errors import CoatcheckError
from coatcheck.failpoints import failpoint
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.events import EventLog
from coatcheck.messaging.keyvalue import kv_get
from coatcheck.storage import budgets
from coatcheck.storage import reconcile as rows
from coatcheck.storage.database import Pool
from coatcheck.storage.reconcile import OpenTask, Repair, RowState
from schemas import event_payloads as payloads
from schemas.agent_state import AgentState, agent_key
from schemas.events import RunRepaired, StageRepaired, SystemEvent, TurnCompleted
from schemas.pipeline import PipelineResult, RunStatus
from schemas.reconcile import COMPARE, MAX_LINES, ReconcileReport, RepairLine
from schemas.streams import AGENT_STATE
from schemas.workflow_ids import run_key_of, session_of

PAGE: Final = 1000
"""Open runs per question; the server's own maximum."""
AT_ONCE: Final = 16
"""Questions about single runs at the same time; each takes 2 ms."""
LATE: Final = timedelta(minutes=15)
"""Longer than any provider call; what is older was told by an earlier look."""
BATCH: Final = 50
"""Runs that are put right together: what is done of a thousand stays done when the worker dies in the middle."""
SETTLED_SECONDS: Final = 60.0
"""A run writes "completed" a moment before it has ended; a row that is older than this says it without being right."""
_REASON_CHARACTERS: Final = 500

_OPEN_RUNS: Final = "WorkflowType = 'FeaturePipeline' AND ExecutionStatus = 'Running'"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Truth:
    """What Temporal says of a run."""

    status: RunStatus
    reason: str
    execution: str
    """Run id of the execution that says so."""
    ended_at: datetime | None


@dataclass(frozen=True)
class _Finding:
    """A row that is not true, with the truth."""

    row: RowState
    truth: _Truth
    tasks: tuple[OpenTask, ...]

    @property
    def task_status(self) -> str:
        return "failed" if self.truth.status is RunStatus.FAILED else "cancelled"

    @property
    def occurrence(self) -> str:
        """An execution ends once, and is found alive under a row that has ended once."""
        return f"{self.truth.status}:{self.truth.execution}"

    @property
    def completed_steps(self) -> int:
        return self.row.total_steps if self.truth.status is RunStatus.COMPLETED else self.row.completed_steps

    def repair(self) -> Repair:
        """Of the rows."""
        # A step's revision is made of its time in the workflow, which is never later than the end of the execution.
        ended = int(self.truth.ended_at.timestamp() * 1000) * 1000 + 999 if self.truth.ended_at else 0
        return Repair(
            run_key=self.row.run_key,
            found_revision=self.row.revision,
            revision=max(self.row.revision + 1, ended),
            status=self.truth.status,
            reason=self.truth.reason,
            completed_at=self.truth.ended_at,
            completed_steps=self.completed_steps,
            tasks=[task.task_key for task in self.tasks],
            task_status=self.task_status,
        )

    def events(self, now: datetime) -> list[SystemEvent]:
        """One for the run, caused by nothing that was told, and one for each of its rounds, caused by that."""
        point = payloads.RunPoint(status=self.truth.status, completed_steps=self.completed_steps)
        said = payloads.RunRepaired(
            found=self.row.status, reason=self.truth.reason, completed_at=self.truth.ended_at, run=point
        )
        run = RunRepaired.of(
            entity_id=self.row.run_key,
            occurrence=self.occurrence,
            correlation_id=self.row.run_key,
            session_id=self.row.temporal_workflow_id,
            severity="warning",
            occurred_at=now,
            payload=said,
        )
        told = [
            _task_event(
                task,
                self.task_status,
                self.truth.reason,
                self.occurrence,
                now,
                cause=run.event_id,
                ended_at=self.truth.ended_at,
            )
            for task in self.tasks
        ]
        return [run, *told]


class ReconcileActivities:
    """Activity of the core worker.

    Args:
        pool: The state of record.
        log: Where repairs are told.
        client: Temporal, with our data converter.
        nats: Reads what the agents say of themselves.
        agents: Whose queues are looked after.
    """

    def __init__(self, pool: Pool, log: EventLog, client: Client, *, nats: NatsClient, agents: Sequence[str]) -> None:
        self._pool = pool
        self._log = log
        self._client = client
        self._nats = nats
        self._agents = tuple(agents)
        self._slots = asyncio.Semaphore(AT_ONCE)

    @activity.defn(name=COMPARE)
    async def compare(self) -> ReconcileReport:
        """Look once."""
        async with heartbeats():
            return await self.look()

    async def look(self) -> ReconcileReport:
        """Compare everything, and put right what differs.

        Idempotent, and safe beside another look and beside everything that runs.
        """
        # The rows before the list: a run that ends in between is a suspect that turns out to be well.
        open_rows = await rows.open_rows(self._pool, self._client.namespace)
        live = await self._live()
        report = ReconcileReport(
            compared_at=datetime.now(UTC), open_rows=len(open_rows), open_runs=sum(map(len, live.values()))
        )
        suspects = [row for row in open_rows if row.first_run_id not in live.get(row.temporal_workflow_id, ())]
        for start in range(0, len(suspects), BATCH):
            await self._put_right(suspects[start : start + BATCH], report)
        await self._reopen(live, open_rows, report)
        await self._close_orphans(report)
        await self._tell_late_turns()
        swept = await budgets.sweep(self._pool)
        report.released_holds, report.closed_budgets = swept.holds, swept.budgets
        report.warnings = (await self._forsaken())[:MAX_LINES]
        if report.repaired_runs or report.repaired_tasks or report.warnings:
            _log.warning("reconcile: %s", report.model_dump_json(exclude_defaults=True))
        return report

    async def _live(self) -> dict[str, set[str]]:
        """Workflow id → run id of its open execution, as the list has it."""
        live: dict[str, set[str]] = {}
        async for execution in self._client.list_workflows(_OPEN_RUNS, page_size=PAGE):
            live.setdefault(execution.id, set()).add(execution.run_id)
        return live

    # --- open in the rows, ended in Temporal --------------------------------------------------------------------

    async def _put_right(self, suspects: Sequence[RowState], report: ReconcileReport) -> None:
        truths = await asyncio.gather(*(self._truth(row) for row in suspects))
        ended = {row.run_key: truth for row, truth in zip(suspects, truths, strict=True) if truth is not None}
        await self._repair(await self._found(ended, suspects), report)

    async def _truth(self, row: RowState) -> _Truth | None:
        """How a run has ended; `None` when it has not."""
        async with self._slots:
            execution = await self._execution(row)
            if execution is None:
                return _Truth(RunStatus.FAILED, "Temporal does not know the run any more", "gone", datetime.now(UTC))
            if execution.status is WorkflowExecutionStatus.RUNNING:
                return None
            return await self._ending(execution)

    async def _execution(self, row: RowState) -> WorkflowExecutionDescription | None:
        """The execution that carries the run now: the latest of its id, unless that is another run under the same."""
        latest = await self._describe(row.temporal_workflow_id)
        if latest is not None and latest.raw_info.first_run_id == row.first_run_id:
            return latest
        return await self._describe(row.temporal_workflow_id, row.first_run_id)

    async def _describe(self, workflow_id: str, run_id: str | None = None) -> WorkflowExecutionDescription | None:
        try:
            return await self._client.get_workflow_handle(workflow_id, run_id=run_id).describe()
        except RPCError as error:
            if error.status in (RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT):
                return None
            raise

    async def _ending(self, execution: WorkflowExecutionDescription) -> _Truth:
        handle = self._client.get_workflow_handle(execution.id, run_id=execution.run_id)
        last: HistoryEvent | None = None
        try:
            async for event in handle.fetch_history_events(
                event_filter_type=WorkflowHistoryEventFilterType.CLOSE_EVENT
            ):
                last = event
        except RPCError as error:  # deleted since it was described: it has ended all the same
            _log.info("the end of %s cannot be read: %s", execution.id, error.message)
        status, reason = await self._told(execution.status, last)
        return _Truth(status, reason[:_REASON_CHARACTERS], execution.run_id, execution.close_time or datetime.now(UTC))

    async def _told(self, status: WorkflowExecutionStatus | None, last: HistoryEvent | None) -> tuple[RunStatus, str]:
        """How the history says that it ended."""
        if status is WorkflowExecutionStatus.TERMINATED:
            told = last.workflow_execution_terminated_event_attributes if last else None
            who = f" by {told.identity}" if told and told.identity else ""
            why = f": {told.reason}" if told and told.reason else ""
            return RunStatus.CANCELLED, f"terminated in Temporal{who}{why}"
        if status is WorkflowExecutionStatus.CANCELED:
            return RunStatus.CANCELLED, "cancelled in Temporal"
        if status is WorkflowExecutionStatus.TIMED_OUT:
            return RunStatus.FAILED, "timed out in Temporal"
        if status is WorkflowExecutionStatus.COMPLETED:
            return await self._completed(last)
        failure = last.workflow_execution_failed_event_attributes.failure.message if last else ""
        return RunStatus.FAILED, f"failed in Temporal: {failure or 'no reason is told'}"

    async def _completed(self, last: HistoryEvent | None) -> tuple[RunStatus, str]:
        """A run whose last step was lost, for instance with a restored database; its result says how it was."""
        given = last.workflow_execution_completed_event_attributes.result.payloads if last else ()
        try:
            [result] = await self._client.data_converter.decode(given, [PipelineResult])
        except (ValueError, ApplicationError):  # nothing, or nothing of ours
            return RunStatus.COMPLETED, "completed in Temporal"
        return result.status, result.reason

    async def _found(self, truths: dict[str, _Truth], was: Sequence[RowState]) -> list[_Finding]:
        """The rows that are still as they were before Temporal was asked, with their open rounds."""
        before = {row.run_key: row for row in was}
        now = await rows.rows_of(self._pool, truths)
        kept = {key: row for key, row in now.items() if row.revision == before[key].revision}
        tasks = await rows.open_tasks(self._pool, kept)
        return [
            _Finding(row, truths[key], tuple(task for task in tasks if task.run_key == key))
            for key, row in sorted(kept.items())
        ]

    async def _repair(self, findings: Sequence[_Finding], report: ReconcileReport) -> None:
        """Tell, then do; a death in between leaves the row as it was, and the next look tells nothing twice."""
        if not findings:
            return
        now = datetime.now(UTC)
        await failpoint("reconcile.before_events")
        turns = await self._turns([task for finding in findings for task in finding.tasks])
        await self._log.publish([*turns, *(event for finding in findings for event in finding.events(now))])
        await failpoint("reconcile.after_events")
        repaired = await rows.repair(self._pool, [finding.repair() for finding in findings])
        await failpoint("reconcile.after_rows")
        for finding in findings:
            if finding.row.run_key in repaired:
                report.repaired_runs += 1
                report.repaired_tasks += repaired[finding.row.run_key]
                _name(report, finding.row.run_key, finding.row.status, finding.truth.status, finding.truth.reason)

    async def _turns(self, tasks: Sequence[OpenTask]) -> list[TurnCompleted]:
        """What was paid for in rounds that did not come to their own end, which is when turns are told."""
        runs = {task.task_key: task.temporal_workflow_id for task in tasks}
        found = await rows.finished_turns(self._pool, runs)
        return [turn_event(turn, "", runs[turn.task_key]) for turn in found]

    # --- ended in the rows, open in Temporal --------------------------------------------------------------------

    async def _reopen(self, live: dict[str, set[str]], open_rows: Sequence[RowState], report: ReconcileReport) -> None:
        """A run that was reset after its end goes on; its own next step would say so too, whenever that comes."""
        unmatched = live.keys() - {row.temporal_workflow_id for row in open_rows}
        ended = await rows.ended_rows(self._pool, self._client.namespace, unmatched)
        by_id: dict[str, list[RowState]] = {}
        for row in ended:
            by_id.setdefault(row.temporal_workflow_id, []).append(row)
        found = await asyncio.gather(*(self._goes_on(name, group) for name, group in by_id.items()))
        truths = dict(pair for pair in found if pair is not None)
        for start in range(0, len(truths), BATCH):
            keys = sorted(truths)[start : start + BATCH]
            findings = await self._found({key: truths[key] for key in keys}, ended)
            # Its rounds stay as they are: those that it does again are recorded by its own steps.
            await self._repair([replace(finding, tasks=()) for finding in findings], report)

    async def _goes_on(self, workflow_id: str, ended: Iterable[RowState]) -> tuple[str, _Truth] | None:
        """The run that this open execution is, if its row has been wrong for long enough."""
        async with self._slots:
            execution = await self._describe(workflow_id)
        if execution is None or execution.status is not WorkflowExecutionStatus.RUNNING:
            return None
        row = next((row for row in ended if row.first_run_id == execution.raw_info.first_run_id), None)
        if row is None:
            return None
        began_later = row.completed_at is None or execution.start_time > row.completed_at
        if not began_later and row.age_seconds < SETTLED_SECONDS:
            return None
        reason = "the run goes on in Temporal" + (", after a reset" if execution.run_id != row.first_run_id else "")
        return row.run_key, _Truth(RunStatus.RUNNING, reason, execution.run_id, None)

    # --- open rounds of runs that have ended --------------------------------------------------------------------

    async def _close_orphans(self, report: ReconcileReport) -> None:
        tasks = await rows.orphaned_tasks(self._pool, PAGE)
        if not tasks:
            return
        reason, now = "its run has ended", datetime.now(UTC)
        events = [_task_event(task, "cancelled", reason, f"cancelled:{task.revision}", now) for task in tasks]
        await failpoint("reconcile.before_events")
        await self._log.publish([*await self._turns(tasks), *events])
        await failpoint("reconcile.after_events")
        report.repaired_tasks += await rows.close_orphans(self._pool, tasks, reason)
        for task in tasks:
            _name(report, task.task_key, task.status, "cancelled", reason)

    async def _tell_late_turns(self) -> None:
        """Calls that were under way when their round ended are paid for all the same; each look tells them, once."""
        late = await rows.finished_turns(self._pool, await rows.tasks_with_late_turns(self._pool, LATE))
        await self._log.publish([turn_event(turn, "", session_of(run_key_of(turn.task_key))) for turn in late])

    # --- what nobody but people can mend ------------------------------------------------------------------------

    async def _forsaken(self) -> list[str]:
        """Agents for whom work waits and of whom no worker is left; the round itself is Temporal's to try again."""
        try:
            found = await asyncio.gather(*(self._warning(agent) for agent in self._agents))
        except (CoatcheckError, RPCError) as error:
            return [f"the agents' queues cannot be looked at: {error}"[:_REASON_CHARACTERS]]
        return [warning for warning in found if warning]

    async def _warning(self, agent: str) -> str | None:
        data, _ = await kv_get(self._nats, AGENT_STATE, agent_key(agent)) or (b"", 0)
        try:
            state = AgentState.model_validate_json(data) if data else AgentState()
        except ValidationError:
            state = AgentState()
        if state.present(datetime.now(UTC)):
            return None
        queue = await queue_state(self._client, agent)
        return f"work waits for {agent}, and no worker of it is left" if queue.is_forsaken else None


def _task_event(
    task: OpenTask,
    status: str,
    reason: str,
    occurrence: str,
    now: datetime,
    *,
    cause: str | None = None,
    ended_at: datetime | None = None,
) -> SystemEvent:
    return StageRepaired.of(
        entity_id=task.task_key,
        occurrence=occurrence,
        correlation_id=task.run_key,
        causation_id=cause,
        session_id=task.temporal_workflow_id,
        agent=task.agent,
        severity="warning",
        occurred_at=now + timedelta(microseconds=1),
        payload=payloads.StageRepaired.model_validate(
            {
                "stage": task.stage,
                "round": task.round,
                "found": task.status,
                "status": status,
                "reason": reason,
                "completed_at": ended_at,
            }
        ),
    )


def _name(report: ReconcileReport, key: str, found: str, status: str, reason: str) -> None:
    if len(report.repairs) < MAX_LINES:
        report.repairs.append(RepairLine(key=key, found=found, status=status, reason=reason[:200]))
