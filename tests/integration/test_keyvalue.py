"""The bucket `agent_state`: compare and set across accounts, read without consumers, followed on a plain subject."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from coatcheck.errors import DeliverableTooLargeError, KeyChangedError, NotAuthorizedError, StreamMissingError
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.client import NatsClient, PublishAck
from coatcheck.messaging.keyvalue import kv_follow, kv_get, kv_put
from coatcheck.messaging.streams import ensure_streams
from schemas.streams import AGENT_STATE, AGENT_STATE_STREAM, kv_stream_name
from tests.integration.nats_clients import client_as, raw_client_as


@pytest.fixture
async def gateway(nats_server: NatsStatus, core: NatsClient) -> AsyncIterator[NatsClient]:
    """The identity that puts the state of models."""
    assert core
    async with client_as(nats_server, "gateway") as client:
        yield client


async def test_put_and_get_across_accounts(
    gateway: NatsClient, roy: NatsClient, observer: NatsClient, core: NatsClient
) -> None:
    """The gateway puts; agents, the observer, core and it itself read the same value and revision."""
    assert await kv_get(gateway, AGENT_STATE, "model.round-trip") is None
    revision = await kv_put(gateway, AGENT_STATE, "model.round-trip", b"open")
    for reader in (gateway, roy, observer, core):
        assert await kv_get(reader, AGENT_STATE, "model.round-trip") == (b"open", revision)


async def test_compare_and_set(gateway: NatsClient) -> None:
    """Only on the revision that was read; 0 for a key that is not there."""
    key = "model.compare=3Aset"
    first = await kv_put(gateway, AGENT_STATE, key, b"1", expected_revision=0)
    with pytest.raises(KeyChangedError, match="revision 0"):
        await kv_put(gateway, AGENT_STATE, key, b"again", expected_revision=0)
    second = await kv_put(gateway, AGENT_STATE, key, b"2", expected_revision=first)
    with pytest.raises(KeyChangedError):
        await kv_put(gateway, AGENT_STATE, key, b"late", expected_revision=first)
    assert await kv_get(gateway, AGENT_STATE, key) == (b"2", second)


async def test_of_many_writers_at_once_one_wins(gateway: NatsClient, core: NatsClient) -> None:
    """Every round of 20 writers puts one value; counting this way loses none."""

    async def count(client: NatsClient) -> None:
        while True:
            value, revision = await kv_get(client, AGENT_STATE, "model.counter") or (b"0", 0)
            try:
                await kv_put(
                    client, AGENT_STATE, "model.counter", str(int(value) + 1).encode(), expected_revision=revision
                )
            except KeyChangedError:
                continue
            return

    await asyncio.gather(*(count(client) for client in (gateway, core) for _ in range(10)))
    counted = await kv_get(core, AGENT_STATE, "model.counter")
    assert counted is not None
    assert counted[0] == b"20"


class LosesFirstAck:
    """A client whose first publish is stored and whose acknowledgement is lost; its own retry sends it once more."""

    def __init__(self, client: NatsClient, between: Callable[[], Awaitable[object]]) -> None:
        self._client = client
        self._between = between

    async def publish(self, *args: Any, **options: Any) -> PublishAck:
        """Twice, as after a time-out."""
        await self._client.publish(*args, **options)
        await self._between()
        return await self._client.publish(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


async def test_a_put_whose_ack_was_lost_does_not_conflict_with_itself(gateway: NatsClient) -> None:
    """The server refuses the repeated attempt for the revision that the first one made; it is the same put."""

    async def nothing() -> None: ...

    flaky: Any = LosesFirstAck(gateway, nothing)
    first = await kv_put(flaky, AGENT_STATE, "model.repeated", b"1", expected_revision=0)
    second = await kv_put(flaky, AGENT_STATE, "model.repeated", b"2", expected_revision=first)
    assert await kv_get(gateway, AGENT_STATE, "model.repeated") == (b"2", second)

    async def overtake() -> None:
        await kv_put(gateway, AGENT_STATE, "model.repeated", b"later")

    overtaken: Any = LosesFirstAck(gateway, overtake)
    third = await kv_put(overtaken, AGENT_STATE, "model.repeated", b"3", expected_revision=second)
    assert (await gateway.fetch_by_sequence(kv_stream_name(AGENT_STATE), third)).data == b"3"
    with pytest.raises(KeyChangedError):
        await kv_put(flaky, AGENT_STATE, "model.repeated", b"4", expected_revision=third)


async def test_a_deleted_key_is_not_there(core: NatsClient, nats_server: NatsStatus) -> None:
    """A marker of the standard client is read as absence, and a put for an absent key goes over it."""
    await kv_put(core, AGENT_STATE, "model.deleted", b"1")
    async with await raw_client_as(nats_server, "core") as raw:
        await (await raw.jetstream().key_value(AGENT_STATE)).delete("model.deleted")
    assert await kv_get(core, AGENT_STATE, "model.deleted") is None
    revision = await kv_put(core, AGENT_STATE, "model.deleted", b"2", expected_revision=0)
    assert await kv_get(core, AGENT_STATE, "model.deleted") == (b"2", revision)


async def test_the_standard_client_reads_it(core: NatsClient, nats_server: NatsStatus) -> None:
    """The layout is that of every NATS client, with a history of 8."""
    for number in range(10):
        await kv_put(core, AGENT_STATE, "model.standard", str(number).encode())
    async with await raw_client_as(nats_server, "core") as raw:
        bucket = await raw.jetstream().key_value(AGENT_STATE)
        assert (await bucket.get("model.standard")).value == b"9"
        history = [entry.value for entry in await bucket.history("model.standard")]
        assert history == [str(number).encode() for number in range(2, 10)]


async def test_changes_are_followed_without_a_consumer(
    gateway: NatsClient, observer: NatsClient, roy: NatsClient
) -> None:
    """By gateway and observer, with key and revision; agents may not."""
    changes: asyncio.Queue[tuple[str, bytes, int]] = asyncio.Queue()

    async def hear(*change: Any) -> None:
        changes.put_nowait(change)

    for follower in (gateway, observer):
        subscription = await kv_follow(follower, AGENT_STATE, hear, key="model.followed.>")
        revision = await kv_put(gateway, AGENT_STATE, "model.followed.x", b"half-open")
        await kv_put(gateway, AGENT_STATE, "model.elsewhere", b"")
        async with asyncio.timeout(5):
            assert await changes.get() == ("model.followed.x", b"half-open", revision)
        await follower.unsubscribe(subscription)
    assert changes.empty()
    with pytest.raises(NotAuthorizedError):
        await kv_follow(roy, AGENT_STATE, hear)


async def test_who_may_put(gateway: NatsClient, roy: NatsClient, observer: NatsClient) -> None:
    """The gateway the state of models, nobody else anything; nor can anyone forge a change."""
    for client in (roy, observer):
        with pytest.raises(NotAuthorizedError):
            await kv_put(client, AGENT_STATE, "model.x", b"forged")
    for key in ("agent.roy", "other"):
        with pytest.raises(NotAuthorizedError):
            await kv_put(gateway, AGENT_STATE, key, b"forged")
    for client in (gateway, roy, observer):
        with pytest.raises(NotAuthorizedError):
            await client.send("agog.kv.agent_state.model.x", b"forged")


async def test_bounds(gateway: NatsClient, core: NatsClient) -> None:
    """A value has a limit; the bucket is as declared; a missing bucket is named."""
    with pytest.raises(DeliverableTooLargeError):
        await kv_put(gateway, AGENT_STATE, "model.large", bytes(64 * 1024 + 1))
    [status] = await ensure_streams(core, [AGENT_STATE_STREAM])
    assert status.drift == []
    with pytest.raises(StreamMissingError):
        await kv_get(core, "no_such_bucket", "x")
