"""Reconcile against real servers: what is put right, told once, and what is left alone."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio import workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest, ResetWorkflowExecutionRequest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.reconcile import ReconcileActivities
from coatcheck.agents.presence import Presence
from coatcheck.events.past import rebuild
from coatcheck.localstack import LocalStack
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.events import EventLog
from coatcheck.messaging.streams import ensure_streams
from coatcheck.storage import state
from coatcheck.storage.database import Pool, open_pool
from coatcheck.storage.reconcile import RowState
from schemas import reconcile
from schemas.activities import RecordInput, RunRow
from schemas.event_payloads import RunRepaired, StageRepaired, TurnCompleted
from schemas.events import Event
from schemas.pipeline import FeatureRequest, PipelineResult, RunStatus
from schemas.reconcile import ReconcileReport
from schemas.streams import AGENTS, AUDIT_LOG
from schemas.task_queues import CORE, agent_queue
from schemas.workflow_ids import run_key
from tests.integration.storage_rows import run_row, task_row
from workers.interceptors import CoatcheckInterceptor
from workers.schedules import ensure_schedules
from workers.temporal import connect, sandbox_runner
from workflows.reconcile import ReconcileWorkflow
from workflows.run_state import RunState

QUEUE = "standing"
MANY = 1000


@workflow.defn(name="FeaturePipeline")
class Standing:
    """A pipeline that stands still until it is told how to end; its rows are written by the test."""

    def __init__(self) -> None:
        self._end = ""

    @workflow.run
    async def run(self) -> Any:
        """End as told."""
        await workflow.wait_condition(lambda: self._end != "")
        if self._end == "fail":
            raise ApplicationError("the critique is empty", non_retryable=True)
        if self._end == "work":
            await workflow.execute_activity(
                "roy.backend", task_queue=agent_queue("roy"), start_to_close_timeout=timedelta(minutes=5)
            )
        return PipelineResult(
            feature="x", status=RunStatus.REJECTED, reason="not wanted", stages=[], tokens=0, cost_usd=None, run_key="x"
        )

    @workflow.signal
    def end(self, how: str) -> None:
        """End now."""
        self._end = how


Handle = WorkflowHandle[Any, Any]


@pytest.fixture(scope="module")
def temporal_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A Temporal of this file's own: reconcile looks at everything that is open there."""
    with LocalStack(tmp_path_factory.mktemp("reconcile"), servers=("temporal",), workers=()) as stack:
        yield stack


