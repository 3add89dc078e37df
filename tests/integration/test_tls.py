"""PostgreSQL and Temporal with TLS; NATS is in `test_nats_cluster.py`.

Neither Temporal's development server nor the PostgreSQL of the local stack speaks TLS, so a listener in front of the
real server does, as a load balancer would.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from temporalio.api.workflowservice.v1 import GetSystemInfoRequest

from coatcheck.errors import CoatcheckError, DependencyDownError
from coatcheck.localstack.certificates import issue_certificates
from coatcheck.localstack.ports import LOOPBACK
from coatcheck.localstack.status import TemporalStatus
from coatcheck.settings import Settings
from coatcheck.storage.database import open_pool
from coatcheck.storage.migrate import pending
from workers.temporal import connect, tls_config


@pytest.fixture(scope="module")
def ca_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the certificates of the servers beside it."""
    return issue_certificates(tmp_path_factory.mktemp("certs"))[0]


@pytest.fixture(scope="module")
def other_ca_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority that has signed nothing here."""
    return issue_certificates(tmp_path_factory.mktemp("others"))[0]


# --- PostgreSQL ---------------------------------------------------------------------------------------------------

SSL_REQUEST = bytes.fromhex("0000000804d2162f")
"""What a client of PostgreSQL says before the handshake; the server answers `S`, or `N` when it speaks no TLS."""


@contextlib.asynccontextmanager
async def postgres_front(dsn: str, certs: Path) -> AsyncIterator[str]:
    """A listener that ends TLS in front of the server that `dsn` names; yields the DSN, without a word about TLS."""
    parts = urlsplit(dsn)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certs / "postgres.pem", certs / "postgres.key")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            assert await reader.readexactly(8) == SSL_REQUEST
            writer.write(b"S")
            await writer.start_tls(context)
            await hand_on(reader, writer, str(parts.hostname), int(str(parts.port)))

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    login = f"{parts.username}:{parts.password}"
    try:
        yield f"postgresql://{login}@{LOOPBACK}:{server.sockets[0].getsockname()[1]}{parts.path}"
    finally:
        server.close()


async def test_postgres_is_verified(postgres_dsn: str, ca_file: Path) -> None:
    """The pool of every worker, and the program that migrates."""
    async with postgres_front(postgres_dsn, ca_file.parent) as front:
        dsn = f"{front}?sslmode=verify-full&sslrootcert={ca_file}"
        async with open_pool(dsn, max_size=1) as pool:
            assert await pool.fetchval("SELECT current_user") == "coatcheck"
        assert await asyncio.to_thread(pending, dsn) == []


async def test_postgres_of_another_authority_is_refused(postgres_dsn: str, ca_file: Path, other_ca_file: Path) -> None:
    """Before a password is sent."""
    async with (
        postgres_front(postgres_dsn, ca_file.parent) as front,
        open_pool(f"{front}?sslmode=verify-full&sslrootcert={other_ca_file}", max_size=1) as pool,
    ):
        with pytest.raises(ssl.SSLCertVerificationError):
            await pool.fetchval("SELECT 1")


async def test_postgres_without_tls_is_refused(postgres_dsn: str, ca_file: Path) -> None:
    """The server of the local stack speaks none, and is not given the password in the clear instead."""
    dsn = postgres_dsn.partition("?")[0]
    async with open_pool(f"{dsn}?sslmode=verify-full&sslrootcert={ca_file}", max_size=1) as pool:
        with pytest.raises(ConnectionError, match="rejected SSL upgrade"):
            await pool.fetchval("SELECT 1")


# --- Temporal -----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def tls_front(address: str, certs: Path, *, client_ca: Path | None = None) -> AsyncIterator[str]:
    """A listener that ends TLS and hands on to `address`; with `client_ca` it asks for the client's certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=client_ca)
    context.load_cert_chain(certs / "temporal.pem", certs / "temporal.key")
    context.set_alpn_protocols(["h2"])
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    host, _, port = address.partition(":")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hand_on(reader, writer, host, int(port))

    server = await asyncio.start_server(serve, LOOPBACK, 0, ssl=context)
    try:
        yield f"{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
    """Copy both ways until both sides are done."""
    back_reader, back_writer = await asyncio.open_connection(host, port)

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                target.write(data)
                await target.drain()
        target.close()

    await asyncio.gather(copy(reader, back_writer), copy(back_reader, writer))


async def version(address: str, settings: Settings) -> str:
    """Of the server, over a connection as the settings want it."""
    client = await connect(address, "default", tls=tls_config(settings))
    return (await client.workflow_service.get_system_info(GetSystemInfoRequest())).server_version


async def test_temporal_is_verified(temporal_server: TemporalStatus, ca_file: Path, other_ca_file: Path) -> None:
    """By the authority of the settings and no other; and not in the clear."""
    async with tls_front(temporal_server.address, ca_file.parent) as address:
        assert await version(address, Settings(temporal_ca_file=ca_file))
        for settings in (Settings(temporal_ca_file=other_ca_file), Settings(temporal_tls=True), Settings()):
            with pytest.raises(DependencyDownError):
                await version(address, settings)


async def test_temporal_may_ask_who_we_are(temporal_server: TemporalStatus, ca_file: Path) -> None:
    """Mutual TLS, as Temporal Cloud wants it."""
    certificate = ca_file.with_name("temporal.pem")
    known = {"temporal_cert_file": certificate, "temporal_key_file": certificate.with_suffix(".key")}
    async with tls_front(temporal_server.address, ca_file.parent, client_ca=ca_file) as address:
        assert await version(address, Settings(temporal_ca_file=ca_file, **known))
        with pytest.raises(DependencyDownError):
            await version(address, Settings(temporal_ca_file=ca_file))


def test_variables_are_those_of_the_temporal_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One environment for both; a file that is not there is told by its name."""
    monkeypatch.setenv("TEMPORAL_TLS_SERVER_CA_CERT_PATH", str(tmp_path / "ca.pem"))
    with pytest.raises(CoatcheckError, match=r"ca\.pem cannot be read"):
        tls_config(Settings())
