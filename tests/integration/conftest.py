"""Fixtures on the shared NATS server."""

from collections.abc import AsyncIterator

import pytest

from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.accounts import LOGS
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.streams import ensure_streams
from schemas.streams import AGENTS, STREAMS, bucket_streams
from tests.integration.nats_clients import client_as


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
