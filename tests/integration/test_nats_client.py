"""The client survives what ends nats-py's: oversize messages, kills, hung servers. Nothing is lost or stored twice."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
from nats.aio.msg import Msg

from coatcheck.errors import (
    DeliverableTooLargeError,
    MessagingRefusedError,
    MessagingUnavailableError,
    StreamMissingError,
)
from coatcheck.localstack import LocalStack
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging import client as client_module
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.connection import Connection
from coatcheck.messaging.streams import ensure_streams, stream_config
from schemas.streams import STREAMS, StreamSpec
from tests.integration.nats_clients import client_as
from tests.standstill import stopped

BACKEND = "agog_features_backend"
SUBJECT = "agog.deliverables.roy.backend.client"


async def close_by_server(client: NatsClient) -> None:
    """Send what nats-py lets through and the server closes the connection for: payload and headers over the limit."""
    connection = await client._live()
    raw = connection.raw
    await raw.publish(SUBJECT, b"x" * raw.max_payload, headers={"a": "b"})
    async with asyncio.timeout(10):
        while connection.usable:
            await asyncio.sleep(0)


async def count(core: NatsClient, prefix: str) -> int:
    """How many messages the backend stream has under a subject prefix."""
    info = await core.api(f"STREAM.INFO.{BACKEND}", {"subjects_filter": f"{prefix}.>"})
    return sum((info["state"].get("subjects") or {}).values())


async def test_a_closed_client_is_rebuilt(core: NatsClient, roy: NatsClient) -> None:
    """By itself, with its subscriptions and hooks, before anybody asks."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    connections: asyncio.Queue[Connection] = asyncio.Queue()

    async def hear(message: Msg) -> None:
        heard.put_nowait(message.data)

    async def note(connection: Connection) -> None:
        connections.put_nowait(connection)

    await roy.subscribe("_INBOX_roy.mine.*", hear)
    await roy.on_connect(note)
    first = await connections.get()
    started = time.perf_counter()
    await close_by_server(roy)
    async with asyncio.timeout(5):
        second = await connections.get()
    assert second is not first
    assert time.perf_counter() - started < 2
    assert (await roy.publish(SUBJECT, b"{}", message_id="rebuilt", stream=BACKEND)).sequence
    reply = await roy.api(f"STREAM.INFO.{BACKEND}")
    assert reply["config"]["name"] == BACKEND
    await second.raw.publish(f"JS.hub.API.STREAM.INFO.{BACKEND}", reply="_INBOX_roy.mine.x")
    async with asyncio.timeout(5):
        assert b"stream_info_response" in await heard.get()
    assert core


async def test_publishers_never_notice_a_closed_client(core: NatsClient, roy: NatsClient) -> None:
    """Fifty publishes around five closes: each is acknowledged, each is stored once."""

    async def publish(number: int) -> None:
        await roy.publish(f"{SUBJECT}.closes.{number}", b"x" * 50_000, message_id=f"closes-{number}", stream=BACKEND)

    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(publish(number))
            if number % 10 == 9:
                await close_by_server(roy)
    assert await count(core, f"{SUBJECT}.closes") == 50


async def test_a_request_in_flight_fails_at_once(nats_server: NatsStatus, core: NatsClient, roy: NatsClient) -> None:
    """With a retryable error, instead of waiting for a reply that cannot come."""
    asked = asyncio.Event()

    async def never_answer(_: Msg) -> None:
        asked.set()

    async with client_as(nats_server, "gateway") as gateway:
        await gateway.subscribe("agog.svc.llm.roy", never_answer)
        request = asyncio.create_task(roy.request("agog.svc.llm.roy", b"{}", timeout=60))
        await asked.wait()
        started = time.perf_counter()
        await close_by_server(roy)
        with pytest.raises(MessagingUnavailableError, match="maximum payload"):
            await request
        assert time.perf_counter() - started < 2
        asked.clear()
        request = asyncio.create_task(roy.request("agog.svc.llm.roy", b"{}", timeout=60))
        await asked.wait()
        await roy.close()
        with pytest.raises(MessagingUnavailableError, match="closed"):
            await request
    assert core


