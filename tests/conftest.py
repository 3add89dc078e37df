"""Real servers for the tests, started by the same code that users run, once per test process and only when asked for.

`nats_server`, `postgres_server` and `temporal_server` are one server each; `stack_servers` has all three. Nobody
kills or reconfigures these: a test that does takes a stack of its own from `new_stack`.
"""

import gc
import itertools
import subprocess
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from temporalio.client import Client

from coatcheck.localstack import LocalStack
from coatcheck.localstack.binaries import postgres_program
from coatcheck.localstack.status import NatsStatus, PostgresStatus, TemporalStatus
from tests import tls

if tls.IS_ON:
    tls.switch_on()

_numbers = itertools.count(1)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import all tests without looking for garbage, and do not look through what that made afterwards either.

    It is a million objects that stay: 20% of the time until the first test.
    """
    gc.disable()
    collected = yield
    gc.freeze()
    gc.enable()
    return collected


@dataclass(frozen=True)
class Servers:
    """All three servers, as `coatcheck status` describes them."""

    temporal: TemporalStatus
    nats: NatsStatus
    postgres: PostgresStatus


def _one(server: str, tmp_path_factory: pytest.TempPathFactory) -> LocalStack:
    return LocalStack(tmp_path_factory.mktemp(server), servers=(server,), workers=())


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsStatus]:
    """A nats-server with the product's accounts; no streams yet. `users` says how to connect as whom."""
    with _one("nats", tmp_path_factory) as stack:
        status = stack.status().nats
        assert status is not None
        yield status


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresStatus]:
    """A PostgreSQL whose database `coatcheck` is migrated and is the template of every test's own.

    It does not wait for the disk, which is what making and dropping those databases mostly does: only a power cut could
    tell the difference. The stacks of tests that kill something have the product's settings.
    """
    with _one("postgres", tmp_path_factory) as stack:
        status = stack.status().postgres
        assert status is not None
        psql = [postgres_program("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", str(status.superuser_dsn)]
        for statement in ("ALTER SYSTEM SET fsync = off", "ALTER SYSTEM SET full_page_writes = off"):
            psql += ["-c", statement]
        subprocess.run([*psql, "-c", "SELECT pg_reload_conf()"], check=True, capture_output=True)
        yield status


@pytest.fixture(scope="session")
def temporal_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalStatus]:
    """A Temporal server with the product's flags and search attributes."""
    with _one("temporal", tmp_path_factory) as stack:
        status = stack.status().temporal
        assert status is not None
        yield status


@pytest.fixture(scope="session")
def stack_servers(temporal_server: TemporalStatus, nats_server: NatsStatus, postgres_server: PostgresStatus) -> Servers:
    """All three servers; the same ones that the single fixtures give."""
    return Servers(temporal=temporal_server, nats=nats_server, postgres=postgres_server)


@pytest.fixture(scope="session")
async def temporal(temporal_server: TemporalStatus) -> Client:
    """A client without our data converter; connect your own to `temporal_server.address` where that matters."""
    return await Client.connect(temporal_server.address, namespace=temporal_server.namespace)


@pytest.fixture
async def database(postgres_server: PostgresStatus) -> AsyncIterator[PostgresStatus]:
    """A migrated, empty database of the test's own; `dsn` owns it, `gateway_dsn` may only journal turns."""
    assert postgres_server.superuser_dsn is not None
    name = f"test_{next(_numbers)}"
    admin = await asyncpg.connect(postgres_server.superuser_dsn)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE coatcheck OWNER coatcheck")
        dsns = (postgres_server.dsn, postgres_server.gateway_dsn, postgres_server.superuser_dsn)
        dsn, gateway_dsn, superuser_dsn = (urlsplit(dsn)._replace(path=f"/{name}").geturl() for dsn in dsns)
        yield PostgresStatus(dsn=dsn, gateway_dsn=gateway_dsn, superuser_dsn=superuser_dsn)
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


@pytest.fixture
def postgres_dsn(database: PostgresStatus) -> str:
    """DSN of the test's own database, as its owner."""
    return database.dsn


@pytest.fixture
def gateway_dsn(database: PostgresStatus) -> str:
    """DSN of the test's own database, as the role that may only journal turns."""
    return database.gateway_dsn


@pytest.fixture
def new_stack(tmp_path: Path) -> Iterator[Callable[..., LocalStack]]:
    """Start stacks of the test's own, `new_stack(servers=…, workers=…, data_dir=…)`; stopped when the test ends."""
    with ExitStack() as stacks:

        def start(*, data_dir: Path | None = None, **options: object) -> LocalStack:
            return stacks.enter_context(LocalStack(data_dir or tmp_path / "stack", **options))  # type: ignore[arg-type]

        yield start
