"""Where the servers are, and connections to them that answer within about 3 s, also when nobody is there.

Variables win over the status file of the local stack. Every function here raises our own errors only, so that the
edge of the program knows what to say and with which code to leave. A command that asks one server loads the driver of
that one alone: the three take 0.5 s to import.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import SecretStr, ValidationError

from coatcheck.errors import (
    CoatcheckError,
    DependencyDownError,
    MessagingUnavailableError,
    StorageUnavailableError,
)
from coatcheck.localstack.status import load_status
from coatcheck.messaging.accounts import OBSERVER, load_user
from coatcheck.settings import CONFIG_FILE, Settings

if TYPE_CHECKING:
    from temporalio.client import Client

    from coatcheck.messaging.client import NatsClient
    from coatcheck.storage.database import Pool

CONNECT_SECONDS: Final = 3.0
"""A person waits for it; a server on the same network answers in milliseconds."""
UP_HINT: Final = "`coatcheck up` starts the local stack, `coatcheck doctor` says what is wrong"


def load_settings(data_dir: Path) -> Settings:
    """Settings from the environment, completed by what the local stack in `data_dir` was started with.

    Raises:
        CoatcheckError: a variable or the status file cannot be read.
    """
    try:
        settings = Settings(data_dir=data_dir)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise CoatcheckError(f"the environment: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
    try:
        status = load_status(data_dir)
    except (OSError, ValidationError) as error:
        raise CoatcheckError(
            f"{data_dir / 'status.json'} cannot be read: {type(error).__name__}", hint="`coatcheck up` writes it anew"
        ) from error
    found: dict[str, Any] = {"config_file": config_file(settings.config_file)}
    if settings.config_file is None and status.supervisor.started_at is not None:
        # Also when that was none: such a stack does not know the roles of a file that has come since.
        found["config_file"] = status.config_file
    if settings.temporal_address is None and status.temporal:
        found |= {"temporal_address": status.temporal.address, "temporal_namespace": status.temporal.namespace}
        found |= {"temporal_ca_file": settings.temporal_ca_file or status.temporal.ca_file}
    if settings.phoenix_url is None and status.phoenix:
        found["phoenix_url"] = status.phoenix.url
    if settings.nats_url is None and status.nats:
        found |= {"nats_url": status.nats.url, "nats_monitor_url": status.nats.monitor_url}
        found |= {"nats_ca_file": settings.nats_ca_file or status.nats.ca_file}
    if settings.database_url is None and status.postgres:
        found |= {
            "database_url": SecretStr(status.postgres.dsn),
            "gateway_database_url": settings.gateway_database_url or SecretStr(status.postgres.gateway_dsn),
        }
    return settings.model_copy(update=found)


def config_file(given: Path | None) -> Path | None:
    """The `coatcheck.toml` to start with, absolute: the given one, else that of the current folder, else none."""
    if given is None and Path(CONFIG_FILE).exists():
        given = Path(CONFIG_FILE)
    return None if given is None else given.absolute()


def run(command: Coroutine[Any, Any, None]) -> None:
    """Run a command's coroutine; Ctrl-C cancels it, cleans up and arrives as `KeyboardInterrupt`."""
    asyncio.run(command)


@contextmanager
def temporal_errors() -> Generator[None]:
    """Turn Temporal's transport errors into ours.

    Raises:
        DependencyDownError: the server is away or did not answer in time.
        CoatcheckError: it refused.
    """
    from temporalio.service import RPCError, RPCStatusCode  # noqa: PLC0415

    away = (RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED)
    try:
        yield
    except RPCError as error:
        if error.status in away:
            raise DependencyDownError(f"Temporal does not answer: {error.message}", hint=UP_HINT) from error
        raise CoatcheckError(f"Temporal: {error.message}") from error


async def open_temporal(settings: Settings) -> "Client":
    """A client of Temporal; it needs no closing.

    Raises:
        DependencyDownError: no address is known, or nobody answers there.
    """
    address = _known(settings.temporal_address, "Temporal", "TEMPORAL_ADDRESS", settings)
    from workers.temporal import connect, tls_config  # noqa: PLC0415

    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            return await connect(
                address,
                settings.temporal_namespace,
                tls=tls_config(settings),
                payload_keys=settings.payload_keys,
            )
    except TimeoutError as error:
        raise DependencyDownError(f"Temporal at {address} does not answer", hint=UP_HINT) from error
    except DependencyDownError as error:
        raise DependencyDownError(f"Temporal at {address} does not answer", hint=UP_HINT) from error


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncGenerator["Pool"]:
    """The state of record.

    Raises:
        StorageUnavailableError: no address is known, nobody answers there, or the connection is lost meanwhile.
        CoatcheckError: PostgreSQL refuses, for instance because no migration was applied.
    """
    secret = settings.database_url.get_secret_value() if settings.database_url else None
    dsn = _known(secret, "PostgreSQL", "DATABASE_URL", settings, StorageUnavailableError)
    import asyncpg  # noqa: PLC0415

    from coatcheck.storage.database import open_pool, storage_errors  # noqa: PLC0415

    try:
        async with open_pool(dsn, min_size=0, max_size=2) as pool:
            with storage_errors():
                async with asyncio.timeout(CONNECT_SECONDS):
                    await pool.fetchval("SELECT 1")
            yield pool
    except StorageUnavailableError as error:
        raise StorageUnavailableError(f"{error} ({_place(dsn)})", hint=UP_HINT) from error
    except asyncpg.UndefinedTableError as error:
        raise CoatcheckError(f"PostgreSQL: {error}", hint="`coatcheck db migrate` makes the tables") from error
    except asyncpg.InterfaceError as error:
        raise CoatcheckError(f"PostgreSQL: {error}", hint="is DATABASE_URL as in postgresql://…?") from error
    except asyncpg.PostgresError as error:
        raise CoatcheckError(f"PostgreSQL at {_place(dsn)} refuses: {error}") from error


@asynccontextmanager
async def open_nats(settings: Settings, *, identity: str = OBSERVER) -> AsyncGenerator["NatsClient"]:
    """NATS as `identity`; `observer` can read and do nothing else.

    Raises:
        MessagingUnavailableError: no address is known, or nobody answers there.
        NotAuthorizedError: the identity has no key here, or the server does not accept it.
    """
    url = _known(settings.nats_url, "NATS", "NATS_URL", settings, MessagingUnavailableError)
    user = None if settings.nats_isolation == "shared" else load_user(settings.keys_dir, identity)
    from coatcheck.messaging.client import NatsClient  # noqa: PLC0415

    client = NatsClient(url, user=user, name=f"coatcheck-cli-{identity}", ca_file=settings.nats_ca_file)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await client.__aenter__()
    except TimeoutError as error:
        raise MessagingUnavailableError(f"NATS at {_place(url)} does not answer", hint=UP_HINT) from error
    except MessagingUnavailableError as error:
        raise MessagingUnavailableError(str(error).rstrip(": "), hint=UP_HINT) from error
    try:
        yield client
    finally:
        await client.close()


def _known(
    address: str | None,
    server: str,
    variable: str,
    settings: Settings,
    kind: type[DependencyDownError] = DependencyDownError,
) -> str:
    if not address:
        raise kind(
            f"no {server} is known: nothing was started in {settings.data_dir} and {variable} is not set",
            hint="`coatcheck up` starts the local stack; --data-dir names another one",
        )
    return address


def _place(urls: str) -> str:
    """The URLs without users and passwords."""
    return ",".join(url.rpartition("@")[2].partition("?")[0] for url in urls.split(","))
