"""Agent activities: one activity type per agent, so that a replay tells `roy.backend` from `jen.frontend`."""

import contextlib
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from temporalio import activity

from activities.heartbeats import heartbeats
from coatcheck.agents.loop import StageRunner, Task
from coatcheck.agents.presence import Presence
from coatcheck.telemetry.scope import working_on_task
from schemas.activities import RunStageInput, stage_activity
from schemas.agent_state import AgentTask
from schemas.notice import Notice
from schemas.roles import Role
from schemas.workflow_ids import task_key

_log = logging.getLogger(__name__)

StageActivity = Callable[[RunStageInput], Awaitable[Notice]]


def stage_activity_for(role: Role, runner: StageRunner, presence: Presence | None = None) -> StageActivity:
    """The activity of `role`, to be registered on its own task queue."""

    @activity.defn(name=stage_activity(role.agent, role.task_type))
    async def run_stage(stage_input: RunStageInput) -> Notice:
        info = activity.info()
        assert info.workflow_id is not None
        assert info.workflow_run_id is not None
        order = stage_input.order(info.workflow_id, info.workflow_run_id, info.activity_id)
        task = Task(order, task_key=task_key(order.run_key, info.activity_id), attempt=info.attempt)
        in_hand = presence.working(_in_hand(task)) if presence else contextlib.nullcontext()
        with in_hand, working_on_task(task.task_key, order.reset):
            async with heartbeats():
                _log.info("attempt %d begins", task.attempt)
                notice = await runner.run(task)
                _log.info("attempt %d is done: %s", task.attempt, notice.status)
                return notice

    return run_stage


def _in_hand(task: Task) -> AgentTask:
    return AgentTask(
        task_key=task.task_key,
        feature=task.order.feature,
        stage=task.order.stage,
        round=task.order.round,
        attempt=task.attempt,
        since=datetime.now(UTC),
    )
