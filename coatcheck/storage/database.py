"""The connection pool, JSON on its way into PostgreSQL, and the one error that says PostgreSQL is away.

The pool connects when it is used: a server that is away at start, or is killed later, makes calls fail with
`StorageUnavailableError` until it is back, and the pool heals by itself. Nothing is retried here; every write of
this package can be repeated, and who asks for it (Temporal, the LLM proxy) decides how often.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from importlib.resources import files
from typing import Any, Final, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from coatcheck.errors import StorageUnavailableError

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Executor: TypeAlias = "Pool | asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
"""What a repository function runs on: a pool (its own transaction) or a connection (the caller's)."""

CONNECT_TIMEOUT_SECONDS: Final = 5.0
COMMAND_TIMEOUT_SECONDS: Final = 20.0
"""A 9.5 MB message takes under 1 s; a server that is stopped (SIGSTOP) is noticed after this long."""
STATEMENT_TIMEOUT_MS: Final = 15_000
"""The server's own limit, below ours, so that it gives up first and the connection stays usable."""

_AWAY: Final = (
    OSError,  # connection refused or reset, no such socket; TimeoutError is one too
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shutting down, starting up, crashed, statement timed out
    asyncpg.InsufficientResourcesError,  # disk full, too many connections
    asyncpg.InternalClientError,  # a dying server's last word is read just before a statement (seen with kill -9)
)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_ESCAPED_NUL: Final = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_pool(dsn: str, *, min_size: int = 1, max_size: int = 10) -> AsyncGenerator[Pool]:
    """A pool for one process and one event loop.

    Args:
        dsn: `postgresql://…`, over TCP or a Unix socket.
        min_size: Connections opened at once when the server is there; when it is not, a warning is logged and they
            are opened as they are needed.
        max_size: Most connections; further callers wait for one.
    """
    pool = asyncpg.create_pool(
        dsn,
        min_size=0,
        max_size=max_size,
        timeout=CONNECT_TIMEOUT_SECONDS,
        command_timeout=COMMAND_TIMEOUT_SECONDS,
        init=_prepare,
        reset=_keep,
        server_settings={
            "application_name": "coatcheck",
            "statement_timeout": str(STATEMENT_TIMEOUT_MS),
            "idle_in_transaction_session_timeout": str(STATEMENT_TIMEOUT_MS),
            "jit": "off",  # our statements are small: compiling one takes longer than running it
        },
    )
    async with pool:
        try:
            with storage_errors():
                await _open_connections(pool, min_size)
        except StorageUnavailableError as error:
            _log.warning("%s; going on, connections are opened when they are needed", error)
        yield pool


async def _keep(_: object) -> None:
    """Leave a released connection as it is.

    Our statements set nothing that outlives them, and asyncpg's own reset would be a second round trip for each.
    """


@contextmanager
def storage_errors() -> Generator[None]:
    """Turn what asyncpg raises when PostgreSQL is away, starting or out of resources into our one error.

    Raises:
        StorageUnavailableError: in place of those; whether the statement took effect is not known. Other errors
            (a broken constraint, a missing table, a wrong password) pass unchanged: trying again does not help.
    """
    try:
        yield
    except _AWAY as error:
        raise StorageUnavailableError(f"PostgreSQL does not answer: {error or type(error).__name__}") from error
    except asyncpg.InterfaceError as error:
        # The driver's class for wrong use is also its class for a connection that broke before the statement began.
        if "clos" not in str(error):
            raise
        raise StorageUnavailableError(f"PostgreSQL does not answer: {error}") from error


@cache
def query(name: str) -> str:
    """The statement in `queries/<name>.sql`."""
    return files("coatcheck.storage").joinpath(f"queries/{name}.sql").read_text("utf-8")


def exact_json(value: Any) -> str:
    r"""Compact JSON text for a TEXT column; `json.loads` gives back exactly `value`.

    NUL and lone surrogates, which models do produce and PostgreSQL does not store, are written as the escapes
    `\u0000` and `\ud800`; everything else stays readable.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def storable_json(value: Any) -> str:
    """Compact JSON text for a JSONB column, which cannot hold NUL or lone surrogates even as escapes.

    They become U+2400 (the picture of NUL) and U+FFFD: visible, and not reversible.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _SURROGATE.sub("\ufffd", _ESCAPED_NUL.sub("\\1\u2400", text))


def storable_text(value: str) -> str:
    """`value` as a TEXT column can hold it, changed like `storable_json`."""
    return _SURROGATE.sub("\ufffd", value.replace("\0", "\u2400"))


async def _prepare(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=storable_json, decoder=json.loads, format="text"
    )


async def _open_connections(pool: Pool, count: int) -> None:
    connections = await asyncio.gather(*(pool.acquire() for _ in range(count)), return_exceptions=True)
    for connection in connections:
        if not isinstance(connection, BaseException):
            await pool.release(connection)
    for connection in connections:
        if isinstance(connection, BaseException):
            raise connection
