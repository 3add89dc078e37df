"""A run whose payloads are encrypted: nothing of it is in Temporal's files, and it is a run like any other."""

import asyncio
import base64
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.worker import Replayer, Worker

from coatcheck.localstack import LocalStack
from schemas.pipeline import FeatureRequest, PipelineResult, RunStatus
from schemas.task_queues import CORE
from tests.acceptance.program import coatcheck
from workers.encryption import encrypted
from workers.temporal import DATA_CONVERTER, connect, sandbox_runner
from workflows.feature_pipeline import FeaturePipelineWorkflow

KEYS = f"k1:{base64.b64encode(bytes(range(32))).decode()}"
CANARY = "Find customers whose name sounds like Quetzalcoatl."


async def task_failures(handle: WorkflowHandle[FeaturePipelineWorkflow, PipelineResult]) -> list[str]:
    """What Temporal has recorded of workflow tasks that failed."""
    return [
        event.workflow_task_failed_event_attributes.failure.cause.message
        async for event in handle.fetch_history_events()
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED
    ]


async def test_nothing_of_a_run_is_in_temporals_files(new_stack: Callable[..., LocalStack]) -> None:
    """Brief, notices, failures. A worker without the key says so and harms nothing; the history replays."""
    stack = new_stack(env={"COATCHECK_PAYLOAD_KEYS": KEYS, "COATCHECK_SCRIPTED_LATENCY_SECONDS": "0"})
    status = stack.status().temporal
    assert status is not None
    assert "COATCHECK_PAYLOAD_KEYS" not in environment_of(stack.pid("gateway"))
    client = await connect(status.address, status.namespace, payload_keys=SecretStr(KEYS))
    await asyncio.to_thread(stack.stop_member, "core")
    handle = await client.start_workflow(
        FeaturePipelineWorkflow.run,
        FeatureRequest(feature="hidden", brief=CANARY),
        id="feature/hidden",
        task_queue=CORE,
        task_timeout=timedelta(seconds=2),
    )
    keyless = await connect(status.address, status.namespace)
    async with (
        asyncio.timeout(30),
        Worker(keyless, task_queue=CORE, workflows=[FeaturePipelineWorkflow], workflow_runner=sandbox_runner()),
    ):
        while not (failures := await task_failures(handle)):
            await asyncio.sleep(0.1)
    assert "encrypted with the key 'k1', which this process does not have" in failures[0]
    await asyncio.to_thread(stack.start_member, "core")
    result = await handle.result()
    assert result.status is RunStatus.COMPLETED
    bad = await client.start_workflow("FeaturePipeline", {"feature": "x", "brief": [CANARY]}, id="bad", task_queue=CORE)
    with pytest.raises(WorkflowFailureError) as failure:
        await bad.result()
    assert "brief: Input should be a valid string" in str(failure.value.cause)  # for who has the key
    history = await handle.fetch_history()
    converter = encrypted(DATA_CONVERTER, SecretStr(KEYS))
    replayer = Replayer(workflows=[FeaturePipelineWorkflow], data_converter=converter, workflow_runner=sandbox_runner())
    await replayer.replay_workflow(history)
    folder = stack.config.data_dir
    told = await asyncio.to_thread(
        coatcheck, "progress", "feature/hidden", "--json", data_dir=folder, COATCHECK_PAYLOAD_KEYS=KEYS
    )
    assert (told.code, told.json["status"]) == (0, "completed"), told.err
    told = await asyncio.to_thread(coatcheck, "progress", "feature/hidden", data_dir=folder)
    assert told.code == 1
    assert "encrypted with the key 'k1', which this process does not have" in told.err
    stack.stop()
    stored = b"".join(path.read_bytes() for path in (folder / "temporal").rglob("*") if path.is_file())
    assert b"feature/hidden" in stored
    assert b"binary/encrypted" in stored
    for text in ("Quetzalcoatl", "agog_features_research", result.reason, "Input should be a valid string"):
        assert text.encode() not in stored


def environment_of(pid: int) -> str:
    """What a process was started with."""
    return Path(f"/proc/{pid}/environ").read_text()