async def test_no_reply_and_nobody_to_reply(nats_server: NatsStatus, roy: NatsClient) -> None:
    """A time-out takes as long as asked for; an empty subject is known at once."""
    started = time.perf_counter()
    with pytest.raises(MessagingUnavailableError, match="nobody answers"):
        await roy.request("agog.svc.llm.roy", b"{}", timeout=30)
    assert time.perf_counter() - started < 1

    async def never_answer(_: Msg) -> None: ...

    async with client_as(nats_server, "gateway") as gateway:
        await gateway.subscribe("agog.svc.llm.roy", never_answer)
        with pytest.raises(MessagingUnavailableError, match=r"no reply on agog.svc.llm.roy within 0.2 s"):
            await roy.request("agog.svc.llm.roy", b"{}", timeout=0.2)


async def test_messages_reach_subscribers_until_they_unsubscribe(core: NatsClient) -> None:
    """Plain publish and subscribe."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def hear(message: Msg) -> None:
        heard.put_nowait(message.data)

    subscription = await core.subscribe("test.plain.*", hear)
    await core.send("test.plain.a", b"1", headers={"X": "y"})
    async with asyncio.timeout(5):
        assert await heard.get() == b"1"
    await core.unsubscribe(subscription)
    await core.send("test.plain.a", b"2")
    assert heard.empty()


BAD_SUBJECTS = [
    "",
    "a b",
    "a\r\nPUB x 0",
    "agog.deliverables.roy.*.x",
    "agog.deliverables.roy.>",
    "a..b",
    ".a",
    "ä",
    "x" * 5000,
]
BAD_HEADERS = [{"X": "ü"}, {"X": "a\r\nNats-Msg-Id: forged"}, {"X": " spaces "}, {"X": "x" * 70_000}]


@pytest.mark.parametrize("subject", BAD_SUBJECTS)
async def test_subjects_that_would_close_the_client_are_refused_here(roy: NatsClient, subject: str) -> None:
    """A subject of 5 KB closes a connection under everybody who uses it."""
    with pytest.raises(ValueError, match="subject"):
        await roy.publish(subject, b"{}", message_id="bad-subject", stream=BACKEND)
    with pytest.raises(ValueError, match="subject"):
        await roy.send(subject, b"{}")
    assert (await roy.api(f"STREAM.INFO.{BACKEND}"))["state"]


@pytest.mark.parametrize("headers", BAD_HEADERS, ids=["unicode", "line break", "spaces", "70 KB"])
async def test_headers_that_would_not_survive_are_refused_here(roy: NatsClient, headers: dict[str, str]) -> None:
    """nats-py would replace, strip or corrupt them in silence."""
    with pytest.raises(ValueError, match="header"):
        await roy.publish(SUBJECT, b"{}", message_id="bad-header", stream=BACKEND, headers=headers)


async def test_the_callers_headers_stay_as_they_are(roy: NatsClient) -> None:
    """nats-py writes the expected stream into them."""
    headers = {"X-Own": "1"}
    await roy.publish(SUBJECT, b"{}", message_id="own-headers", stream=BACKEND, headers=headers)
    assert headers == {"X-Own": "1"}


async def test_the_size_limit_is_the_servers(roy: NatsClient) -> None:
    """Its `max_payload` minus the room for headers, to the byte, and the client lives on."""
    limit = await roy.max_message_bytes()
    assert limit == 10 * 1024 * 1024 - 64 * 1024
    assert await roy.publish(SUBJECT, b"x" * limit, message_id="just-fits", stream=BACKEND)
    with pytest.raises(DeliverableTooLargeError):
        await roy.publish(SUBJECT, b"x" * (limit + 1), message_id="too-large", stream=BACKEND)
    with pytest.raises(DeliverableTooLargeError):
        await roy.request("agog.svc.llm.roy", b"x" * (limit + 1))
    assert await roy.publish(SUBJECT, b"{}", message_id="after-too-large", stream=BACKEND)


async def test_errors_of_jetstream_are_typed(core: NatsClient, roy: NatsClient) -> None:
    """Each by its own code."""
    with pytest.raises(StreamMissingError):
        await core.fetch_by_sequence("no_such_stream", 1)
    with pytest.raises(MessagingRefusedError) as refused:
        await roy.publish(SUBJECT, b"{}", message_id="wrong-stream", stream="agog_features_qa")
    assert refused.value.err_code == 10060


async def test_a_stream_that_is_late_is_waited_for(nats_server: NatsStatus, core: NatsClient) -> None:
    """A publish meets a stream without a leader; within its patience it goes through, then it gives up."""
    spec = StreamSpec(name="test_late", subjects=("test.late.>",), agent="core")
    async with client_as(nats_server, "core", publish_patience_seconds=0.3) as hasty:
        with pytest.raises(MessagingUnavailableError, match="may or may not be stored"):
            await hasty.publish("test.late.x", b"{}", message_id="late", stream=spec.name)
    publish = asyncio.create_task(core.publish("test.late.x", b"{}", message_id="late", stream=spec.name))
    await core.send("test.unrelated", b"")  # lets the first attempt fail
    await core.api(f"STREAM.CREATE.{spec.name}", stream_config(spec))
    assert (await publish).sequence == 1


async def test_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Typed, bounded, and without the password that the URL may hold."""
    monkeypatch.setattr(client_module, "CONNECT_TIMEOUT_SECONDS", 0.3)
    with pytest.raises(MessagingUnavailableError, match=r"127\.0\.0\.1:1 does not answer") as refused:
        await NatsClient("nats://user:secret@127.0.0.1:1", name="nobody").__aenter__()
    assert "secret" not in str(refused.value)
    with pytest.raises(MessagingUnavailableError, match="not open"):
        await NatsClient("nats://127.0.0.1:1", name="nobody").send("x", b"")


