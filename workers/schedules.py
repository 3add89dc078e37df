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
    """Make the schedules that are missing, and have each begin at once.

    One that exists stays as it is; one that a person has paused stays paused.

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
        await client.create_schedule(reconcile.SCHEDULE_ID, schedule, trigger_immediately=True)
    except ScheduleAlreadyRunningError:
        handle = client.get_schedule_handle(reconcile.SCHEDULE_ID)
        if not (await handle.describe()).schedule.state.paused:
            await handle.trigger()  # who knows for how long no core worker was there
    else:
        _log.info("the schedule %s is made", reconcile.SCHEDULE_ID)
