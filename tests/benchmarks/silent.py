"""The product without its events, in a Temporal namespace of its own: what telling them costs.

`python -m tests.benchmarks.silent core|agents`: the product's own activities and agents, but nobody tells anything.
"""

import functools
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack

from opentelemetry.metrics import NoOpMeter
from temporalio.worker import Worker

from activities.state import StateActivities
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.events import EventLog
from coatcheck.settings import Settings
from coatcheck.storage.database import open_pool
from coatcheck.storage.known_tasks import KnownTasks
from coatcheck.telemetry.instruments import RunInstruments
from schemas.events import AgentEvent, Event
from schemas.task_queues import CORE
from tests.benchmarks.noop import make_namespace
from workers import agent
from workers.interceptors import CoatcheckInterceptor
from workers.nats import nats_client
from workers.runner import Lifecycle, run_main
from workers.temporal import STICKY_TIMEOUT, sandbox_runner
from workflows.feature_pipeline import FeaturePipelineWorkflow

NAMESPACE = "silent"


class SilentLog(EventLog):
    """Stores nothing."""

    async def publish(self, events: Sequence[Event]) -> None:
        """Forget the events."""


async def report_nothing(client: NatsClient, reporter: str, events: Sequence[AgentEvent]) -> None:
    """In place of `report_events`."""


async def core(settings: Settings, lifecycle: Lifecycle) -> None:
    """The workflow and its state activity; no intake and no projector."""
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_pool(settings.require_database_url()))
        nats = await stack.enter_async_context(nats_client(settings, "core", lifecycle.telemetry))
        worker = Worker(
            await make_namespace(settings, NAMESPACE),
            task_queue=CORE,
            workflows=[FeaturePipelineWorkflow],
            activities=[StateActivities(pool, SilentLog(nats), KnownTasks(pool), RunInstruments(NoOpMeter(""))).record],
            interceptors=[CoatcheckInterceptor()],
            workflow_runner=sandbox_runner(),
            sticky_queue_schedule_to_start_timeout=STICKY_TIMEOUT,
        )
        async with worker:
            await lifecycle.serve()


async def agents(settings: Settings, lifecycle: Lifecycle) -> None:
    """The product's agents."""
    await make_namespace(settings, NAMESPACE)
    agent.report_events = report_nothing  # type: ignore[attr-defined]
    await agent.run(settings.model_copy(update={"temporal_namespace": NAMESPACE}), lifecycle)


if __name__ == "__main__":
    settings = Settings()
    run_main(
        f"silent-{sys.argv[1]}",
        functools.partial({"core": core, "agents": agents}[sys.argv[1]], settings),
        settings,
    )