@pytest.fixture
async def client(temporal_stack: LocalStack) -> AsyncIterator[Client]:
    """Temporal as the core worker speaks to it, with a worker of the standing pipelines; nothing stays open."""
    status = temporal_stack.status().temporal
    assert status is not None
    client = await connect(status.address, status.namespace)
    async with Worker(
        client,
        task_queue=QUEUE,
        workflows=[Standing],
        interceptors=[CoatcheckInterceptor()],
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        yield client
        async for execution in client.list_workflows("ExecutionStatus = 'Running'"):
            await client.get_workflow_handle(execution.id, run_id=execution.run_id).terminate()


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[Pool]:
    """The test's own database."""
    async with open_pool(postgres_dsn) as pool:
        yield pool


class Lab:
    """Runs with rows, and looks at them."""

    def __init__(self, pool: Pool, log: EventLog, client: Client, nats: NatsClient) -> None:
        self.pool = pool
        self.log = log
        self.client = client
        self.nats = nats

    def activities(self, kind: type[ReconcileActivities] = ReconcileActivities) -> ReconcileActivities:
        """What the core worker would register."""
        return kind(self.pool, self.log, self.client, nats=self.nats, agents=AGENTS)

    async def compare(self) -> ReconcileReport:
        """Look once."""
        return await self.activities().look()

    async def start(self, name: str, **options: Any) -> tuple[Handle, str]:
        """Start a run whose row says that research is under way; returns its key too."""
        handle: Handle = await self.client.start_workflow(
            "FeaturePipeline", id=f"feature/{name}", task_queue=QUEUE, **options
        )
        assert handle.first_execution_run_id is not None
        key = run_key(handle.id, handle.first_execution_run_id)
        await self.record(key, "running", task="running")
        return handle, key

    async def record(self, key: str, status: str, *, task: str | None = None, **changes: Any) -> RunRow:
        """Record a step of the run now, as its workflow would."""
        row = step_of(key, status, **changes)
        tasks = [task_row(task, task_key=f"{key}/research-1", started_at=row.started_at)] if task else []
        await state.record(self.pool, RecordInput(run=row, tasks=tasks))
        return row

    async def row(self, key: str) -> dict[str, Any]:
        """The run's row."""
        found = await self.pool.fetchrow("SELECT * FROM workflows WHERE workflow_id = $1", key)
        assert found is not None
        return dict(found)

    async def tasks(self, key: str) -> list[tuple[str, str | None]]:
        """Status and error of the run's rounds."""
        found = await self.pool.fetch("SELECT status, error FROM task_executions WHERE workflow_id = $1", key)
        return [(row["status"], row["error"]) for row in found]

    async def told(self, key: str) -> list[Event]:
        """What the audit log says of the run."""
        return [stored.event async for stored in self.log.read_run(key)]  # type: ignore[misc]  all are known here


def step_of(key: str, status: str, *, at: datetime | None = None, **changes: Any) -> RunRow:
    """A step at that time of the workflow, now by default."""
    at = at or datetime.now(UTC)
    revision = int(at.timestamp() * 1000) * 1000 + 1
    workflow_id = key.rpartition("/")[0]
    return run_row(revision, run_key=key, temporal_workflow_id=workflow_id, status=status, started_at=at, **changes)


@pytest.fixture
async def lab(pool: Pool, client: Client, core: NatsClient) -> Lab:
    """Everything that a core worker has."""
    await ensure_streams(core, [AUDIT_LOG])
    return Lab(pool, EventLog(core), client, core)


async def listed(lab: Lab, run_ids: set[str | None]) -> None:
    """Wait until Temporal's list of open runs, which lags behind, has these and no others."""
    async with asyncio.timeout(30):
        while {run_id for found in (await lab.activities()._live()).values() for run_id in found} != run_ids:
            await asyncio.sleep(0.02)


async def closed(handle: Handle) -> None:
    """Wait until an execution has ended, however."""
    async with asyncio.timeout(20):
        while (await handle.describe()).status is WorkflowExecutionStatus.RUNNING:
            await asyncio.sleep(0.01)


# --- what is put right --------------------------------------------------------------------------------------------


async def terminated(_: Lab, handle: Handle) -> None:
    """By a person, in the UI or with the temporal CLI."""
    await handle.terminate(reason="not needed any more")


async def cancelled(_: Lab, handle: Handle) -> None:
    """Cancelled, and its worker had no time to say so."""
    await handle.cancel()
    await closed(handle)


async def failed(_: Lab, handle: Handle) -> None:
    """Failed, and its last step was lost."""
    await handle.signal(Standing.end, "fail")
    await closed(handle)


async def completed(_: Lab, handle: Handle) -> None:
    """Ended with a result, and its last step was lost, as in a database that was restored."""
    await handle.signal(Standing.end, "complete")
    await closed(handle)


async def deleted(lab: Lab, handle: Handle) -> None:
    """Deleted by a person, or past its retention."""
    await lab.client.workflow_service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(
            namespace=lab.client.namespace, workflow_execution=WorkflowExecution(workflow_id=handle.id)
        )
    )
    async with asyncio.timeout(20):
        while await lab.activities()._describe(handle.id) is not None:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("end", "status", "task_status", "reason"),
    [
        (terminated, "cancelled", "cancelled", "terminated in Temporal by .*: not needed any more"),
        (cancelled, "cancelled", "cancelled", "cancelled in Temporal"),
        (failed, "failed", "failed", "failed in Temporal: the critique is empty"),
        (completed, "rejected", "cancelled", "not wanted"),
        (deleted, "failed", "failed", "Temporal does not know the run any more"),
    ],
)
async def test_an_ended_run_is_put_right_and_told_once(
    lab: Lab, end: Callable[[Lab, Handle], Any], status: str, task_status: str, reason: str
) -> None:
    """Its row and its open round say how it ended; two events say so; a second look finds nothing."""
    handle, key = await lab.start(f"ends-{end.__name__}")
    await end(lab, handle)
    report = await lab.compare()
    assert (report.open_rows, report.repaired_runs, report.repaired_tasks) == (1, 1, 1)
    row = await lab.row(key)
    assert row["status"] == status
    assert (row["current_step"], row["completed_at"] is None, row["error_count"]) == (None, False, 1)
    assert await lab.tasks(key) == [(task_status, row["error"])]
    run, stage = await lab.told(key)
    assert isinstance(run.payload, RunRepaired)
    assert (run.payload.found, run.payload.run.status, run.payload.reason) == ("running", status, row["error"])
    assert isinstance(stage.payload, StageRepaired)
    assert (stage.payload.stage, stage.payload.round, stage.payload.status) == ("research", 1, task_status)
    assert (stage.causation_id, stage.agent, stage.severity) == (run.event_id, "cynthia", "warning")
    assert len(report.repairs) == 1
    assert pytest.approx(0, abs=30) == (datetime.now(UTC) - row["completed_at"]).total_seconds()
    assert re.fullmatch(reason, row["error"])
    again = await lab.compare()
    assert (again.open_rows, again.repaired_runs) == (0, 0)
    assert len(await lab.told(key)) == 2


