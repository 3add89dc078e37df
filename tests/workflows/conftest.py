"""A real Temporal dev server, the real workflow, and agents whose verdicts a test decides."""

import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from pathlib import Path

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from coatcheck.errors import BudgetError
from schemas import search_attributes
from schemas.activities import RECORD_STATE, RecordInput, RunStageInput, StageOrder, stage_activity
from schemas.events import SystemEvent
from schemas.notice import MAX_SUMMARY_CHARACTERS, Notice, NoticeMetadata, Verdict
from schemas.pipeline import DEFAULT_PIPELINE, FeatureRequest, PipelineResult, StageKind
from schemas.streams import stream_name
from schemas.subjects import deliverable_subject
from schemas.task_queues import CORE, agent_queue
from workers.interceptors import CoatcheckInterceptor
from workers.temporal import BUILD_ID, DATA_CONVERTER, sandbox_runner
from workflows.feature_pipeline import FeaturePipelineWorkflow

Behaviour = Callable[[Notice], Notice | Awaitable[Notice]]


class FakeTeam:
    """Six agents that answer at once; `behave` changes what one of them says in one round."""

    def __init__(self) -> None:
        self.orders: dict[str, list[StageOrder]] = defaultdict(list)
        self.steps: list[RecordInput] = []
        self.can_pay = True
        """Whether the tenant has what a budget needs."""
        self._behaviours: dict[tuple[str, int], Behaviour] = {}

    def behave(self, stage: str, round_number: int, behaviour: Behaviour) -> None:
        """Let `stage` answer differently in that round; the behaviour may also raise."""
        self._behaviours[stage, round_number] = behaviour

    def rounds(self) -> list[str]:
        """`stage-round` of every order, in the order of arrival per stage."""
        return [f"{order.stage}-{order.round}" for orders in self.orders.values() for order in orders]

    @property
    def last_step(self) -> RecordInput:
        """What was written last."""
        return self.steps[-1]

    def stored_events(self) -> list[SystemEvent]:
        """Every event once, as the table has them: a repeated one is ignored."""
        return list({event.event_id: event for step in self.steps for event in step.events}.values())

    def events(self) -> list[str]:
        """Types of all events, in order."""
        return [event.event_type for step in self.steps for event in step.events]

    async def answer(self, agent: str, task_type: str, kind: StageKind, order: StageOrder) -> Notice:
        """The default notice: complete, approving, passing."""
        self.orders[order.stage].append(order)
        body = f"{order.stage} {order.round}"
        verdict = {StageKind.WORK: None, StageKind.REVIEW: Verdict.APPROVE, StageKind.TEST: Verdict.PASS}[kind]
        notice = Notice(
            status="complete",
            agent=agent,
            task=order.feature,
            nats_channel=deliverable_subject(agent, task_type, order.feature),
            summary=f"did {body}; ".ljust(MAX_SUMMARY_CHARACTERS, "x"),
            complexity="Medium",
            blockers="None",
            ready_for_next_stage=True,
            files_modified=3,
            completion_time=datetime.now(UTC),
            metadata=NoticeMetadata(
                stream=stream_name(task_type),
                sequence=order.round,
                sha256=sha256(body.encode()).hexdigest(),
                bytes=20_000,
                round=order.round,
                tokens_in=100,
                tokens_out=50,
                cost_usd=Decimal("0.0123456"),
                verdict=verdict,
            ),
        )
        behaviour = self._behaviours.get((order.stage, order.round))
        if behaviour is None:
            return notice
        changed = behaviour(notice)
        return changed if isinstance(changed, Notice) else await changed

    @activity.defn(name=RECORD_STATE)
    async def record(self, step: RecordInput) -> None:
        """Keep the step."""
        if step.run.budget is not None and not self.can_pay:
            raise BudgetError("the budget of $1.00 cannot be paid: tenant/default has less than that free")
        self.steps.append(step)


def says(verdict: Verdict, **changes: object) -> Behaviour:
    """A behaviour: the same notice with another verdict, and other changes to its metadata."""

    def behaviour(notice: Notice) -> Notice:
        fields = notice.metadata.model_dump() | {"verdict": verdict, **changes}
        metadata = NoticeMetadata.model_validate(fields)
        return notice.model_copy(update={"metadata": metadata})

    return behaviour


class Pipelines:
    """Starts pipelines against the fake team."""

    def __init__(self, client: Client, team: FakeTeam) -> None:
        self.client = client
        self.team = team
        self._count = 0

    async def start(self, **fields: object) -> WorkflowHandle[FeaturePipelineWorkflow, PipelineResult]:
        """Start a pipeline for `customer-search`."""
        self._count += 1
        request = FeatureRequest.model_validate({"feature": "customer-search", "brief": "Find customers", **fields})
        return await self.client.start_workflow(
            FeaturePipelineWorkflow.run, request, id=f"test/{id(self)}/{self._count}", task_queue=CORE
        )

    async def run(self, **fields: object) -> PipelineResult:
        """Run a pipeline to its end."""
        return await (await self.start(**fields)).result()


@asynccontextmanager
async def local_temporal() -> AsyncIterator[WorkflowEnvironment]:
    """The dev server in memory, with our search attributes."""
    environment = await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(Path(sys.executable).parent / "temporal"),
        dev_server_log_level="error",
        dev_server_extra_args=["--dynamic-config-value", "history.transferProcessorMaxPollRPS=5000"],
        search_attributes=list(search_attributes.ALL),
        data_converter=DATA_CONVERTER,
    )
    async with environment:
        yield environment


@asynccontextmanager
async def fake_workers(client: Client, team: FakeTeam) -> AsyncIterator[None]:
    """A core worker, and the team with one worker per agent queue."""
    core = Worker(
        client,
        task_queue=CORE,
        workflows=[FeaturePipelineWorkflow],
        activities=[team.record],
        interceptors=[CoatcheckInterceptor()],
        workflow_runner=sandbox_runner(),
        build_id=BUILD_ID,
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(core)
        for stage in DEFAULT_PIPELINE.stages:
            await stack.enter_async_context(_agent_worker(client, team, stage.agent, stage.task_type, stage.kind))
        yield


@pytest.fixture(scope="session")
async def temporal_environment() -> AsyncIterator[WorkflowEnvironment]:
    """One dev server for the session."""
    async with local_temporal() as environment:
        yield environment


@pytest.fixture
async def pipelines(temporal_environment: WorkflowEnvironment) -> AsyncIterator[Pipelines]:
    """A fresh team for each test."""
    team = FakeTeam()
    async with fake_workers(temporal_environment.client, team):
        yield Pipelines(temporal_environment.client, team)


def _agent_worker(client: Client, team: FakeTeam, agent: str, task_type: str, kind: StageKind) -> Worker:
    @activity.defn(name=stage_activity(agent, task_type))
    async def run_stage(stage_input: RunStageInput) -> Notice:
        info = activity.info()
        assert info.workflow_id is not None
        assert info.workflow_run_id is not None
        order = stage_input.order(info.workflow_id, info.workflow_run_id, info.activity_id)
        return await team.answer(agent, task_type, kind, order)

    return Worker(client, task_queue=agent_queue(agent), activities=[run_stage], interceptors=[CoatcheckInterceptor()])
