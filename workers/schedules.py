"""Temporal Schedules: what begins by itself. Made by the core worker at its start, when they are not there."""

import logging

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
)

from schemas import reconcile
from schemas.task_queues import CORE, TASK_TIMEOUT

_log = logging.getLogger(__name__)


async def ensure_schedules(client: Client) -> None:
    """Make the schedules that are missing; one that exists stays as it is, as does one that a person has paused.

    Idempotent, also when several core workers start at once: the server lets one of them make it.

    Raises:
        RPCError: Temporal does not answer.
    """
    schedule = Schedule(
        action=ScheduleActionStartWorkflow(
            reconcile.WORKFLOW_TYPE,
            id=reconcile.SCHEDULE_ID,
            task_queue=CORE,
            execution_timeout=reconcile.COMPARE_SCHEDULE_TO_CLOSE * 2,
            task_timeout=TASK_TIMEOUT,
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=reconcile.INTERVAL)]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=reconcile.CATCHUP_WINDOW),
    )
    try:
        await client.create_schedule(reconcile.SCHEDULE_ID, schedule)
    except ScheduleAlreadyRunningError:
        return
    _log.info("the schedule %s is made", reconcile.SCHEDULE_ID)