async def test_the_repaired_rows_can_be_rebuilt(lab: Lab) -> None:
    """From the run's own events and those of the repair."""
    handle, key = await lab.start("rebuilt")
    request = FeatureRequest(feature="customer-search", brief="Look back.")
    run = RunState(request=request, run_key=key, workflow_id=handle.id, started_at=datetime.now(UTC))
    run.open()
    run.start_round(request.pipeline.stages[0], datetime.now(UTC), [], "")
    step = run.take_step(datetime.now(UTC) + timedelta(seconds=1))
    await state.record(lab.pool, step)
    await lab.log.publish(step.events)
    await terminated(lab, handle)
    await lab.compare()
    past = rebuild([item async for item in lab.log.read_run(key)])
    row = await state.find_run(lab.pool, key)
    assert past is not None
    assert row is not None
    assert past.run == row.model_copy(update={"updated_at": past.run.updated_at})
    assert past.tasks == await state.tasks(lab.pool, key)


async def test_the_runs_of_another_namespace_are_left_alone(lab: Lab) -> None:
    """Here they look as if they were gone."""
    handle, key = await lab.start("elsewhere")
    await lab.pool.execute(
        'UPDATE workflows SET metadata = metadata || \'{"namespace": "another"}\' WHERE workflow_id = $1', key
    )
    await terminated(lab, handle)
    report = await lab.compare()
    assert (report.open_rows, report.repaired_runs) == (0, 0)
    assert (await lab.row(key))["status"] == "running"


async def test_a_call_that_is_answered_after_its_round_has_ended_is_told(lab: Lab) -> None:
    """It was paid for; each look tells it, and it is told once."""
    handle, key = await lab.start("late")
    await terminated(lab, handle)
    async with asyncio.timeout(20):  # Temporal's list of open runs follows in its own time
        while not (await lab.compare()).repaired_runs:
            await asyncio.sleep(0.05)
    before = len(await lab.told(key))
    await lab.pool.execute(
        "INSERT INTO llm_turns (task_key, turn, agent_id, status, gateway_id, request_sha256, model, completed_at)"
        " VALUES ($1, 1, 'cynthia', 'done', 'g', 'x', 'test:model', now() + interval '1 minute')",
        f"{key}/research-1",
    )
    for _ in range(2):
        await lab.compare()
    [turn] = (await lab.told(key))[before:]
    assert (turn.event_type, turn.entity_id, turn.session_id) == ("turn.completed", f"{key}/research-1", handle.id)


