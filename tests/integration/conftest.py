"""Clients of the shared NATS server, and what a gateway stands between: its pool, its NATS client, the provider."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coatcheck.gateway import llm_proxy, turns
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.accounts import LOGS
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.streams import ensure_streams
from coatcheck.storage.database import Pool, open_pool
from schemas.streams import AGENT_STATE_STREAM, AGENTS, STREAMS, bucket_streams
from tests.integration.nats_clients import client_as
from tests.providers.gateway import record_task
from tests.providers.openai_server import OpenAIServer


@pytest.fixture(scope="module")
async def core(nats_server: NatsStatus) -> AsyncIterator[NatsClient]:
    """The core worker's client; every stream and bucket exists.

    Not for the session: while other files run tests that are not async, the loop stands still, and a client that has
    answered no ping for 20 s is cut off.
    """
    async with client_as(nats_server, "core") as client:
        await ensure_streams(client, [*STREAMS, *bucket_streams(AGENTS), *LOGS])
        yield client


@pytest.fixture
async def roy(nats_server: NatsStatus, core: NatsClient) -> AsyncIterator[NatsClient]:
    """The backend agent's client."""
    assert core
    async with client_as(nats_server, "roy") as client:
        yield client


@pytest.fixture
async def cynthia(nats_server: NatsStatus, core: NatsClient) -> AsyncIterator[NatsClient]:
    """The research agent's client."""
    assert core
    async with client_as(nats_server, "cynthia") as client:
        yield client


@pytest.fixture
async def observer(nats_server: NatsStatus, core: NatsClient) -> AsyncIterator[NatsClient]:
    """The read-only identity's client."""
    assert core
    async with client_as(nats_server, "observer") as client:
        yield client


@pytest.fixture
async def owner(postgres_dsn: str) -> AsyncIterator[Pool]:
    """A pool of the core worker, which has recorded that Sylvia's critique is running."""
    async with open_pool(postgres_dsn) as pool:
        await record_task(pool)
        yield pool


@pytest.fixture
async def pool(gateway_dsn: str, owner: Pool) -> AsyncIterator[Pool]:
    """A pool as a gateway opens it."""
    assert owner
    async with open_pool(gateway_dsn) as pool:
        yield pool


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[OpenAIServer]:
    """The provider; competent until a test scripts it."""
    async with OpenAIServer(bill=tmp_path / "bill.jsonl") as server:
        yield server


@pytest.fixture(scope="module")
async def nats(nats_server: NatsStatus, core: NatsClient) -> AsyncIterator[NatsClient]:
    """A gateway's own client; every stream exists, and the bucket of the breakers."""
    await ensure_streams(core, [AGENT_STATE_STREAM])
    async with client_as(nats_server, "gateway") as client:
        yield client


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the proxy answer and ask again soon."""
    monkeypatch.setattr(turns, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(turns, "BUSY_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(llm_proxy, "BEAT_SECONDS", 0.05)
