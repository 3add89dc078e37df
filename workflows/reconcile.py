"""`Reconcile`: one look at whether the rows say what Temporal says. A Temporal Schedule starts it every 30 s.

All of it is one activity: what a look finds is of no use to a later one, so there is nothing to keep in a history.
"""

from temporalio import workflow

from schemas import reconcile
from schemas.reconcile import ReconcileReport


@workflow.defn(name=reconcile.WORKFLOW_TYPE)
class ReconcileWorkflow:
    """Compare every open run's rows with Temporal, and put right what differs."""

    @workflow.run
    async def run(self) -> ReconcileReport:
        """Look once; fails when Temporal, PostgreSQL or NATS stays away, and the next one looks again."""
        report: ReconcileReport = await workflow.execute_activity(
            reconcile.COMPARE,
            result_type=ReconcileReport,
            start_to_close_timeout=reconcile.COMPARE_START_TO_CLOSE,
            heartbeat_timeout=reconcile.COMPARE_HEARTBEAT_TIMEOUT,
            schedule_to_close_timeout=reconcile.COMPARE_SCHEDULE_TO_CLOSE,
            retry_policy=reconcile.COMPARE_RETRY,
        )
        return report