async def test_what_was_paid_in_an_unfinished_round_is_told(lab: Lab) -> None:
    """Turns are told when their round ends; so they are when reconcile ends it, before its end, and once."""
    handle, key = await lab.start("paid")
    await lab.pool.execute(
        """
        INSERT INTO llm_turns (task_key, turn, agent_id, status, gateway_id, request_sha256, model, calls,
            tokens_in, tokens_out, cost_usd, started_at, completed_at)
        SELECT $1, turn, 'cynthia', CASE turn WHEN 3 THEN 'in_flight' ELSE 'done' END, 'g', 'x', 'openai:gpt', 1,
            100, 20, 0.5, now() - interval '2 s', CASE turn WHEN 3 THEN NULL ELSE now() END
        FROM generate_series(1, 3) AS turn
        """,
        f"{key}/research-1",
    )
    await handle.terminate()
    await lab.compare()
    told = await lab.told(key)
    assert [event.event_type for event in told] == [*["turn.completed"] * 2, "run.repaired", "stage.repaired"]
    assert [event.payload.turn for event in told if isinstance(event.payload, TurnCompleted)] == [1, 2]


async def test_a_run_that_timed_out_is_put_right(lab: Lab) -> None:
    """Temporal ends it without asking its worker."""
    handle, key = await lab.start("times-out", execution_timeout=timedelta(seconds=1))
    await closed(handle)
    await lab.compare()
    row = await lab.row(key)
    assert (row["status"], row["error"]) == ("failed", "timed out in Temporal")


async def test_the_schedule_does_it(lab: Lab) -> None:
    """Made once by however many workers; a look of its own puts a terminated run right well within the bound."""
    await asyncio.gather(*(ensure_schedules(lab.client) for _ in range(4)))
    schedule = lab.client.get_schedule_handle(reconcile.SCHEDULE_ID)
    spec = (await schedule.describe()).schedule
    assert spec.spec.intervals[0].every == timedelta(seconds=30)
    handle, key = await lab.start("scheduled")
    await handle.terminate(reason="from outside")
    began = time.monotonic()
    async with Worker(
        lab.client,
        task_queue=CORE,
        workflows=[ReconcileWorkflow],
        activities=[lab.activities().compare],
        interceptors=[CoatcheckInterceptor()],
        workflow_runner=sandbox_runner(),
    ):
        await schedule.trigger()
        async with asyncio.timeout(30):
            while (await lab.row(key))["status"] == "running":
                await asyncio.sleep(0.02)
        assert (await lab.row(key))["status"] == "cancelled"
        print(f"put right {time.monotonic() - began:.2f} s after the schedule was triggered")
        report = await lab.client.execute_workflow(ReconcileWorkflow.run, id="reconcile-by-hand", task_queue=CORE)
        assert (report.open_rows, report.repaired_runs) == (0, 0)
    await schedule.delete()
    assert len(await lab.told(key)) == 2


async def test_many_looks_at_once_tell_once(lab: Lab) -> None:
    """Several core workers, or an attempt that is made again while the first is still under way."""
    handle, key = await lab.start("raced")
    await handle.terminate()
    reports = await asyncio.gather(*(lab.compare() for _ in range(5)))
    assert sum(report.repaired_runs for report in reports) == 1
    assert [event.event_type for event in await lab.told(key)] == ["run.repaired", "stage.repaired"]


class StopsHalfway(ReconcileActivities):
    """Dies, as far as the rows can tell, after it has told and before it has done."""

    async def _repair(self, findings: Sequence[Any], _: ReconcileReport) -> None:
        now = datetime.now(UTC)
        await self._log.publish([event for finding in findings for event in finding.events(now)])
        raise RuntimeError("dead")


async def test_told_and_not_done_is_done_by_the_next(lab: Lab) -> None:
    """The event is not told again, although the second look words it at another time."""
    handle, key = await lab.start("halfway")
    await handle.terminate()
    with pytest.raises(RuntimeError, match="dead"):
        await lab.activities(StopsHalfway).look()
    assert (await lab.row(key))["status"] == "running"
    assert (await lab.compare()).repaired_runs == 1
    assert (await lab.row(key))["status"] == "cancelled"
    assert len(await lab.told(key)) == 2


class CountsQuestions(ReconcileActivities):
    """Counts the questions about single runs."""

    asked = 0

    async def _describe(self, *args: Any) -> Any:
        self.asked += 1
        return await super()._describe(*args)


