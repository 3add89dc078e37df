"""The core worker: workflows and state activities. The only worker with the rights of the database's owner."""

import functools
import logging
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import timedelta

from temporalio.worker import Worker

from activities.reconcile import ReconcileActivities
from activities.state import StateActivities
from coatcheck.config import load_config
from coatcheck.events.intake import EventIntake
from coatcheck.events.projector import Projector
from coatcheck.messaging.accounts import LOGS
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.events import EventLog
from coatcheck.messaging.service import serve
from coatcheck.messaging.streams import (
    check_sync_always,
    ensure_streams,
    refuse_foreign_streams,
    refuse_lost_streams,
    stream_statuses,
)
from coatcheck.settings import Settings
from coatcheck.storage.database import Pool, open_pool
from coatcheck.storage.known_tasks import KnownTasks
from coatcheck.storage.state import known_runs, recorded_sequences
from schemas.config import Config
from schemas.events import JUDGE
from schemas.streams import Placement, StreamSpec, bucket_streams
from schemas.subjects import events_subject
from schemas.task_queues import CORE
from workers.interceptors import CoatcheckInterceptor
from workers.nats import nats_client
from workers.runner import Lifecycle
from workers.schedules import ensure_schedules
from workers.temporal import BUILD_ID, STICKY_TIMEOUT, check_search_attributes, connect, sandbox_runner, tls_config
from workflows.feature_pipeline import FeaturePipelineWorkflow
from workflows.program import ProgramWorkflow
from workflows.reconcile import ReconcileWorkflow

_log = logging.getLogger(__name__)


async def run(settings: Settings, lifecycle: Lifecycle) -> None:
    """Check that every server is as it must be, then poll until stopped.

    Raises:
        DependencyDownError: a server is away, or Temporal lacks a search attribute.
        ConfigError: `coatcheck.toml` is wrong, or gives one agent's task type or stream to another.
        StreamMissingError: JetStream has lost what PostgreSQL remembers; nothing is created over it.
    """
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_pool(settings.require_database_url()))
        nats = await stack.enter_async_context(nats_client(settings, "core"))
        await _check_durability(settings.nats_monitor_url)
        team = load_config(settings.config_file)
        await _ensure_streams(nats, pool, team, settings.placement)
        log = EventLog(nats)
        tasks = KnownTasks(pool)
        await stack.enter_async_context(_intake(log, pool, nats, team, tasks))
        await stack.enter_async_context(Projector(pool, nats).running())
        client = await connect(
            settings.require_temporal_address(), settings.temporal_namespace, tls=tls_config(settings)
        )
        await check_search_attributes(client)
        await ensure_schedules(client)
        reconcile = ReconcileActivities(pool, log, client, nats=nats, agents=team.agents)
        await stack.enter_async_context(
            Worker(
                client,
                task_queue=CORE,
                workflows=[FeaturePipelineWorkflow, ProgramWorkflow, ReconcileWorkflow],
                activities=[StateActivities(pool, log, tasks).record, reconcile.compare],
                interceptors=[CoatcheckInterceptor()],
                workflow_runner=sandbox_runner(),
                build_id=BUILD_ID,
                sticky_queue_schedule_to_start_timeout=STICKY_TIMEOUT,
                graceful_shutdown_timeout=timedelta(seconds=10),
            )
        )
        await lifecycle.serve()


def _intake(
    log: EventLog, pool: Pool, nats: NatsClient, team: Config, tasks: KnownTasks
) -> AbstractAsyncContextManager[None]:
    """Serve the events of agents and judges."""
    intake = EventIntake(log, own_tasks=tasks.own, known_runs=functools.partial(known_runs, pool))
    reporters = [*team.agents, JUDGE]
    endpoints = {events_subject(name): functools.partial(intake.handle, name) for name in reporters}
    return serve(nats, name="events", version="1.0.0", endpoints=endpoints)


async def _ensure_streams(nats: NatsClient, pool: Pool, team: Config, placement: Placement) -> None:
    """Make the streams of new agents; that of an agent whose role was removed stays, and is still looked after."""
    recorded = await recorded_sequences(pool)
    former = recorded.keys() - {spec.name for spec in team.streams}
    removed = [StreamSpec(name=name, subjects=(), agent="") for name in former]
    refuse_lost_streams(await stream_statuses(nats, [*team.streams, *removed]), recorded)
    wanted = [*team.streams, *bucket_streams(team.agents), *LOGS]
    statuses = await ensure_streams(nats, wanted, placement=placement)
    for status in statuses:
        for difference in status.drift:
            _log.warning("stream %s has drifted and is left as it is: %s", status.name, difference)
    refuse_foreign_streams(statuses)


async def _check_durability(monitor_url: str | None) -> None:
    """Refuse a server that is known not to sync; one that nobody can ask (no monitor) is only warned about."""
    if monitor_url is None:
        _log.warning("NATS_MONITOR_URL is not set, so nobody can tell whether NATS syncs every write (sync_interval)")
        return
    await check_sync_always(monitor_url)
