"""What waits in Temporal's task queues, and whether anybody comes for it."""

import time
from typing import Final

from pydantic import BaseModel
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, DescribeTaskQueueResponse
from temporalio.client import Client

from schemas.task_queues import agent_queue

POLL_AGE_SECONDS: Final = 90.0
"""An idle worker asks again every 60 s; the server remembers one that is gone for 5 minutes."""


class QueueState(BaseModel):
    """One agent's task queue."""

    agent: str
    waiting: int
    """Rounds that no worker has taken yet; roughly, since the server counts per partition."""
    pollers: int
    """Workers that have asked for work lately."""

    @property
    def is_forsaken(self) -> bool:
        """Whether work waits and nobody comes for it."""
        return self.waiting > 0 and self.pollers == 0


async def queue_state(client: Client, agent: str) -> QueueState:
    """Ask Temporal about the queue of `agent`.

    Raises:
        RPCError: Temporal does not answer.
    """
    answer = await _describe(client, agent_queue(agent), TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY, report_stats=True)
    return QueueState(agent=agent, waiting=answer.stats.approximate_backlog_count, pollers=_count(answer))


async def pollers(client: Client, queue: str, kind: "TaskQueueType.ValueType") -> int:
    """Workers that have polled the queue lately.

    Raises:
        RPCError: Temporal does not answer.
    """
    return _count(await _describe(client, queue, kind))


async def _describe(
    client: Client, queue: str, kind: "TaskQueueType.ValueType", *, report_stats: bool = False
) -> DescribeTaskQueueResponse:
    request = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=queue),
        task_queue_type=kind,
        report_stats=report_stats,
    )
    return await client.workflow_service.describe_task_queue(request)


def _count(answer: DescribeTaskQueueResponse) -> int:
    oldest = time.time() - POLL_AGE_SECONDS
    return len({poller.identity for poller in answer.pollers if poller.last_access_time.seconds > oldest})