async def test_a_thousand_runs(lab: Lab) -> None:
    """While all is well no run is asked about alone; when all have ended at once, one look puts all of them right."""
    started = await asyncio.gather(*(lab.start(f"many-{number}") for number in range(MANY)))
    looks = lab.activities(CountsQuestions)
    assert isinstance(looks, CountsQuestions)
    await listed(lab, {handle.first_execution_run_id for handle, _ in started})
    began = time.monotonic()
    report = await looks.look()
    well = time.monotonic() - began
    assert (report.open_rows, report.open_runs, report.repaired_runs, looks.asked) == (MANY, MANY, 0, 0)
    await asyncio.gather(*(handle.terminate() for handle, _ in started))
    await listed(lab, set())
    began = time.monotonic()
    report = await looks.look()
    took = time.monotonic() - began
    print(f"{MANY} open runs: {well:.2f} s when all is well, {took:.2f} s to put all right")
    assert (report.repaired_runs, report.repaired_tasks) == (MANY, MANY)
    assert len(report.model_dump_json()) < 8 * 1024
    assert await lab.pool.fetchval("SELECT count(*) FROM workflows WHERE status = 'cancelled'") == MANY
    assert took < reconcile.COMPARE_START_TO_CLOSE.total_seconds()


# --- what is left alone -------------------------------------------------------------------------------------------


async def test_a_live_run_is_never_touched(lab: Lab) -> None:
    """Whatever its row says of its waiting; nor is one that has just said that it is complete and is about to end."""
    _, key = await lab.start("lives")
    for status in ("running", "paused", "waiting"):
        await lab.record(key, status)
        assert (await lab.compare()).repaired_runs == 0
        assert (await lab.row(key))["status"] == status
    await lab.record(key, "completed", task="completed", completed_at=datetime.now(UTC))
    assert (await lab.compare()).repaired_runs == 0
    assert (await lab.row(key))["status"] == "completed"
    assert await lab.told(key) == []


class EndsMeanwhile(ReconcileActivities):
    """The run's own last step is recorded after Temporal has been asked about it."""

    lab: Lab

    async def _truth(self, row: RowState) -> Any:
        truth = await super()._truth(row)
        await self.lab.record(row.run_key, "completed", task="completed", completed_at=datetime.now(UTC))
        return truth


async def test_a_run_that_ends_while_it_is_compared(lab: Lab) -> None:
    """The rows were read while it worked, Temporal was asked when it had ended: its own last word stands."""
    handle, key = await lab.start("ends-meanwhile")
    await handle.signal(Standing.end, "complete")
    await closed(handle)
    activities = lab.activities(EndsMeanwhile)
    assert isinstance(activities, EndsMeanwhile)
    activities.lab = lab
    assert (await activities.look()).repaired_runs == 0
    assert (await lab.row(key))["status"] == "completed"
    assert await lab.told(key) == []


class StepsMeanwhile(ReconcileActivities):
    """A newer step is recorded between the event and the row."""

    lab: Lab

    async def _repair(self, findings: Sequence[Any], report: ReconcileReport) -> None:
        for finding in findings:
            await self.lab.record(finding.row.run_key, "waiting", at=datetime.now(UTC) + timedelta(seconds=1))
        await super()._repair(findings, report)


async def test_a_newer_step_is_not_overwritten(lab: Lab) -> None:
    """The repair is bound to the revision that was read."""
    handle, key = await lab.start("newer")
    await handle.terminate()
    activities = lab.activities(StepsMeanwhile)
    assert isinstance(activities, StepsMeanwhile)
    activities.lab = lab
    assert (await activities.look()).repaired_runs == 0
    assert (await lab.row(key))["status"] == "waiting"


async def test_a_late_step_does_not_undo_a_repair(lab: Lab) -> None:
    """A step that was under way when its run was terminated; a round that only it tells of is ended later."""
    handle, key = await lab.start("late")
    late = step_of(key, "running")
    await handle.terminate()
    await lab.compare()
    backend = task_row("running", task_key=f"{key}/backend-1", stage="backend", agent="roy", task_type="backend")
    await state.record(
        lab.pool, RecordInput(run=late, tasks=[backend, task_row("running", task_key=f"{key}/research-1")])
    )
    assert (await lab.row(key))["status"] == "cancelled"
    assert sorted(status for status, _ in await lab.tasks(key)) == ["cancelled", "running"]
    report = await lab.compare()
    assert (report.repaired_runs, report.repaired_tasks) == (0, 1)
    assert {status for status, _ in await lab.tasks(key)} == {"cancelled"}
    assert (await lab.compare()).repaired_tasks == 0
    assert [event.event_type for event in await lab.told(key)].count("stage.repaired") == 2


