"""The yardstick: the same workflow with activities that do nothing, in a Temporal namespace of its own.

`python -m tests.benchmarks.noop core|agents` is started by the stack like any worker. What a pipeline costs more than
this is what Coatcheck adds: turns, journal, deliverables, rows.
"""

import functools
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import temporalio.api.enums.v1
import temporalio.api.operatorservice.v1
import temporalio.api.workflowservice.v1
from google.protobuf.duration_pb2 import Duration
from temporalio import activity
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from coatcheck.settings import Settings
from schemas import search_attributes
from schemas.activities import RECORD_STATE, RecordInput, RunStageInput, stage_activity
from schemas.notice import MAX_SUMMARY_CHARACTERS, Notice, NoticeMetadata, Verdict
from schemas.pipeline import DEFAULT_PIPELINE, Stage, StageKind
from schemas.streams import stream_name
from schemas.subjects import deliverable_subject
from schemas.task_queues import CORE, agent_queue
from workers.interceptors import CoatcheckInterceptor
from workers.runner import Lifecycle, run_main
from workers.temporal import STICKY_TIMEOUT, connect, sandbox_runner
from workflows.feature_pipeline import FeaturePipelineWorkflow

NAMESPACE = "noop"


@activity.defn(name=RECORD_STATE)
async def record(step: RecordInput) -> None:
    """Write nothing."""


def noop_stage(stage: Stage, stage_input: RunStageInput) -> Notice:
    """The notice of a round that did nothing; the critique revises once, as the scripted author does."""
    info = activity.info()
    order = stage_input.order(info.workflow_id or "", info.workflow_run_id or "", info.activity_id)
    number = order.round
    verdict = {
        StageKind.WORK: None,
        StageKind.REVIEW: Verdict.REVISE if number == 1 else Verdict.APPROVE,
        StageKind.TEST: Verdict.PASS,
    }[stage.kind]
    return Notice(
        status="complete",
        agent=stage.agent,
        task=order.feature,
        nats_channel=deliverable_subject(stage.agent, stage.task_type, order.feature),
        summary="x" * MAX_SUMMARY_CHARACTERS,
        complexity="Medium",
        blockers="None",
        ready_for_next_stage=True,
        completion_time=datetime.now(UTC),
        files_modified=0,
        metadata=NoticeMetadata(
            stream=stream_name(stage.task_type), sequence=1, sha256="0" * 64, bytes=1, round=number, verdict=verdict
        ),
    )


async def make_namespace(settings: Settings, name: str = NAMESPACE) -> Client:
    """Register the namespace and its search attributes, unless they are there."""
    default = await connect(settings.require_temporal_address(), "default")
    request = temporalio.api.workflowservice.v1.RegisterNamespaceRequest(
        namespace=name, workflow_execution_retention_period=Duration(seconds=86_400)
    )
    try:
        await default.workflow_service.register_namespace(request)
    except RPCError as error:
        if error.status is not RPCStatusCode.ALREADY_EXISTS:
            raise
    keyword = temporalio.api.enums.v1.IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
    await default.operator_service.add_search_attributes(
        temporalio.api.operatorservice.v1.AddSearchAttributesRequest(
            namespace=name, search_attributes={key.name: keyword for key in search_attributes.ALL}
        )
    )
    return await connect(settings.require_temporal_address(), name)


async def core(settings: Settings, lifecycle: Lifecycle) -> None:
    """The workflow, with a state activity that writes nothing."""
    worker = Worker(
        await make_namespace(settings),
        task_queue=CORE,
        workflows=[FeaturePipelineWorkflow],
        activities=[record],
        interceptors=[CoatcheckInterceptor()],
        workflow_runner=sandbox_runner(),
        sticky_queue_schedule_to_start_timeout=STICKY_TIMEOUT,
    )
    async with worker:
        await lifecycle.serve()


async def agents(settings: Settings, lifecycle: Lifecycle) -> None:
    """Six agents that return at once."""
    client = await make_namespace(settings)
    async with AsyncExitStack() as stack:
        for stage in DEFAULT_PIPELINE.stages:
            await stack.enter_async_context(_agent(client, stage, settings.agent_slots))
        await lifecycle.serve()


def _agent(client: Client, stage: Stage, slots: int) -> Worker:
    @activity.defn(name=stage_activity(stage.agent, stage.task_type))
    async def run_stage(stage_input: RunStageInput) -> Notice:
        return noop_stage(stage, stage_input)

    return Worker(
        client,
        task_queue=agent_queue(stage.agent),
        activities=[run_stage],
        interceptors=[CoatcheckInterceptor()],
        max_concurrent_activities=slots,
        graceful_shutdown_timeout=timedelta(seconds=5),
    )


if __name__ == "__main__":
    settings = Settings()
    run_main(
        f"noop-{sys.argv[1]}",
        functools.partial({"core": core, "agents": agents}[sys.argv[1]], settings),
        settings,
    )
