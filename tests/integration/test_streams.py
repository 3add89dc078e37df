"""Streams: made as the seed says, reported when they differ, never made over recorded state."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from coatcheck.errors import MessagingUnavailableError, MessagingUnsafeError, NotAuthorizedError, StreamMissingError
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.streams import (
    check_sync_always,
    ensure_streams,
    refuse_lost_streams,
    stream_config,
    stream_statuses,
)
from schemas.streams import STREAMS, StreamSpec, StreamStatus
from tests.integration.nats_clients import raw_client_as

SPEC = StreamSpec(name="test_streams", subjects=("test.streams.>",), agent="roy")


@pytest.fixture
async def no_stream(core: NatsClient) -> AsyncIterator[None]:
    """The test's own stream does not exist, before and after."""
    yield
    await core.api(f"STREAM.DELETE.{SPEC.name}")


def test_the_seeds_streams() -> None:
    """Names, subjects and limits are the seed's (003, Agent Streams and Retention)."""
    assert {spec.name: spec.subjects for spec in STREAMS} == {
        "agog_features_research": ("agog.deliverables.cynthia.>",),
        "agog_features_critique": ("agog.deliverables.sylvia.>",),
        "agog_features_backend": ("agog.deliverables.roy.>",),
        "agog_features_frontend": ("agog.deliverables.jen.>",),
        "agog_features_qa": ("agog.deliverables.billy.>",),
        "agog_features_statistics": ("agog.deliverables.priya.>",),
    }


async def test_streams_are_as_declared(core: NatsClient) -> None:
    """As the server itself reports them; a second call changes nothing."""
    first = await ensure_streams(core, STREAMS)
    assert [status.name for status in first] == [spec.name for spec in STREAMS]
    assert all(status.drift == [] for status in first)
    for spec in STREAMS:
        config = (await core.api(f"STREAM.INFO.{spec.name}"))["config"]
        expected = {
            "retention": "limits",
            "storage": "file",
            "compression": "s2",
            "discard": "old",
            "max_msgs": 10_000,
            "max_bytes": 1_073_741_824,
            "max_age": 7 * 86_400 * 10**9,
            "duplicate_window": 7 * 86_400 * 10**9,
            "allow_direct": False,
            "deny_delete": True,
            "deny_purge": True,
        }
        assert expected.items() <= config.items()
    created = [(await core.api(f"STREAM.INFO.{spec.name}"))["created"] for spec in STREAMS]
    await ensure_streams(core, STREAMS)
    assert [(await core.api(f"STREAM.INFO.{spec.name}"))["created"] for spec in STREAMS] == created


@pytest.mark.usefixtures("no_stream")
async def test_many_processes_may_ensure_at_once(core: NatsClient) -> None:
    """Only one creates; all get the same answer."""
    answers = await asyncio.gather(*(ensure_streams(core, [SPEC]) for _ in range(10)))
    assert [answer[0].drift for answer in answers] == [[]] * 10


DRIFTED: list[tuple[dict[str, Any], str]] = [
    ({"max_msgs": 99}, "max_msgs: is 99, should be 10000"),
    ({"max_age": 10**9, "duplicate_window": 10**9}, "max_age: is 1000000000, should be 604800000000000"),
    ({"allow_direct": True}, "allow_direct: is true, should be false"),
    ({"deny_delete": False}, "deny_delete: is false, should be true"),
    ({"storage": "memory", "max_bytes": 1024}, 'storage: is "memory", should be "file"'),
    ({"subjects": ["test.streams.>", "test.more.>"]}, "subjects: is"),
    ({"discard": "new"}, 'discard: is "new", should be "old"'),
    ({"republish": {"src": ">", "dest": "copy.>"}}, "republish: is"),
    ({"allow_msg_ttl": True}, "allow_msg_ttl: is true, should be absent"),
]


@pytest.mark.usefixtures("no_stream")
@pytest.mark.parametrize(("change", "complaint"), DRIFTED, ids=[", ".join(change) for change, _ in DRIFTED])
async def test_drift_is_reported_and_left_alone(core: NatsClient, change: dict[str, Any], complaint: str) -> None:
    """Changing it back could delete data; a person decides."""
    await core.api(f"STREAM.CREATE.{SPEC.name}", {**stream_config(SPEC), **change})
    before = (await core.api(f"STREAM.INFO.{SPEC.name}"))["config"]
    [status] = await ensure_streams(core, [SPEC])
    assert any(line.startswith(complaint) for line in status.drift)
    assert (await core.api(f"STREAM.INFO.{SPEC.name}"))["config"] == before


