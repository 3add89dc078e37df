"""The core worker: workflows and state activities. The only worker with the rights of the database's owner."""

import logging
from contextlib import AsyncExitStack
from datetime import timedelta

from temporalio.worker import Worker

from activities.state import StateActivities
from coatcheck.messaging.streams import check_sync_always, ensure_streams, refuse_lost_streams, stream_statuses
from coatcheck.settings import Settings
from coatcheck.storage.database import open_pool
from coatcheck.storage.state import recorded_sequences
from schemas.streams import STREAMS
from schemas.task_queues import CORE
from workers.interceptors import CoatcheckInterceptor
from workers.nats import nats_client
from workers.runner import Lifecycle
from workers.temporal import STICKY_TIMEOUT, check_search_attributes, connect, sandbox_runner
from workflows.feature_pipeline import FeaturePipelineWorkflow

_log = logging.getLogger(__name__)


async def run(settings: Settings, lifecycle: Lifecycle) -> None:
    """Check that every server is as it must be, then poll until stopped.

    Raises:
        DependencyDownError: a server is away, or Temporal lacks a search attribute.
        StreamMissingError: JetStream has lost what PostgreSQL remembers; nothing is created over it.
    """
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_pool(settings.require_database_url()))
        nats = await stack.enter_async_context(nats_client(settings, "core"))
        await _check_durability(settings.nats_monitor_url)
        refuse_lost_streams(await stream_statuses(nats, STREAMS), await recorded_sequences(pool))
        for status in await ensure_streams(nats, STREAMS):
            for difference in status.drift:
                _log.warning("stream %s has drifted and is left as it is: %s", status.name, difference)
        client = await connect(settings.require_temporal_address(), settings.temporal_namespace)
        await check_search_attributes(client)
        await stack.enter_async_context(
            Worker(
                client,
                task_queue=CORE,
                workflows=[FeaturePipelineWorkflow],
                activities=[StateActivities(pool).record],
                interceptors=[CoatcheckInterceptor()],
                workflow_runner=sandbox_runner(),
                sticky_queue_schedule_to_start_timeout=STICKY_TIMEOUT,
                graceful_shutdown_timeout=timedelta(seconds=10),
            )
        )
        await lifecycle.serve()


async def _check_durability(monitor_url: str | None) -> None:
    """Refuse a server that is known not to sync; one that nobody can ask (no monitor) is only warned about."""
    if monitor_url is None:
        _log.warning("NATS_MONITOR_URL is not set, so nobody can tell whether NATS syncs every write (sync_interval)")
        return
    await check_sync_always(monitor_url)
