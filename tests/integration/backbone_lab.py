"""NATS and PostgreSQL of a test's own, a projector to start and stop, and what the table must be."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from coatcheck.events.monitoring import BackboneStatus, backbone_status
from coatcheck.events.projector import Projector
from coatcheck.localstack import LocalStack
from coatcheck.messaging.accounts import LOGS
from coatcheck.messaging.client import NatsClient, StoredMessage
from coatcheck.messaging.events import EventLog
from coatcheck.messaging.spans import read_span
from coatcheck.messaging.streams import ensure_streams
from coatcheck.storage.database import Pool, open_pool
from schemas.streams import AUDIT_LOG
from tests.integration.nats_clients import client_as

COLUMNS = (
    "event_id",
    "event_type",
    "entity_type",
    "entity_id",
    "workflow_id",
    "agent_id",
    "session_id",
    "source",
    "severity",
    "created_at",
    "payload",
)
_SEQUENCE = "(payload -> '_meta' ->> 'sequence')::bigint"


@dataclass
class Backbone:
    """One audit log and one table."""

    stack: LocalStack
    core: NatsClient
    pool: Pool

    @property
    def log(self) -> EventLog:
        """The audit log as `core` has it."""
        return EventLog(self.core)

    def projecting(self, *, batch: int = 500) -> contextlib.AbstractAsyncContextManager[None]:
        """A projector in this process."""
        return Projector(self.pool, self.core, batch=batch).running()

    async def store(self, data: bytes, message_id: str, subject: str = "agog.events.system.core.x.y") -> int:
        """Put anything into the audit log; returns its sequence."""
        return (await self.core.publish(subject, data, message_id=message_id, stream=AUDIT_LOG.name)).sequence

    async def stored(self) -> list[StoredMessage]:
        """Everything in the audit log."""
        state = (await self.core.api(f"STREAM.INFO.{AUDIT_LOG.name}"))["state"]
        spans = read_span(self.core, AUDIT_LOG.name, max(state["first_seq"], 1), state["last_seq"])
        return [message async for messages in spans for message in messages]

    async def rows(self) -> list[dict[str, Any]]:
        """The whole table by sequence."""
        found = await self.pool.fetch(f"SELECT {', '.join(COLUMNS)} FROM events ORDER BY {_SEQUENCE}")
        return [dict(row) for row in found]

    async def status(self) -> BackboneStatus:
        """How it is."""
        return await backbone_status(self.core)

    async def settled(self, seconds: float = 30) -> BackboneStatus:
        """Wait until a projector has acknowledged everything."""
        async with asyncio.timeout(seconds):
            while (status := await self.status()).lag or not status.projector_exists:
                await asyncio.sleep(0.02)
        return status

    async def check_table(self) -> list[dict[str, Any]]:
        """The table is the stream: no row missing, none too many, each as it was told, in order; returns the rows."""
        rows, messages = await self.rows(), await self.stored()
        assert rows == [expected_row(message) for message in messages]
        await self.check_order()
        return rows

    async def check_order(self) -> None:
        """Whoever wrote a row later wrote a later event: sorted by sequence, transactions never go back."""
        writers = [
            row["writer"]
            for row in await self.pool.fetch(f"SELECT xmin::text::bigint AS writer FROM events ORDER BY {_SEQUENCE}")
        ]
        assert writers == sorted(writers)

    async def lock_holders(self) -> int:
        """Sessions that hold the projector's lock."""
        held: int = await self.pool.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted")
        return held


def expected_row(message: StoredMessage) -> dict[str, Any]:
    """The row of a stored event, from its JSON alone."""
    said = json.loads(message.data)
    beside = {"version", "occurrence", "causation_id", "traceparent"}
    meta = {"sequence": message.sequence} | {name: said[name] for name in beside & said.keys()}
    return {
        "event_id": said["event_id"],
        "event_type": said["event_type"],
        "entity_type": "workflow" if said["entity_id"] == said["correlation_id"] else "task",
        "entity_id": said["entity_id"],
        "workflow_id": said["correlation_id"],
        "agent_id": said.get("agent"),
        "session_id": said["session_id"],
        "source": said["source"],
        "severity": said.get("severity", "info"),
        "created_at": datetime.fromisoformat(said["occurred_at"]),
        "payload": said["payload"] | {"_meta": meta},
    }


@contextlib.asynccontextmanager
async def open_backbone(
    new_stack: Callable[..., LocalStack], servers: Sequence[str] = ("nats", "postgres"), **options: Any
) -> AsyncIterator[Backbone]:
    """Start the servers and connect to them."""
    stack = await asyncio.to_thread(new_stack, servers=servers, workers=options.pop("workers", ()), **options)
    status = stack.status()
    assert status.nats is not None
    assert status.postgres is not None
    async with client_as(status.nats, "core") as core, open_pool(status.postgres.dsn) as pool:
        await ensure_streams(core, LOGS)
        yield Backbone(stack, core, pool)


async def admin(backbone: Backbone) -> "asyncpg.Connection[asyncpg.Record]":
    """Another connection as the table's owner."""
    postgres = backbone.stack.status().postgres
    assert postgres is not None
    return await asyncpg.connect(postgres.dsn)