@dataclass
class OwnServer:
    """A server that the test may kill, and two clients on it."""

    stack: LocalStack
    status: NatsStatus
    core: NatsClient
    roy: NatsClient


@pytest.fixture
async def own_server(new_stack: Callable[..., LocalStack]) -> AsyncIterator[OwnServer]:
    """With every stream."""
    stack = await asyncio.to_thread(new_stack, servers=("nats",), workers=())
    status = stack.status().nats
    assert status is not None
    async with client_as(status, "core") as core, client_as(status, "roy") as roy:
        await ensure_streams(core, STREAMS)
        yield OwnServer(stack, status, core, roy)


async def test_killed_server(own_server: OwnServer) -> None:
    """Kill -9 under load: every acknowledged message is there once, publishers only wait, subscriptions come back."""
    core, roy, stack = own_server.core, own_server.roy, own_server.stack
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def hear(message: Msg) -> None:
        heard.put_nowait(message.data)

    await core.subscribe("test.after.kill", hear)
    acked: list[int] = []
    killed = asyncio.Event()

    async def publish(worker: int) -> None:
        number = 0
        while not killed.is_set() or number < 20:
            subject = f"{SUBJECT}.killed.{worker}-{number}"
            ack = await roy.publish(subject, b"x" * 20_000, message_id=f"{worker}-{number}", stream=BACKEND)
            acked.append(ack.sequence)
            number += 1

    async with asyncio.TaskGroup() as group:
        for worker in range(8):
            group.create_task(publish(worker))
        for _ in range(3):
            async with asyncio.timeout(20):
                before = len(acked)
                while len(acked) < before + 20:
                    await asyncio.sleep(0)
            pid = stack.kill("nats")
            await asyncio.to_thread(stack.wait_running, "nats", other_than=pid)
        killed.set()
    assert len(set(acked)) == len(acked)
    assert await count(core, f"{SUBJECT}.killed") == len(acked)
    await core.send("test.after.kill", b"still here")
    async with asyncio.timeout(10):
        assert await heard.get() == b"still here"


async def test_hung_server(own_server: OwnServer) -> None:
    """A publish that times out is indeterminate; the same id again, once the server goes on, is stored once."""
    core, roy, stack = own_server.core, own_server.roy, own_server.stack
    async with client_as(own_server.status, "roy", publish_patience_seconds=1.0) as hasty:
        async with stopped(stack.pid("nats")):
            started = time.perf_counter()
            with pytest.raises(MessagingUnavailableError, match="may or may not be stored"):
                await hasty.publish(f"{SUBJECT}.hung.1", b"{}", message_id="hung", stream=BACKEND)
            assert 0.9 < time.perf_counter() - started < 3
            patient = asyncio.create_task(roy.publish(f"{SUBJECT}.hung.1", b"{}", message_id="hung", stream=BACKEND))
            large = asyncio.create_task(
                roy.publish(f"{SUBJECT}.hung.2", b"x" * 9_000_000, message_id="hung-large", stream=BACKEND)
            )
            done, _ = await asyncio.wait({patient, large}, timeout=0.5)
            assert not done
        assert (await patient).sequence
        assert (await large).sequence
    assert await count(core, f"{SUBJECT}.hung") == 2
