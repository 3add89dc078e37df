"""Steps of a run, as a workflow would record them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.activities import RecordInput, RunRow, TaskRow

RUN_KEY = "feature/customer-search/0199c2f0-run"
TASK_KEY = f"{RUN_KEY}/research-1"
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOTICE: dict[str, Any] = {
    "status": "complete",
    "agent": "cynthia",
    "task": "customer-search",
    "nats_channel": "agog.deliverables.cynthia.research.customer-search",
    "summary": "Search needs an index.",
    "metadata": {"stream": "agog_features_research", "sequence": 7, "sha256": "a" * 64, "bytes": 20_000, "round": 1},
}


def run_row(revision: int, **changes: Any) -> RunRow:
    """The run's row after step `revision`."""
    row = RunRow(
        run_key=RUN_KEY,
        revision=revision,
        temporal_workflow_id="feature/customer-search",
        feature="customer-search",
        tenant="default",
        status="running",
        current_step="research",
        total_steps=6,
        completed_steps=0,
        step_results={},
        assigned_agents=["cynthia", "sylvia"],
        started_at=START,
    )
    return row.model_copy(update=changes)


def task_row(status: str, **changes: Any) -> TaskRow:
    """The first round of research."""
    row = TaskRow(
        task_key=TASK_KEY,
        agent="cynthia",
        stage="research",
        task_type="research",
        round=1,
        status=status,
        started_at=START,
    )
    return row.model_copy(update=changes)


def completed_task(**changes: Any) -> TaskRow:
    """Research, finished after 90 s."""
    finished = {"output_data": NOTICE, "completed_at": START + timedelta(seconds=90), "retry_count": 1}
    return task_row("completed", **(finished | changes))


STEPS = [
    RecordInput(run=run_row(1, brief="Find customers by name.")),
    RecordInput(run=run_row(2), tasks=[task_row("running", input_data={"inputs": []})]),
    RecordInput(
        run=run_row(3, completed_steps=1, current_step="critique", step_results={"research": NOTICE}),
        tasks=[completed_task()],
    ),
    RecordInput(
        run=run_row(4, status="failed", current_step=None, completed_steps=1, error="the critique failed"),
    ),
]
"""Four steps of one run: it starts, research runs and completes, the run fails."""