@pytest.mark.usefixtures("no_stream")
async def test_a_stream_that_is_not_compressed_is_from_now_on(core: NatsClient) -> None:
    """It takes nothing away, unlike all other differences, and what is stored stays."""
    await core.api(f"STREAM.CREATE.{SPEC.name}", {**stream_config(SPEC), "compression": "none"})
    ack = await core.publish("test.streams.kept", b"kept", message_id="kept", stream=SPEC.name)
    [status] = await ensure_streams(core, [SPEC])
    assert (status.drift, status.last_seq) == ([], ack.sequence)
    assert (await core.api(f"STREAM.INFO.{SPEC.name}"))["config"]["compression"] == "s2"
    assert (await core.fetch_by_sequence(SPEC.name, ack.sequence)).data == b"kept"


async def test_missing_streams_are_left_out(core: NatsClient) -> None:
    """A status is of something that exists."""
    statuses = await stream_statuses(core, [*STREAMS, SPEC])
    assert [status.name for status in statuses] == [spec.name for spec in STREAMS]


def status(name: str, last_seq: int) -> StreamStatus:
    """A stream's status."""
    return StreamStatus(name=name, messages=0, bytes=0, first_seq=1, last_seq=last_seq, consumer_count=0)


def test_lost_streams_are_refused() -> None:
    """Gone, emptied or cut short; a stream that nobody remembers may be new."""
    refuse_lost_streams([status("a", 7)], {"a": 7})
    refuse_lost_streams([status("a", 7)], {})
    refuse_lost_streams([], {})
    with pytest.raises(StreamMissingError, match=r"a does not exist, but message 7"):
        refuse_lost_streams([], {"a": 7})
    with pytest.raises(StreamMissingError, match=r"b ends at 6, but message 7"):
        refuse_lost_streams([status("a", 7), status("b", 6)], {"a": 7, "b": 7})


async def test_agents_cannot_create_streams(roy: NatsClient) -> None:
    """Only the core worker ensures them."""
    with pytest.raises(NotAuthorizedError):
        await ensure_streams(roy, [SPEC.model_copy(update={"name": STREAMS[0].name + "_x"})])


async def test_the_observer_sees_every_stream(nats_server: NatsStatus, core: NatsClient) -> None:
    """With a raw client that knows user, password, inbox prefix and API prefix."""
    assert core
    async with await raw_client_as(nats_server, "observer") as raw:
        jetstream = raw.jetstream(prefix=nats_server.users["observer"].js_prefix)
        names = {info.config.name for info in await jetstream.streams_info()}
        assert {spec.name for spec in STREAMS} <= names
        assert await jetstream.find_stream_name_by_subject("agog.deliverables.roy.>") == "agog_features_backend"
        assert (await jetstream.account_info()).streams == len(names)
        assert (await jetstream.stream_info("agog_features_qa")).config.max_msgs == 10_000


async def test_the_server_syncs_every_write(nats_server: NatsStatus) -> None:
    """The product's own configuration passes its own check."""
    await check_sync_always(nats_server.monitor_url)


async def test_a_server_that_does_not_say_is_refused() -> None:
    """No monitor, a dead one, one that answers something else, and one whose server syncs lazily."""
    with pytest.raises(MessagingUnsafeError, match="monitor") as refused:
        await check_sync_always(None)
    assert "sync_interval: always" in str(refused.value.hint)
    with pytest.raises(MessagingUnavailableError):
        await check_sync_always("http://127.0.0.1:1")
    async with _monitor(b"not json") as url:
        with pytest.raises(MessagingUnavailableError):
            await check_sync_always(url)
    async with _monitor(b'{"config": {"sync_interval": 120000000000}}') as url:
        with pytest.raises(MessagingUnsafeError, match="does not sync") as refused:
            await check_sync_always(url)
    assert "sync_interval: always" in str(refused.value.hint)


class _monitor:  # noqa: N801  used as a function
    """Answers every request with one body."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(self._body), self._body))
        await writer.drain()
        writer.close()
        await writer.wait_closed()
