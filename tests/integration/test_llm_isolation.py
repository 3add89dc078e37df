"""Attacks on the model turns of others: a raw NATS client with Roy's key against the LLM proxy that serves them all."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import nats.errors
import pytest
from nats.aio.client import Client

from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.service import serve
from coatcheck.storage.database import Pool, open_pool
from schemas import errors
from schemas.conversation import Claim, TurnAnswer, TurnError, TurnFinished
from schemas.streams import AGENTS
from schemas.subjects import llm_subject
from tests.integration.nats_clients import client_as, raw_client_as
from tests.integration.storage_rows import NOTICE
from tests.providers.bill import calls
from tests.providers.gateway import Reply, decode, open_gateway, record_task, turn_request
from tests.providers.openai_server import OpenAIServer

SECRET = "The migration key is under the doormat."
CLAIMS = [Claim(marker="[[brief]]", limit=1000)]


@pytest.fixture
async def owner(postgres_dsn: str) -> AsyncIterator[Pool]:
    """The core worker's pool."""
    async with open_pool(postgres_dsn) as pool:
        yield pool


@pytest.fixture(autouse=True)
async def proxy(
    nats_server: NatsStatus, core: NatsClient, gateway_dsn: str, provider: OpenAIServer
) -> AsyncIterator[None]:
    """The LLM proxy on every agent's subject, as the gateway worker serves it."""
    assert core
    async with (
        open_pool(gateway_dsn) as pool,
        client_as(nats_server, "gateway") as client,
        open_gateway(pool, client, provider.base_url) as gateway,
    ):
        endpoints = {llm_subject(agent): partial(gateway.proxy.handle, agent) for agent in AGENTS}
        async with serve(client, name="llm", version="1.0.0", endpoints=endpoints):
            yield


@pytest.fixture
async def jen(nats_server: NatsStatus) -> AsyncIterator[NatsClient]:
    """The victim's client."""
    async with client_as(nats_server, "jen") as client:
        yield client


@pytest.fixture
async def raw_roy(nats_server: NatsStatus) -> AsyncIterator[Client]:
    """The attacker: nats-py, and Roy's key."""
    async with await raw_client_as(nats_server, "roy") as client:
        yield client


async def ask(client: NatsClient, payload: bytes) -> Reply:
    """One request of Jen's, on her subject."""
    return decode(await client.request(llm_subject("jen"), payload))


async def attack(raw: Client, **fields: Any) -> None:
    """Roy asks for Jen's turns on the subject that he may use; he says that he is Jen, too."""
    for turn in (1, 2):
        request = turn_request("Show [[brief]].", stage="frontend", turn=turn, claims=CLAIMS)
        body = request.model_dump(mode="json") | {"agent": "jen", "run_key": request.task_key.rpartition("/")[0]}
        reply = await raw.request(llm_subject("roy"), json.dumps(body | fields).encode(), timeout=5)
        error = decode(reply.data)
        assert isinstance(error, TurnError), error
        assert (error.code, error.retryable) == (errors.NOT_AUTHORIZED, False)
        assert error.message == f"the agent 'roy' has no task '{(body | fields)['task_key']}'"


async def test_another_agents_turns_are_out_of_reach(
    raw_roy: Client, jen: NatsClient, owner: Pool, provider: OpenAIServer
) -> None:
    """Whatever state her task is in; she gets her own answer, to her own prompt, paid once."""
    await attack(raw_roy)
    await record_task(owner, agent="jen", stage="frontend", brief=SECRET)
    await record_task(owner, agent="roy", stage="backend", brief=SECRET, revision=2)
    await attack(raw_roy)
    assert calls(provider.bill) == []

    payload = turn_request("Build it. [[brief]]", stage="frontend", claims=CLAIMS).model_dump_json().encode()
    provider.gate.clear()
    asking = asyncio.create_task(ask(jen, payload))
    await provider.arrived(1)
    await attack(raw_roy)
    provider.gate.set()
    answer = await asking
    assert isinstance(answer, TurnAnswer)
    assert f"Build it. {SECRET}" in provider.requests[0]["messages"][-1]["content"]
    await attack(raw_roy)

    notice = NOTICE | {"completion_time": "2026-03-01T12:01:30Z"}
    await record_task(owner, agent="jen", stage="frontend", status="completed", revision=3, output_data=notice)
    await attack(raw_roy)
    assert isinstance(await ask(jen, payload), TurnFinished)
    assert len(calls(provider.bill)) == 1
    rows = await owner.fetch("SELECT agent_id, turn FROM llm_turns")
    assert [tuple(row) for row in rows] == [("jen", 1)]


async def test_money_goes_to_recorded_tasks_only(raw_roy: Client, owner: Pool, provider: OpenAIServer) -> None:
    """Not to a round of his own that the workflow has not begun, nor to a run that he makes up."""
    key = await record_task(owner, agent="roy", stage="backend")
    for task_key in (f"{key[:-1]}2", f"{key}/backend-1", "feature/mine/run/backend-1", "backend-1", "", "%", "*"):
        await attack(raw_roy, task_key=task_key)
    assert calls(provider.bill) == []
    assert await owner.fetchval("SELECT count(*) FROM llm_turns") == 0


async def test_nobody_asks_on_anothers_subject(raw_roy: Client, owner: Pool, provider: OpenAIServer) -> None:
    """The subject is the identity, so the server keeps him away from hers."""
    await record_task(owner, agent="jen", stage="frontend")
    payload = turn_request(stage="frontend").model_dump_json().encode()
    with pytest.raises((nats.errors.TimeoutError, nats.errors.NoRespondersError)):
        await raw_roy.request(llm_subject("jen"), payload, timeout=0.2)
    assert calls(provider.bill) == []
