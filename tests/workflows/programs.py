"""Programs on a real Temporal server: a core worker, and pipelines that a test holds in its hand."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal

from temporalio import workflow
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from schemas import errors
from schemas.pipeline import FeatureRequest, PipelineResult
from schemas.program import (
    FEATURE_WAITS,
    PIPELINE_WORKFLOW,
    FeatureState,
    FeatureWaits,
    ProgramProgress,
    ProgramRequest,
    ProgramResult,
    program_workflow_id,
)
from schemas.task_queues import CORE
from schemas.workflow_ids import feature_workflow_id
from workers.interceptors import CoatcheckInterceptor
from workers.temporal import BUILD_ID, sandbox_runner
from workflows.program import ProgramWorkflow

Handle = WorkflowHandle[ProgramWorkflow, ProgramResult]
AT_ONCE = "ends at once"
"""A brief that a `HeldPipeline` answers without being told to."""
_ENDS = tuple(f"child_workflow_execution_{how}_event_attributes" for how in ("completed", "failed", "canceled"))
_numbers = itertools.count(1)


@workflow.defn(name=PIPELINE_WORKFLOW)
class HeldPipeline:
    """A pipeline that does what the test says, when it says so."""

    def __init__(self) -> None:
        self._status = ""

    @workflow.run
    async def run(self, request: FeatureRequest) -> PipelineResult:
        """Wait for `end`, unless the brief says that it ends at once."""
        if request.brief != AT_ONCE:
            await workflow.wait_condition(lambda: bool(self._status))
        if self._status == "failed":
            raise ApplicationError("backend, round 1: no such model", type=errors.PROVIDER_REJECTED, non_retryable=True)
        return PipelineResult.model_validate(
            {
                "feature": request.feature,
                "status": self._status or "completed",
                "reason": "as the test said",
                "stages": [],
                "tokens": 100,
                "cost_usd": Decimal("0.25"),
                "run_key": "x",
            }
        )

    @workflow.signal
    def end(self, status: str) -> None:
        """Completed, rejected, expired or failed."""
        self._status = status

    @workflow.signal
    async def ask(self, stage: str) -> None:
        """Tell the program that a person is asked; an empty stage: that it goes on."""
        info = workflow.info()
        assert info.parent is not None
        waits = FeatureWaits(
            workflow_id=info.workflow_id, stage=stage or None, reason="this stage waits for an approval"
        )
        await workflow.get_external_workflow_handle(info.parent.workflow_id).signal(FEATURE_WAITS, waits)


class Programs:
    """Starts programs, and says what their pipelines do."""

    def __init__(self, client: Client, task_queue: str) -> None:
        self.client = client
        self.task_queue = task_queue

    @staticmethod
    def names(count: int) -> list[str]:
        """Slugs that no other test uses."""
        return [f"f{next(_numbers)}" for _ in range(count)]

    async def start(self, features: list[dict[str, object]] | list[str], **fields: object) -> Handle:
        """Start a program; a feature may be a name alone."""
        wanted = [{"feature": item} if isinstance(item, str) else item for item in features]
        request = ProgramRequest.model_validate(
            {"name": f"p{next(_numbers)}", "features": [{"brief": "hold", **item} for item in wanted], **fields}
        )
        return await self.client.start_workflow(
            ProgramWorkflow.run, request, id=program_workflow_id(request.name), task_queue=self.task_queue
        )

    async def end(self, *features: str, status: str = "completed") -> None:
        """Let the pipelines of these features end."""
        for feature in features:
            await (await self.pipeline(feature)).signal(HeldPipeline.end, status)

    async def ask(self, feature: str, stage: str) -> None:
        """Let a pipeline say that a person is asked, or with an empty stage that it goes on."""
        await (await self.pipeline(feature)).signal(HeldPipeline.ask, stage)

    async def pipeline(self, feature: str) -> WorkflowHandle[HeldPipeline, PipelineResult]:
        """The feature's pipeline, as soon as there is one: the program counts it a moment before it exists."""
        handle = self.client.get_workflow_handle_for(HeldPipeline.run, feature_workflow_id(feature))
        while True:
            try:
                await handle.describe()
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:
                    raise
                await asyncio.sleep(0.02)
            else:
                return handle


async def until(handle: Handle, condition: Callable[[dict[str, FeatureState]], bool]) -> ProgramProgress:
    """Ask for the progress until the states of the features are as wanted; the test's own time-out bounds it."""
    while not condition(states(progress := await handle.query(ProgramWorkflow.progress))):
        await asyncio.sleep(0.02)
    return progress


async def becomes(handle: Handle, wanted: dict[str, str]) -> ProgramProgress:
    """Wait until these features have these states."""
    return await until(handle, lambda found: all(found[feature] == state for feature, state in wanted.items()))


def states(seen: ProgramProgress | ProgramResult) -> dict[str, FeatureState]:
    """Feature → state."""
    return {line.feature: line.state for line in seen.features}


async def timeline(handle: Handle) -> list[tuple[str, bool]]:
    """Each feature once when its start was ordered (`True`) and once when its end was known, as the history has it."""
    moments: list[tuple[str, bool]] = []
    for event in (await handle.fetch_history()).events:
        kind = event.WhichOneof("attributes") or ""
        if kind == "start_child_workflow_execution_initiated_event_attributes":
            started = event.start_child_workflow_execution_initiated_event_attributes
            moments.append((started.workflow_id.removeprefix("feature/"), True))
        elif kind in _ENDS:
            moments.append((getattr(event, kind).workflow_execution.workflow_id.removeprefix("feature/"), False))
    return moments


async def starts(handle: Handle) -> list[str]:
    """The features in the order in which they were started."""
    return [feature for feature, begins in await timeline(handle) if begins]


async def most_at_once(handle: Handle) -> int:
    """How many pipelines were open at the same time."""
    steps = [1 if begins else -1 for _, begins in await timeline(handle)]
    return max(itertools.accumulate(steps))


@asynccontextmanager
async def program_worker(client: Client, task_queue: str, *held: type[HeldPipeline]) -> AsyncIterator[None]:
    """A worker for programs and, when they are given, for pipelines of the test's own."""
    worker = Worker(
        client,
        task_queue=task_queue,
        build_id=BUILD_ID,
        workflows=[ProgramWorkflow, *held],
        interceptors=[CoatcheckInterceptor()],
        workflow_runner=sandbox_runner(),
    )
    async with worker:
        yield


@asynccontextmanager
async def held_programs(client: Client) -> AsyncIterator[Programs]:
    """Programs whose pipelines do what the test says."""
    async with program_worker(client, CORE, HeldPipeline):
        yield Programs(client, CORE)
