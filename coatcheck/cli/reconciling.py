"""`reconcile`: one look now; and what the latest look found, for `doctor`."""

import asyncio
import contextlib
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError

from coatcheck.cli.output import columns, emit, emit_json, moment
from coatcheck.cli.session import load_settings, open_temporal, temporal_errors
from coatcheck.cli.voice import tell
from coatcheck.errors import CoatcheckError
from schemas.reconcile import COMPARE_SCHEDULE_TO_CLOSE, INTERVAL, SCHEDULE_ID, WORKFLOW_TYPE, ReconcileReport
from schemas.task_queues import CORE
from workflows.reconcile import ReconcileWorkflow

LATE: Final = INTERVAL * 4
"""Two minutes without a look, and a row may say "running" of a run that has ended."""
_UNDER_WAY_SECONDS: Final = 3.0
_LOOKED_AT: Final = 10
"""The latest looks in which one that succeeded is searched."""


class ReconcileFailedError(CoatcheckError):
    """The look did not come to its end."""

    code = "reconcile.failed"


async def reconcile(*, as_json: bool, data_dir: Path) -> None:
    """Compare the rows with Temporal now, beside what the schedule does, and print the report.

    Raises:
        ReconcileFailedError: PostgreSQL or NATS stayed away from the core worker, or no core worker runs.
        DependencyDownError: Temporal does not answer.
    """
    client = await open_temporal(load_settings(data_dir))
    with temporal_errors():
        try:
            report = await client.execute_workflow(
                ReconcileWorkflow.run,
                id=f"{SCHEDULE_ID}-now-{secrets.token_hex(4)}",
                task_queue=CORE,
                execution_timeout=COMPARE_SCHEDULE_TO_CLOSE,
            )
        except WorkflowFailureError as error:
            told = getattr(error.cause.__cause__ or error.cause, "message", str(error.cause))
            raise ReconcileFailedError(
                f"the rows were not compared: {told}", hint="`coatcheck doctor` says what is wrong"
            ) from error
    if as_json:
        emit_json(report)
        return
    if report.repairs:
        rows = [[line.key, line.found, line.status, line.reason] for line in report.repairs]
        emit(columns(("run or round", "was", "is", "why"), rows))
    tell(summary(report))
    for warning in report.warnings:
        tell(f"warning: {warning}")


async def latest(client: Client) -> ReconcileReport | None:
    """What the latest look found that came to its end, also if it is still under way; `None`: none of the last did.

    Raises:
        RPCError: Temporal does not answer.
    """
    late = datetime.now(UTC) - LATE
    async for execution in client.list_workflows(f"WorkflowType = '{WORKFLOW_TYPE}'", limit=_LOOKED_AT):
        is_under_way = execution.status is WorkflowExecutionStatus.RUNNING and execution.start_time > late
        if execution.status is WorkflowExecutionStatus.COMPLETED or is_under_way:
            look = client.get_workflow_handle(execution.id, run_id=execution.run_id, result_type=ReconcileReport)
            with contextlib.suppress(TimeoutError, WorkflowFailureError):
                async with asyncio.timeout(_UNDER_WAY_SECONDS):  # one look of 1,000 runs takes 1 s
                    report: ReconcileReport = await look.result()
                    return report
    return None


async def check(client: Client) -> str:
    """One line for `doctor`.

    Raises:
        CoatcheckError: no look came to its end lately, or it found what people have to mend.
    """
    report = await latest(client)
    now = datetime.now(UTC)
    if report is None or now - report.compared_at > LATE:
        since = f"since {moment(report.compared_at)}" if report else "lately"
        raise CoatcheckError(
            f"the rows were not compared with Temporal {since}",
            hint=f"the schedule `{SCHEDULE_ID}` does it; `coatcheck reconcile` does it now, and says why not",
        )
    if report.warnings:
        raise CoatcheckError("; ".join(report.warnings), hint="`coatcheck worker agents AGENT` runs one agent's worker")
    return f"{(now - report.compared_at) / timedelta(seconds=1):.0f} s ago: {summary(report)}"


def summary(report: ReconcileReport) -> str:
    """`12 open runs, nothing to repair`."""
    repaired = [
        f"{count} {name}{'' if count == 1 else 's'}"
        for count, name in ((report.repaired_runs, "run"), (report.repaired_tasks, "round"))
        if count
    ]
    found = f"put right {' and '.join(repaired)}" if repaired else "nothing to repair"
    return f"{report.open_runs} open run{'' if report.open_runs == 1 else 's'}, {found}"
