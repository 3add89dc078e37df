"""Agent workers: one Temporal worker and one NATS identity per agent, and no other power.

Locally one process hosts all agents, each with its own connection; in production `coatcheck worker agents roy`
makes each a container of its own.
"""

import functools
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Final

from temporalio.client import Client
from temporalio.worker import Worker

from activities.agents import stage_activity_for
from coatcheck.agents.loop import StageRunner
from coatcheck.agents.roles import DEFAULT_ROLES, Role
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.settings import Settings
from schemas.subjects import llm_subject
from schemas.task_queues import agent_queue
from workers.interceptors import CoatcheckInterceptor
from workers.nats import nats_client
from workers.runner import Lifecycle
from workers.temporal import connect

TURN_TIMEOUT_SECONDS: Final = 8.0
"""The proxy answers or says `pending` within 5 s; 3 s more and it is gone."""
GRACE: Final = timedelta(seconds=20)
"""For the turn under way; whoever is cut off goes on from the journal."""
HEARTBEAT_INTERVAL: Final = timedelta(seconds=2.5)
"""Temporal sends at most one beat in this time; it would otherwise wait for 80% of the time-out."""


async def run(settings: Settings, lifecycle: Lifecycle, *, only: Sequence[str] = ()) -> None:
    """Poll the queues of all agents, or of those named in `only`, until stopped.

    Raises:
        DependencyDownError: a server is away.
    """
    client = await connect(settings.require_temporal_address(), settings.temporal_namespace)
    async with AsyncExitStack() as stack:
        for role in DEFAULT_ROLES.values():
            if not only or role.agent in only:
                await stack.enter_async_context(await _worker(role, settings, lifecycle, client, stack))
        await lifecycle.serve()


async def _worker(
    role: Role, settings: Settings, lifecycle: Lifecycle, client: Client, stack: AsyncExitStack
) -> Worker:
    nats = await stack.enter_async_context(nats_client(settings, role.agent))
    runner = StageRunner(
        role,
        ask=functools.partial(_ask, nats, llm_subject(role.agent)),
        deliverables=DeliverableService(nats),
        stopping=lambda: lifecycle.stopping,
    )
    return Worker(
        client,
        task_queue=agent_queue(role.agent),
        activities=[stage_activity_for(role, runner)],
        interceptors=[CoatcheckInterceptor()],
        max_concurrent_activities=settings.agent_slots,
        graceful_shutdown_timeout=GRACE,
        max_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
    )


async def _ask(nats: NatsClient, subject: str, payload: bytes) -> bytes:
    return await nats.request(subject, payload, timeout=TURN_TIMEOUT_SECONDS)
