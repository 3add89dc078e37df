"""Workers that are stopped in order, as a deployment does it: nothing fails and nothing is paid again."""

from collections.abc import Callable
from pathlib import Path

from coatcheck.localstack import LocalStack
from coatcheck.storage.database import open_pool
from coatcheck.storage.journal import TurnJournal
from schemas.pipeline import FeatureRequest, RunStatus
from schemas.task_queues import CORE
from schemas.workflow_ids import run_key
from workers.temporal import connect
from workflows.feature_pipeline import FeaturePipelineWorkflow


async def test_a_rolling_restart_of_every_worker_costs_nothing(
    new_stack: Callable[..., LocalStack], tmp_path: Path
) -> None:
    """Each worker is stopped with SIGTERM in the middle of a run and started again; the run completes."""
    stack = new_stack(data_dir=tmp_path / "rolling", env={"COATCHECK_SCRIPTED_LATENCY_SECONDS": "0.5"})
    status = stack.status()
    assert status.temporal is not None
    assert status.postgres is not None
    client = await connect(status.temporal.address, status.temporal.namespace)
    handle = await client.start_workflow(
        FeaturePipelineWorkflow.run,
        FeatureRequest(feature="rolling-restart", brief="Restart without anybody noticing."),
        id="feature/rolling-restart",
        task_queue=CORE,
    )
    assert handle.first_execution_run_id is not None
    key = run_key(handle.id, handle.first_execution_run_id)
    async with open_pool(status.postgres.gateway_dsn) as pool:
        journal = TurnJournal(pool, "test")
        for worker in ("agents", "core", "gateway"):
            while not await journal.in_flight(key):
                assert (await handle.describe()).close_time is None
            stack.restart_member(worker)
        result = await handle.result()
        usage = await journal.usage(key)
    assert result.status is RunStatus.COMPLETED
    assert [task.calls for task in usage] == [task.turns for task in usage]
    assert all(stack.status().member(worker).restarts == 0 for worker in ("agents", "core", "gateway"))
