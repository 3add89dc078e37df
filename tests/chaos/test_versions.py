"""A new build is deployed while a run is under way: the run stays with the build that began it."""

import asyncio
import re
import shlex
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import DescribeWorkerDeploymentRequest
from temporalio.client import Client, WorkflowHandle

from coatcheck.localstack import DEFAULT_WORKERS, LocalStack, WorkerSpec
from schemas.pipeline import Decision, DecisionAction, FeatureRequest, PipelineResult, RunStatus
from schemas.task_queues import CORE
from tests.tls import flags
from workers.temporal import connect
from workers.versioning import PROMOTE
from workflows.feature_pipeline import FeaturePipelineWorkflow

Handle = WorkflowHandle[FeaturePipelineWorkflow, PipelineResult]


def core(build: str) -> WorkerSpec:
    """A core worker of a build."""
    spec = next(worker for worker in DEFAULT_WORKERS if worker.name == "core")
    env = {"COATCHECK_DEPLOYMENT": "coatcheck", "COATCHECK_BUILD_ID": build}
    return spec.model_copy(update={"name": f"core-{build}", "env": env})


async def begin(client: Client, feature: str) -> Handle:
    """A run that waits for a person after the backend."""
    return await client.start_workflow(
        FeaturePipelineWorkflow.run,
        FeatureRequest(feature=feature, brief="Two builds.", gates=["backend"]),
        id=f"feature/{feature}",
        task_queue=CORE,
    )


async def asked(handle: Handle) -> None:
    """Wait until the run asks its person."""
    async with asyncio.timeout(60):
        while (await handle.query(FeaturePipelineWorkflow.progress)).status is not RunStatus.WAITING:
            await asyncio.sleep(0.05)


async def builds(handle: Handle) -> set[str]:
    """Which builds have done the run's workflow tasks."""
    return {
        event.workflow_task_completed_event_attributes.deployment_version.build_id
        async for event in handle.fetch_history_events()
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
    }


async def approved(handle: Handle) -> PipelineResult:
    """The person takes the backend as it is, each time it is asked."""
    result = asyncio.create_task(handle.result())
    async with asyncio.timeout(60):
        while not result.done():
            for asked in (await handle.query(FeaturePipelineWorkflow.progress)).waiting:
                decision = Decision(stage=asked.stage, action=DecisionAction.APPROVE, sha256=asked.sha256, by="ann")
                await handle.execute_update(FeaturePipelineWorkflow.decide, decision)
            await asyncio.sleep(0.05)
    return result.result()


async def current_build(client: Client) -> str:
    """Which build takes what begins."""
    request = DescribeWorkerDeploymentRequest(namespace=client.namespace, deployment_name="coatcheck")
    found = await client.workflow_service.describe_worker_deployment(request)
    build: str = found.worker_deployment_info.routing_config.current_deployment_version.build_id
    return build


async def health(log: Path, path: str) -> int:
    """What the worker with that log answers."""
    port = re.search(r"health on port (\d+)", log.read_text())
    assert port is not None
    with await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{port[1]}/{path}") as reply:
        status: int = reply.status
        return status


async def test_a_run_stays_with_its_build(new_stack: Callable[..., LocalStack]) -> None:
    """Of two builds the first to come takes what begins, until the other is made current; each ends its own runs."""
    others = [worker for worker in DEFAULT_WORKERS if worker.name != "core"]
    stack = new_stack(
        workers=[core("a"), core("b"), *others],
        env={"COATCHECK_SCRIPTED_LATENCY_SECONDS": "0", "COATCHECK_HEALTH_PORT": "0"},
    )
    status = stack.status().temporal
    assert status is not None
    assert status.cli is not None
    for worker in stack.status().workers:
        assert (await health(worker.log, "healthz"), await health(worker.log, "readyz")) == (200, 200)
    client = await connect(status.address, status.namespace)
    first = await current_build(client)
    second = "ab".replace(first, "")
    old = await begin(client, "old")
    await asked(old)
    command = shlex.split(PROMOTE.format(name="coatcheck", build=second))
    promote = [str(status.cli), *command[1:], "--address", status.address, "--yes", *flags(status)]
    await asyncio.to_thread(subprocess.run, promote, check=True, capture_output=True)
    new = await begin(client, "new")
    await asked(new)
    assert [(await approved(handle)).status for handle in (new, old)] == [RunStatus.COMPLETED] * 2
    assert (await builds(old), await builds(new)) == ({first}, {second})
