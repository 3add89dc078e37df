"""Request-reply: concurrent, discoverable, drained on stop, back after a closed connection."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from coatcheck.errors import MessagingUnavailableError, NotAuthorizedError
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.service import serve
from tests.integration.nats_clients import client_as
from tests.integration.test_nats_client import close_by_server

SUBJECT = "agog.svc.llm.roy"


@pytest.fixture
async def gateway(nats_server: NatsStatus, core: NatsClient) -> AsyncIterator[NatsClient]:
    """The serving identity's client."""
    assert core
    async with client_as(nats_server, "gateway") as client:
        yield client


async def echo(payload: bytes) -> bytes:
    """The simplest handler."""
    return payload


async def test_requests_are_answered_at_the_same_time(gateway: NatsClient, roy: NatsClient) -> None:
    """Each of the ten handlers waits for the nine others."""
    barrier = asyncio.Barrier(10)

    async def together(payload: bytes) -> bytes:
        await barrier.wait()
        return b"answer to " + payload

    async with serve(gateway, name="llm", version="1.0.0", endpoints={SUBJECT: together}):
        replies = await asyncio.gather(*(roy.request(SUBJECT, b"%d" % number) for number in range(10)))
    assert replies == [b"answer to %d" % number for number in range(10)]


async def test_the_number_in_hand_is_bounded(gateway: NatsClient, roy: NatsClient) -> None:
    """The rest waits; nothing is refused or lost."""
    in_hand = most = 0

    async def count(payload: bytes) -> bytes:
        nonlocal in_hand, most
        in_hand += 1
        most = max(most, in_hand)
        await asyncio.sleep(0.01)
        in_hand -= 1
        return payload

    async with serve(gateway, name="llm", version="1.0.0", endpoints={SUBJECT: count}, max_concurrent=3):
        await asyncio.gather(*(roy.request(SUBJECT, b"x") for _ in range(20)))
    assert most == 3


async def test_each_agent_reaches_its_own_endpoint(gateway: NatsClient, roy: NatsClient, cynthia: NatsClient) -> None:
    """The handler learns who asks from the subject, never from the body."""

    def answers(agent: str) -> "NatsHandler":
        return NatsHandler(agent)

    endpoints = {f"agog.svc.llm.{agent}": answers(agent).handle for agent in ("roy", "cynthia")}
    async with serve(gateway, name="llm", version="1.0.0", endpoints=endpoints):
        assert await roy.request(SUBJECT, b"") == b"roy"
        assert await cynthia.request("agog.svc.llm.cynthia", b"") == b"cynthia"
        with pytest.raises(NotAuthorizedError):
            await cynthia.request(SUBJECT, b"")


class NatsHandler:
    """Answers with the agent's name."""

    def __init__(self, agent: str) -> None:
        self._agent = agent

    async def handle(self, _: bytes) -> bytes:
        """Answer."""
        return self._agent.encode()


async def test_standard_tools_find_it(gateway: NatsClient, core: NatsClient, roy: NatsClient) -> None:
    """The micro-services protocol: ping, info and stats, also from the hub's account."""
    async with serve(gateway, name="llm", version="1.2.3", endpoints={SUBJECT: echo}):
        await roy.request(SUBJECT, b"x")
        assert json.loads(await core.request("$SRV.PING.llm", b""))["version"] == "1.2.3"
        [endpoint] = json.loads(await core.request("$SRV.INFO.llm", b""))["endpoints"]
        assert endpoint["subject"] == SUBJECT
        [stats] = json.loads(await core.request("$SRV.STATS.llm", b""))["endpoints"]
        assert stats["num_requests"] == 1


async def test_a_handlers_error_is_an_error_reply(gateway: NatsClient, roy: NatsClient) -> None:
    """At once, retryable, and without the text, which may hold a key."""

    async def fail(_: bytes) -> bytes:
        raise RuntimeError("the key sk-123 was refused")

    async def too_much(_: bytes) -> bytes:
        return b"x" * 11_000_000

    for handler, name in ((fail, "RuntimeError"), (too_much, "ValueError")):
        async with serve(gateway, name="llm", version="1.0.0", endpoints={SUBJECT: handler}):
            with pytest.raises(MessagingUnavailableError, match=name) as refused:
                await roy.request(SUBJECT, b"x", timeout=30)
            assert "sk-123" not in str(refused.value)


async def test_stopping_finishes_what_is_in_hand(gateway: NatsClient, roy: NatsClient) -> None:
    """The request in hand is answered, the next one finds nobody; whoever takes too long is cancelled."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(payload: bytes) -> bytes:
        begun.set()
        await go_on.wait()
        return payload

    async with serve(gateway, name="llm", version="1.0.0", endpoints={SUBJECT: slow}):
        request = asyncio.create_task(roy.request(SUBJECT, b"in hand"))
        await begun.wait()
        asyncio.get_running_loop().call_later(0.05, go_on.set)
    assert await request == b"in hand"
    with pytest.raises(MessagingUnavailableError, match="nobody answers"):
        await roy.request(SUBJECT, b"too late")
    begun.clear()
    go_on.clear()
    async with serve(gateway, name="llm", version="1.0.0", endpoints={SUBJECT: slow}, drain_seconds=0.05):
        request = asyncio.create_task(roy.request(SUBJECT, b"never", timeout=1))
        await begun.wait()
    with pytest.raises(MessagingUnavailableError, match="no reply"):
        await request


async def test_it_is_back_after_a_closed_connection(gateway: NatsClient, roy: NatsClient) -> None:
    """On the rebuilt client; requests in between are retryable errors."""
    async with serve(gateway, name="llm", version="1.0.0", endpoints={SUBJECT: echo}):
        for number in range(3):
            await close_by_server(gateway)
            async with asyncio.timeout(10):
                while True:
                    try:
                        assert await roy.request(SUBJECT, b"%d" % number, timeout=1) == b"%d" % number
                        break
                    except MessagingUnavailableError:
                        await asyncio.sleep(0.01)
    with pytest.raises(MessagingUnavailableError, match="nobody answers"):
        await roy.request(SUBJECT, b"x")


async def test_two_servers_share(nats_server: NatsStatus, gateway: NatsClient, roy: NatsClient) -> None:
    """Each request is answered by one of them."""
    handled = [0, 0]

    async def first(payload: bytes) -> bytes:
        handled[0] += 1
        return payload

    async def second(payload: bytes) -> bytes:
        handled[1] += 1
        return payload

    async with (
        client_as(nats_server, "gateway") as other,
        serve(gateway, name="llm", version="1.0.0", endpoints={SUBJECT: first}),
        serve(other, name="llm", version="1.0.0", endpoints={SUBJECT: second}),
    ):
        await asyncio.gather(*(roy.request(SUBJECT, b"x") for _ in range(40)))
    assert sum(handled) == 40
    assert all(handled)


async def test_serving_elsewhere_is_refused(gateway: NatsClient, roy: NatsClient) -> None:
    """An agent cannot serve, a gateway only its own services; nothing stays subscribed."""
    with pytest.raises(NotAuthorizedError):
        async with serve(gateway, name="ledger", version="1.0.0", endpoints={"agog.svc.ledger.roy": echo}):
            pass
    with pytest.raises(NotAuthorizedError):
        async with serve(roy, name="llm", version="1.0.0", endpoints={SUBJECT: echo}):
            pass
    with pytest.raises(MessagingUnavailableError, match="nobody answers"):
        await roy.request(SUBJECT, b"x")
