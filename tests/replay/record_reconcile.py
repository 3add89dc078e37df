"""Records the histories of `Reconcile`: `python -m tests.replay.record_reconcile`.

The same rule as for `tests.replay.record`: a new recording only where new histories are meant to begin.
"""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from temporalio import activity
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from schemas.reconcile import COMPARE, ReconcileReport, RepairLine
from schemas.task_queues import CORE
from tests.replay.record import without_traces
from tests.workflows.conftest import local_temporal
from workers.interceptors import CoatcheckInterceptor
from workers.temporal import BUILD_ID, sandbox_runner
from workflows.reconcile import ReconcileWorkflow

HISTORIES: Final = Path(__file__).parent / "reconcile_histories"
BRANCHES: Final = ("repaired", "failed")


@activity.defn(name=COMPARE)
async def compare() -> ReconcileReport:
    """Find one run that was terminated; or nothing to look at."""
    if activity.info().workflow_id == "failed":
        raise ApplicationError("PostgreSQL does not answer", type="storage.unavailable", non_retryable=True)
    line = RepairLine(key="feature/search/1", found="running", status="cancelled", reason="terminated in Temporal")
    return ReconcileReport(
        compared_at=datetime(2026, 3, 1, tzinfo=UTC), open_rows=3, open_runs=2, repaired_runs=1, repairs=[line]
    )


async def record() -> None:
    """Run every branch and write its history."""
    HISTORIES.mkdir(exist_ok=True)
    async with (
        local_temporal() as environment,
        Worker(
            environment.client,
            task_queue=CORE,
            workflows=[ReconcileWorkflow],
            activities=[compare],
            interceptors=[CoatcheckInterceptor()],
            workflow_runner=sandbox_runner(),
            build_id=BUILD_ID,
        ),
    ):
        for branch in BRANCHES:
            handle = await environment.client.start_workflow(ReconcileWorkflow.run, id=branch, task_queue=CORE)
            try:
                await handle.result()
            except WorkflowFailureError as failure:
                print(f"{branch}: {failure.cause}")
            history = await handle.fetch_history()
            (HISTORIES / f"{branch}.json").write_text(without_traces(history.to_json()) + "\n")


if __name__ == "__main__":
    asyncio.run(record())
