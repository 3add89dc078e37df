"""What Temporal itself knows of a run that is under way: its pending activities, and who polls their queues.

Read from the server's own description, so it also answers when no worker does.
"""

import asyncio
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import BaseModel, ConfigDict
from temporalio.api.enums.v1 import PendingActivityState, TaskQueueType
from temporalio.api.failure.v1 import Failure
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from activities.queues import pollers
from coatcheck.cli.runs import FoundRun
from schemas import search_attributes
from schemas.task_queues import CORE, agent_queue

RESULT_SECONDS: Final = 2.0
"""For the result of a run that has ended: it is there, so this is the way to the server and back."""
_WORKFLOW: Final = TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW
_ACTIVITY: Final = TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY


class PendingActivity(BaseModel):
    """One round that Temporal waits for."""

    model_config = ConfigDict(frozen=True)

    activity_id: str
    """`backend-2`: the stage and its round."""
    activity: str
    """`roy.backend`."""
    is_started: bool
    """A worker has it; otherwise it lies in its queue, or waits for its next attempt."""
    attempt: int
    max_attempts: int
    scheduled_at: datetime | None
    started_at: datetime | None
    """Of the latest attempt."""
    last_heartbeat_at: datetime | None
    next_attempt_at: datetime | None
    """When an attempt has failed and another one will follow."""
    last_failure: str | None
    """Of the attempt before this one."""
    last_failure_code: str | None
    queue: str
    pollers: int
    """Workers that have polled the queue in the last 90 s; one that is busy or has just died counts too."""

    @property
    def stage(self) -> str:
        """The stage it is a round of."""
        return self.activity_id.rpartition("-")[0]


class TemporalView(BaseModel):
    """A run as the server describes it."""

    model_config = ConfigDict(frozen=True)

    workflow_type: str
    status: str
    """The workflow's own word (`waiting`), else Temporal's (`running`, `completed`, `terminated`)."""
    feature: str | None
    started_at: datetime
    ended_at: datetime | None
    pending: list[PendingActivity] = []
    workflow_task_attempt: int = 0
    """Of the step that the core worker has to take now: 0 when there is none, more than 1 when it failed before."""
    core_pollers: int
    failure: str | None = None
    """What ended it, when it failed."""


async def look(client: Client, found: FoundRun) -> TemporalView:
    """Ask the server about a run.

    Raises:
        RPCError: it does not answer, or has forgotten the run.
    """
    handle = found.handle(client)
    described = await handle.describe()
    raw = described.raw_description
    pending = await asyncio.gather(*(_pending(client, item) for item in raw.pending_activities))
    attributes = described.typed_search_attributes
    own_word = attributes.get(search_attributes.STATUS)
    state = described.status.name.lower() if described.status else "unknown"
    return TemporalView(
        workflow_type=described.workflow_type,
        status=own_word if own_word and found.is_open else state,
        feature=attributes.get(search_attributes.FEATURE),
        started_at=described.start_time,
        ended_at=described.close_time,
        pending=list(pending),
        workflow_task_attempt=raw.pending_workflow_task.attempt if raw.HasField("pending_workflow_task") else 0,
        core_pollers=await pollers(client, CORE, _WORKFLOW),
        failure=None if found.is_open else await _failure(handle, described),
    )


async def _pending(client: Client, item: PendingActivityInfo) -> PendingActivity:
    queue = item.activity_options.task_queue.name or agent_queue(item.activity_type.name.partition(".")[0])
    failure = _words(item.last_failure) if item.HasField("last_failure") else None
    is_started = item.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
    return PendingActivity(
        activity_id=item.activity_id,
        activity=item.activity_type.name,
        is_started=is_started,
        attempt=item.attempt,
        max_attempts=item.maximum_attempts,
        scheduled_at=_moment(item.scheduled_time),
        started_at=_moment(item.last_started_time) if is_started else None,
        last_heartbeat_at=_moment(item.last_heartbeat_time),
        next_attempt_at=None if is_started else _moment(item.next_attempt_schedule_time),
        last_failure=failure,
        last_failure_code=item.last_failure.application_failure_info.type or None,
        queue=queue,
        pollers=await pollers(client, queue, _ACTIVITY),
    )


async def _failure(handle: Any, described: WorkflowExecutionDescription) -> str | None:
    """Why the run failed; a run that completed or was cancelled says so by its status."""
    if described.status is None or described.status.name != "FAILED":
        return None
    try:
        async with asyncio.timeout(RESULT_SECONDS):
            await handle.result(follow_runs=False)
    except WorkflowFailureError as failure:
        cause = failure.cause
        code = f" ({cause.type})" if isinstance(cause, ApplicationError) and cause.type else ""
        return f"{getattr(cause, 'message', cause)}{code}"
    except (RPCError, TimeoutError):
        pass  # the rows may know
    return None


def _words(failure: Failure) -> str:
    """The failure and what caused it, the cause last."""
    texts = [failure.message]
    while failure.HasField("cause"):
        failure = failure.cause
        texts.append(failure.message)
    return ": ".join(dict.fromkeys(text for text in texts if text))


def _moment(stamp: Timestamp) -> datetime | None:
    return stamp.ToDatetime(UTC) if stamp.seconds else None
