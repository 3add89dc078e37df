"""The core worker: workflows and state activities. The only worker with the rights of the database's owner."""

import contextlib
import functools
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import timedelta

from temporalio.worker import Worker

from activities.budgets import Budgets
from activities.reconcile import ReconcileActivities
from activities.state import StateActivities
from coatcheck.config import load_config
from coatcheck.events.intake import EventIntake
from coatcheck.events.projector import Projector
from coatcheck.events.watching import (
    BACKBONE_SECONDS,
    LEDGER_SECONDS,
    look_at_backbone,
    look_at_ledger,
    watching,
)
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
from coatcheck.messaging.work_queue import ensure_work_queue
from coatcheck.services.ledger import LedgerService
from coatcheck.settings import Settings
from coatcheck.storage.database import Pool, open_pool
from coatcheck.storage.known_tasks import KnownTasks
from coatcheck.storage.ledger import open_account
from coatcheck.storage.state import known_runs, recorded_sequences
from coatcheck.telemetry.instruments import BackboneInstruments, LedgerInstruments, RunInstruments
from coatcheck.telemetry.provider import ObservabilityProvider
from schemas.config import Config
from schemas.events import JUDGE
from schemas.ledger import Verb, agent_account
from schemas.streams import MCP_REQUESTS, TOOL_STREAMS, Placement, StreamSpec, bucket_streams, tool_queue
from schemas.subjects import events_subject, ledger_subject, tool_request_subject
from schemas.task_queues import CORE
from workers.archiver import archiving
from workers.discovery import discoverable
from workers.interceptors import CoatcheckInterceptor
from workers.nats import nats_client
from workers.runner import Lifecycle
from workers.schedules import ensure_schedules
from workers.temporal import STICKY_TIMEOUT, check_search_attributes, measured_client, sandbox_runner
from workers.tracing import trace_note, tracing
from workers.versioning import build_id, deployment_config, ensure_current_build
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
        nats = await stack.enter_async_context(nats_client(settings, "core", lifecycle.telemetry))
        lifecycle.needs("nats", lambda: nats.is_connected)
        await _check_durability(settings.nats_monitor_url)
        team = load_config(settings.config_file)
        await _ensure_streams(nats, pool, team, settings.placement)
        log = EventLog(nats)
        tasks = KnownTasks(pool)
        await stack.enter_async_context(_intake(log, pool, nats, team, tasks))
        await stack.enter_async_context(await _ledger(pool, nats, team))
        await stack.enter_async_context(discoverable(nats, team))
        await stack.enter_async_context(Projector(pool, nats).running())
        await stack.enter_async_context(archiving(settings, pool, nats))
        await stack.enter_async_context(tracing(pool, nats, lifecycle.telemetry))
        client = await stack.enter_async_context(measured_client(settings, lifecycle.telemetry))
        await check_search_attributes(client)
        await ensure_current_build(client, settings)
        await ensure_schedules(client)
        budgets = Budgets(team.budgets, team.tenants)
        measures = RunInstruments(lifecycle.telemetry.meter, team.pipelines.values())
        if lifecycle.telemetry.has_metrics:
            await stack.enter_async_context(_watch(pool, nats, team, lifecycle.telemetry))
        deployment = deployment_config(settings)
        build = {"deployment_config": deployment} if deployment else {"build_id": build_id(settings)}
        reconcile = ReconcileActivities(pool, log, client, nats=nats, agents=team.agents)
        await stack.enter_async_context(
            Worker(
                client,
                task_queue=CORE,
                workflows=[FeaturePipelineWorkflow, ProgramWorkflow, ReconcileWorkflow],
                activities=[
                    StateActivities(pool, log, tasks, measures, budgets=budgets).record,
                    reconcile.compare,
                ],
                interceptors=[CoatcheckInterceptor(functools.partial(trace_note, settings))],
                workflow_runner=sandbox_runner(),
                **build,
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


async def _ledger(pool: Pool, nats: NatsClient, team: Config) -> AbstractAsyncContextManager[None]:
    """Serve the agents' own accounts."""
    for agent in team.agents:
        await open_account(pool, agent_account(agent))
    service = LedgerService(pool)
    endpoints = {
        ledger_subject(verb, agent): functools.partial(service.handle, verb, agent)
        for agent in team.agents
        for verb in Verb
    }
    return serve(nats, name="ledger", version="1.0.0", endpoints=endpoints)


@contextlib.asynccontextmanager
async def _watch(pool: Pool, nats: NatsClient, team: Config, telemetry: ObservabilityProvider) -> AsyncIterator[None]:
    """Look at streams and ledger for whoever reads the meter."""
    streams = BackboneInstruments(telemetry.meter)
    backbone = functools.partial(look_at_backbone, nats, _streams(team), streams, has_traces=telemetry.has_traces)
    books = functools.partial(look_at_ledger, pool, LedgerInstruments(telemetry.meter))
    async with watching(backbone, every_seconds=BACKBONE_SECONDS), watching(books, every_seconds=LEDGER_SECONDS):
        yield


def _streams(team: Config) -> list[StreamSpec]:
    return [*team.streams, *bucket_streams(team.agents), *LOGS, *TOOL_STREAMS]


async def _ensure_streams(nats: NatsClient, pool: Pool, team: Config, placement: Placement) -> None:
    """Make the streams of new agents; that of an agent whose role was removed stays, and is still looked after."""
    recorded = await recorded_sequences(pool)
    former = recorded.keys() - {spec.name for spec in team.streams}
    removed = [StreamSpec(name=name, subjects=(), agent="") for name in former]
    refuse_lost_streams(await stream_statuses(nats, [*team.streams, *removed]), recorded)
    statuses = await ensure_streams(nats, _streams(team), placement=placement)
    await ensure_tool_queues(nats, team)
    for status in statuses:
        for difference in status.drift:
            _log.warning("stream %s has drifted and is left as it is: %s", status.name, difference)
    refuse_foreign_streams(statuses)


async def ensure_tool_queues(nats: NatsClient, team: Config) -> None:
    """A queue for each MCP server, so that none waits behind another's; how many calls it takes at once is its own."""
    for name, server in team.mcp.items():
        await ensure_work_queue(
            nats,
            stream=MCP_REQUESTS.name,
            name=tool_queue(name),
            filter_subject=tool_request_subject(name, "*"),
            max_ack_pending=server.max_concurrent,
        )


async def _check_durability(monitor_url: str | None) -> None:
    """Refuse a server that is known not to sync; one that nobody can ask (no monitor) is only warned about."""
    if monitor_url is None:
        _log.warning("NATS_MONITOR_URL is not set, so nobody can tell whether NATS syncs every write (sync_interval)")
        return
    await check_sync_always(monitor_url)
