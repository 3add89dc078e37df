"""What waits for an agent in Temporal, and whether anybody comes for it."""

import time
from typing import Final

from pydantic import BaseModel
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
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
    answer = await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=TaskQueue(name=agent_queue(agent)),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
            report_stats=True,
        )
    )
    oldest = time.time() - POLL_AGE_SECONDS
    pollers = {poller.identity for poller in answer.pollers if poller.last_access_time.seconds > oldest}
    return QueueState(agent=agent, waiting=answer.stats.approximate_backlog_count, pollers=len(pollers))