async def test_a_reset_run_is_the_same_run(lab: Lab) -> None:
    """Reset while it works, its row stays as it is; ended, it is found under its new execution."""
    handle, key = await lab.start("reset-open")
    again = await reset(lab, handle)
    await listed(lab, {again.run_id})
    assert (await lab.compare()).repaired_runs == 0
    assert (await lab.row(key))["status"] == "running"
    await again.terminate(reason="after the reset")
    assert (await lab.compare()).repaired_runs == 1
    row = await lab.row(key)
    assert (row["status"], row["error"].endswith("after the reset")) == ("cancelled", True)


async def test_a_run_that_goes_on_after_its_end_is_open_again(lab: Lab) -> None:
    """Reset after it was terminated and put right; then it ends again, and each of the three is told once."""
    handle, key = await lab.start("reset-ended")
    await first_task(handle)
    await handle.terminate(reason="by mistake")
    await lab.compare()
    again = await reset(lab, handle)
    report = await lab.compare()
    assert report.repaired_runs == 1
    row = await lab.row(key)
    assert (row["status"], row["error"], row["completed_at"]) == ("running", None, None)
    assert (await lab.compare()).repaired_runs == 0
    await lab.record(key, "waiting")  # its own next step counts
    assert (await lab.row(key))["status"] == "waiting"
    await again.terminate(reason="for good")
    assert (await lab.compare()).repaired_runs == 1
    told = [event.payload.run.status for event in await lab.told(key) if isinstance(event.payload, RunRepaired)]
    assert told == ["cancelled", "running", "cancelled"]


async def test_two_runs_under_one_id(lab: Lab) -> None:
    """The first was terminated unseen, the second works: only the first is put right."""
    first, old = await lab.start("twice")
    await first.terminate()
    _, new = await lab.start("twice")
    assert old != new
    assert (await lab.compare()).repaired_runs == 1
    assert ((await lab.row(old))["status"], (await lab.row(new))["status"]) == ("cancelled", "running")


async def test_a_row_of_somebody_else_is_left_alone(lab: Lab) -> None:
    """Without a revision it was not written by a run."""
    await lab.pool.execute("INSERT INTO workflows (workflow_id, status) VALUES ('theirs', 'running')")
    assert (await lab.compare()).open_rows == 0


async def first_task(handle: Handle) -> int:
    """Wait until the run's first workflow task is completed; a run that ends before has nothing to go back to."""
    async with asyncio.timeout(20):
        while True:
            history = await handle.fetch_history()
            for event in history.events:
                if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
                    return event.event_id
            await asyncio.sleep(0.01)


async def reset(lab: Lab, handle: Handle) -> Handle:
    """Take a run back to its first workflow task; its new execution."""
    task = await first_task(handle)
    answer = await lab.client.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace=lab.client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=handle.id, run_id=handle.first_execution_run_id or ""),
            workflow_task_finish_event_id=task,
            reason="test",
            request_id=handle.id,
        )
    )
    return lab.client.get_workflow_handle(handle.id, run_id=answer.run_id)


# --- what people have to mend -------------------------------------------------------------------------------------


async def test_work_that_nobody_comes_for_is_said(lab: Lab, roy: NatsClient) -> None:
    """An agent's queue with work and without a worker; not while a worker says that it lives."""
    handle, key = await lab.start("forsaken")
    await handle.signal(Standing.end, "work")
    async with asyncio.timeout(30):
        while not (warnings := (await lab.compare()).warnings):
            await asyncio.sleep(0.1)
    assert warnings == ["work waits for roy, and no worker of it is left"]
    async with Presence(roy, "roy", version="1"):
        async with asyncio.timeout(10):
            while (await lab.compare()).warnings:
                await asyncio.sleep(0.05)
    assert (await lab.compare()).warnings == warnings
    assert (await lab.row(key))["status"] == "running"
