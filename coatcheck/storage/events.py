"""The table `events`, a projection of the audit log: written by one projector at a time, emptied by a rebuild alone.

Two locks. The projector's is an advisory lock of its session, which ends with its connection: rows are written over
that very connection, so whoever has lost the lock cannot write any more. A rebuild locks the table against writers for
its one transaction, in which it may take the append-only trigger off: nobody else ever meets the table without it.
"""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from coatcheck.errors import CoatcheckError
from coatcheck.storage.database import Pool, query, storable_json, storage_errors

Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

PROJECTOR_LOCK: Final = 0x636F6174_65767473
"""The key of the projector's advisory lock; the letters are `coatevts`."""
TRACER_LOCK: Final = 0x636F6174_74726163
"""`coattrac`."""
ARCHIVER_LOCK: Final = 0x636F6174_61726368
"""`coatarch`."""
DELETE_SECONDS: Final = 3600.0
"""For a table of tens of millions of rows."""
_IDLE: Final = "60s"
"""Of a rebuild whose process stands still, before PostgreSQL takes it back."""
_KEEPALIVE: Final = "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
"""A host that vanished gives the lock up after 25 s instead of 2 h."""
_SEQUENCE: Final = "(payload -> '_meta' ->> 'sequence')::bigint"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EventRow:
    """One row, in the order of the columns in `project.sql`."""

    event_id: str
    event_type: str
    entity_type: str
    entity_id: str
    workflow_id: str
    agent_id: str | None
    session_id: str
    source: str
    severity: str
    created_at: datetime
    payload: dict[str, Any]


_COLUMNS: Final = tuple(field.name for field in fields(EventRow) if field.name != "payload")


class RowRefusedError(CoatcheckError):
    """PostgreSQL does not take one of the rows, and never will."""

    code = "storage.row_refused"


@asynccontextmanager
async def sole_reader(pool: Pool, lock: int) -> "AsyncGenerator[Connection | None]":
    """The connection of the one reader with that lock, or `None` while another one has it.

    Raises:
        StorageUnavailableError: PostgreSQL is away.
    """
    with storage_errors():
        connection = await pool.acquire()
    try:
        with storage_errors():
            locked = await connection.fetchval("SELECT pg_try_advisory_lock($1)", lock)
            if locked:
                await connection.execute(_KEEPALIVE)
        yield connection if locked else None
        if locked:
            with storage_errors():
                await connection.fetchval("SELECT pg_advisory_unlock($1)", lock)
    except BaseException:
        # The lock ends with the connection, and not before the statement that may be under way.
        connection.terminate()
        raise
    finally:
        await pool.release(connection)


async def project(connection: Connection, rows: Sequence[EventRow]) -> None:
    """Write rows in their order, all or none; a row whose event is there already is left out.

    Raises:
        RowRefusedError: one of them cannot be stored.
        StorageUnavailableError: PostgreSQL is away; whether they were written is not known, so write them again.
    """
    columns = [[getattr(row, name) for row in rows] for name in _COLUMNS]
    payloads = [storable_json(row.payload) for row in rows]
    try:
        with storage_errors():
            await connection.execute(query("project"), *columns, payloads)
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, ValueError) as error:
        raise RowRefusedError(f"{type(error).__name__}: {error}") from error


@asynccontextmanager
async def emptied(pool: Pool, first: int, last: int) -> AsyncGenerator[tuple[Connection, int]]:
    """One transaction in which the rows of a span of the audit log are gone, to be written anew.

    Nobody else can write the table meanwhile; everybody can read it, as it was before.

    Yields:
        The connection to write through, and how many rows were removed.

    Raises:
        StorageUnavailableError: PostgreSQL is away; the table is as it was.
    """
    with storage_errors():
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("SET LOCAL statement_timeout = 0")
            await connection.execute(f"SET LOCAL idle_in_transaction_session_timeout = '{_IDLE}'")
            await connection.execute("LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE", timeout=DELETE_SECONDS)
            await connection.execute("ALTER TABLE events DISABLE TRIGGER events_append_only")
            removed = await connection.execute(
                f"DELETE FROM events WHERE {_SEQUENCE} BETWEEN $1 AND $2",  # noqa: S608  a constant
                *(first, last),
                timeout=DELETE_SECONDS,
            )
            await connection.execute("ALTER TABLE events ENABLE ALWAYS TRIGGER events_append_only")
            yield connection, int(removed.rpartition(" ")[2])


async def count_projected(pool: Pool) -> int:
    """Rows that came from the audit log."""
    with storage_errors():
        count: int = await pool.fetchval("SELECT count(*) FROM events WHERE payload ? '_meta'")
    return count
