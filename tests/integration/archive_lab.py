"""NATS and PostgreSQL of the archive's tests, agents that deliver, archivers to start and stop, retention at will."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from coatcheck.archive.archiver import Archiver
from coatcheck.archive.desk import ArchiveDesk
from coatcheck.archive.monitoring import ArchiveLag, archive_lags
from coatcheck.archive.shelf import Shelf, open_shelf
from coatcheck.localstack.status import NatsStatus, PostgresStatus
from coatcheck.messaging.accounts import ARCHIVE_READERS
from coatcheck.messaging.artifacts import ArtifactStore
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.messaging.service import serve
from coatcheck.messaging.streams import stream_config
from coatcheck.storage.database import Pool
from schemas.deliverable import DeliverableRef
from schemas.streams import AGENTS, STREAMS, StreamSpec, artifact_stream
from schemas.subjects import archive_subject, deliverable_subject
from tests.acceptance.program import environment
from tests.integration.nats_clients import client_as, deliverable


@dataclass
class Delivered:
    """One deliverable and what it must be for ever."""

    ref: DeliverableRef
    subject: str
    content: str
    files: Mapping[str, bytes]


@dataclass
class ArchiveLab:
    """The servers, and one archive."""

    nats: NatsStatus
    postgres: PostgresStatus
    core: NatsClient
    pool: Pool
    folder: Path
    """Where the archive is, unless a test has another one."""
    stack: contextlib.AsyncExitStack
    clients: dict[str, NatsClient] = field(default_factory=dict)
    """Of the agents that have delivered."""

    def archiver(self, shelf: Shelf | None = None) -> Archiver:
        """An archiver in this process, not running yet."""
        return Archiver(self.pool, self.core, shelf or self.shelf())

    def shelf(self) -> Shelf:
        """The archive in the folder."""
        return open_shelf(str(self.folder), patience_seconds=0.2)

    def serving(self, shelf: Shelf | None = None) -> contextlib.AbstractAsyncContextManager[None]:
        """The archive's service, for agents and the others."""
        desk = ArchiveDesk(shelf or self.shelf())
        readers = [*AGENTS, *ARCHIVE_READERS, "core"]
        endpoints = {archive_subject(reader): desk.handle for reader in readers}
        return serve(self.core, name="archive", version="1.0.0", endpoints=endpoints)

    async def deliver(self, agent: str, feature: str, files: Mapping[str, bytes] | None = None) -> Delivered:
        """As the agent does it: the files, then the deliverable that lists them."""
        spec = spec_of(agent)
        task_type, files = spec.name.rpartition("_")[2], files or {}
        if agent not in self.clients:
            self.clients[agent] = await self.stack.enter_async_context(client_as(self.nats, agent))
        client = self.clients[agent]
        body = deliverable(agent, task_type, feature, f"# {agent}: {feature}")
        body.artifacts = await ArtifactStore(client).put(agent, files)
        where = deliverable_subject(agent, task_type, feature)
        published = await DeliverableService(client).publish_report(
            body, task_key=f"{feature}/{agent}", stream=spec.name, subject=where
        )
        return Delivered(published.ref, where, body.content, files)

    async def lag(self, agent: str) -> ArchiveLag:
        """How far behind an agent's stream the archive is."""
        return (await archive_lags(self.core, [spec_of(agent).name]))[0]

    async def settled(self, agent: str, seconds: float = 60) -> None:
        """Wait until everything of an agent is archived."""
        async with asyncio.timeout(seconds):
            while (await self.lag(agent)).unarchived:
                await asyncio.sleep(0.02)

    async def drop(self, agent: str, *, keep: int = 1) -> None:
        """Have retention drop what the agent has delivered, and its files, but for the last messages."""
        for spec in (spec_of(agent), artifact_stream(agent)):
            config = {**stream_config(spec), "max_msgs": keep, "discard": "old"}
            await self.core.api(f"STREAM.UPDATE.{spec.name}", config)
            await self.core.api(f"STREAM.UPDATE.{spec.name}", stream_config(spec))

    def objects(self) -> dict[str, bytes]:
        """Everything in the folder, but for what a killed process has begun."""
        files = [path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}

    @contextlib.contextmanager
    def process(self, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
        """An archiver as a process of its own; killed at the end."""
        key = self.nats.users["core"].nkey_file
        assert key is not None
        told = environment(
            NATS_URL=self.nats.url,
            DATABASE_URL=self.postgres.dsn,
            COATCHECK_NATS_KEYS_DIR=str(key.parent),
            COATCHECK_ARCHIVE=str(self.folder),
            **variables,
        )
        with (self.folder.parent / "archiver.log").open("ab") as log:
            process = subprocess.Popen([sys.executable, "-m", "workers", "archiver"], env=told, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def spec_of(agent: str) -> StreamSpec:
    """The agent's stream."""
    return next(spec for spec in STREAMS if spec.agent == agent)


def corrupt(path: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


FILES = {"src/app.py": b"print('hello')\n", "src/__init__.py": b"", "data.bin": os.urandom(5 * 1024 * 1024)}
"""One is empty, one takes two replies of the archive's service."""
