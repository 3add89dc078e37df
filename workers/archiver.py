"""The archiver, and the archive's service: in every core worker, and as a process of its own for those who want that.

One of all archivers is active, the others stand by; all of them answer who asks for what retention has dropped.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from coatcheck.archive.archiver import Archiver
from coatcheck.archive.desk import ArchiveDesk
from coatcheck.archive.shelf import open_shelf
from coatcheck.config import load_config
from coatcheck.messaging.accounts import ARCHIVE, ARCHIVE_READERS, CORE
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.service import serve
from coatcheck.settings import Settings
from coatcheck.storage.database import Pool, open_pool
from schemas.subjects import archive_subject
from workers.nats import nats_client
from workers.runner import Lifecycle

READS: Final = 16
"""In hand at once; each holds up to 4 MiB."""


async def run(settings: Settings, lifecycle: Lifecycle) -> None:
    """Archive, or stand by, and answer until stopped.

    Raises:
        MessagingUnavailableError: NATS is away at the start; later it is waited for.
        DestinationError: the archive's place cannot be one.
    """
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_pool(settings.require_database_url(), max_size=2))
        nats = await stack.enter_async_context(nats_client(settings, CORE, lifecycle.telemetry))
        lifecycle.needs("nats", lambda: nats.is_connected)
        await stack.enter_async_context(archiving(settings, pool, nats))
        await lifecycle.serve()


@asynccontextmanager
async def archiving(settings: Settings, pool: Pool, nats: NatsClient) -> AsyncIterator[None]:
    """Have both in the background until the block ends; raises as `run` does."""
    desk = ArchiveDesk(open_shelf(settings.archive_place))
    readers = [*load_config(settings.config_file).agents, *ARCHIVE_READERS, CORE]
    endpoints = {archive_subject(reader): desk.handle for reader in readers}
    async with (
        serve(nats, name=ARCHIVE, version="1.0.0", endpoints=endpoints, max_concurrent=READS),
        # A shelf of its own: what waits to be written must not hold up who reads.
        Archiver(pool, nats, open_shelf(settings.archive_place)).running(),
    ):
        yield
