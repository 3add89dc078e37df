"""`EventLog` on a real server: what is published once, read by run and followed without a gap."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from urllib.parse import unquote

import pytest

from coatcheck.errors import DeliverableTooLargeError, MessagingUnavailableError, NotAuthorizedError
from coatcheck.localstack import LocalStack
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.accounts import LOGS
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.events import EventLog, StoredEvent
from coatcheck.messaging.streams import ensure_streams
from schemas.events import Event, UnknownEvent, run_events
from schemas.streams import AUDIT_LOG, MAX_PAYLOAD_BYTES
from tests.integration.event_samples import completed, paused, rounds_of, sample_events, sample_key, tool
from tests.integration.nats_clients import client_as


async def read(log: EventLog, run: str, **options: object) -> list[StoredEvent]:
    """All of a run's events."""
    return [stored async for stored in log.read_run(run, **options)]  # type: ignore[arg-type]


async def test_published_events_are_stored_once_and_in_order(core: NatsClient, observer: NatsClient) -> None:
    """Again, in parts, and by several at once: each is there once; nothing of it is lost on the way."""
    run = sample_key(1000)
    told = sample_events(run, 300)
    log = EventLog(core)
    await log.publish(told)
    await asyncio.gather(*(log.publish(told[number::7]) for number in range(7)), log.publish(told))
    stored = await read(EventLog(observer), run)
    assert [item.event for item in stored] == told
    assert [item.sequence for item in stored] == sorted({item.sequence for item in stored})
    for item in stored:
        assert item.subject == item.event.subject  # type: ignore[union-attr]
        assert item.headers["Nats-Msg-Id"] == item.event.event_id
        assert item.headers["Coatcheck-Schema"] == "coatcheck.event/1"
        about_task = item.event.entity_type == "task"
        assert unquote(item.headers.get("Coatcheck-Task", "")) == (item.event.entity_id if about_task else "")


async def test_names_of_any_alphabet(core: NatsClient, observer: NatsClient) -> None:
    """A workflow id that no header and no subject could carry as it is."""
    run = f"größe * > {chr(0x1F600)}/{sample_key(1).rpartition('/')[2]}"
    events: list[Event] = [paused(run), tool(run, 1)]
    await EventLog(core).publish(events)
    assert [item.event for item in await read(EventLog(observer), run)] == events


async def test_who_may_not_publish_is_told(observer: NatsClient, roy: NatsClient) -> None:
    """At once, and nothing is stored."""
    run = sample_key(1001)
    for client in (observer, roy):
        with pytest.raises(NotAuthorizedError):
            await EventLog(client).publish([paused(run)])
    with pytest.raises(NotAuthorizedError):
        await read(EventLog(roy), run)
    assert await read(EventLog(observer), run) == []


async def test_one_that_can_never_be_stored_is_said_and_the_others_are(core: NatsClient) -> None:
    """The stream takes 64 KiB; a caller that only looked for outages would repeat this for ever."""
    run = sample_key(1002)
    with pytest.raises(DeliverableTooLargeError):
        await EventLog(core).publish([tool(run, 1), paused(run, traceparent="x" * 70_000), tool(run, 2)])
    assert [item.event for item in await read(EventLog(core), run)] == [tool(run, 1), tool(run, 2)]


async def test_types_and_sequences_are_chosen(core: NatsClient, observer: NatsClient) -> None:
    """One type by the server, several by the reader, from a sequence on."""
    run = sample_key(1003)
    told = sample_events(run, 30)
    await EventLog(core).publish(told)
    log = EventLog(observer)
    stored = await read(log, run)
    for types in ({"tool.completed"}, {"tool.completed", "stage.started"}, {"run.failed"}):
        assert await read(log, run, types=types) == [item for item in stored if item.event.event_type in types]
    later = stored[10].sequence
    assert await read(log, run, from_sequence=later) == stored[10:]
    assert await read(log, run, from_sequence=stored[-1].sequence + 1) == []


async def test_what_a_newer_release_tells_is_read(core: NatsClient, observer: NatsClient) -> None:
    """As it is, in its place; what is no event at all is passed over."""
    run = sample_key(1004)
    log = EventLog(core)
    await log.publish([tool(run, 1)])
    newer = json.loads(tool(run, 2).to_wire()) | {"version": 2, "payload": {"shape": "other"}, "mood": "good"}
    subject = tool(run, 2).subject
    await core.publish(subject, json.dumps(newer).encode(), message_id="newer", stream=AUDIT_LOG.name)
    await core.publish(subject, b"{}", message_id="nothing", stream=AUDIT_LOG.name)
    await log.publish([tool(run, 3)])
    stored = await read(EventLog(observer), run)
    assert [type(item.event) for item in stored][1] is UnknownEvent
    unknown = stored[1].event
    assert unknown.model_dump(mode="json")["mood"] == "good"
    assert (unknown.version, unknown.payload, len(stored)) == (2, {"shape": "other"}, 3)


@contextlib.asynccontextmanager
async def following(
    log: EventLog, run: str, count: int, so_far: list[StoredEvent] | None = None
) -> AsyncIterator["asyncio.Task[list[StoredEvent]]"]:
    """Collects the first `count` events of a run in the background; `so_far` can be watched."""
    collected: list[StoredEvent] = [] if so_far is None else so_far

    async def collect() -> list[StoredEvent]:
        async with contextlib.aclosing(log.follow_run(run)) as told:
            async for item in told:
                collected.append(item)
                if len(collected) == count:
                    break
        return collected

    task = asyncio.create_task(collect())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("reader", ["observer", "judge", "core"])
async def test_a_follower_is_woken(nats_server: NatsStatus, core: NatsClient, reader: str) -> None:
    """What is stored first, then what comes, each at once: a look now and then would take a minute for each."""
    run = sample_key(1005 + len(reader))
    told = sample_events(run, 25)
    await EventLog(core).publish(told[:10])
    async with client_as(nats_server, reader) as client, asyncio.timeout(20):
        log = EventLog(client, look_seconds=60)
        collected: list[StoredEvent] = []
        async with following(log, run, 25, collected) as task:
            for number, event in enumerate(told[10:], 11):
                await EventLog(core).publish([event])  # right behind the last one, which was read before
                while len(collected) < number:
                    await asyncio.sleep(0.005)
                await EventLog(core).publish([paused(sample_key(1), f"{reader}-{number}")] if number % 2 else [])
            assert [item.event for item in await task] == told
        assert client._subscriptions == []


async def test_several_follow_while_several_publish(core: NatsClient, observer: NatsClient) -> None:
    """No gap and no repeat between backlog and live, however they meet."""
    runs = [sample_key(1020 + number) for number in range(5)]
    async with contextlib.AsyncExitStack() as stack:
        tasks = []
        publishing = []
        for run in runs:
            told = sample_events(run, 120)
            publishing += [asyncio.create_task(EventLog(core).publish([event])) for event in told]
            tasks.append(await stack.enter_async_context(following(EventLog(observer), run, 120)))
        await asyncio.gather(*publishing)
        async with asyncio.timeout(30):
            for run, task in zip(runs, tasks, strict=True):
                followed = await task
                assert followed == await read(EventLog(observer), run)
                assert {item.event.event_id for item in followed} == {
                    event.event_id for event in sample_events(run, 120)
                }


@pytest.fixture
async def own_nats(new_stack: Callable[..., LocalStack]) -> LocalStack:
    """A server that may be killed."""
    return await asyncio.to_thread(new_stack, servers=("nats",), workers=())


async def test_a_follower_survives_the_server(own_nats: LocalStack) -> None:
    """Killed three times while events are published, and the follower's client is closed for good in between."""
    nats = own_nats.status().nats
    assert nats is not None
    run = sample_key(1)
    told = sample_events(run, 400)
    async with client_as(nats, "core") as core, client_as(nats, "observer") as observer:
        await ensure_streams(core, LOGS)
        await EventLog(core).publish(told[:1])
        collected: list[StoredEvent] = []
        async with following(EventLog(observer, look_seconds=0.5), run, 400, collected) as task:
            while not collected:
                await asyncio.sleep(0.005)
            for number in range(4):
                publishing = asyncio.create_task(_one_by_one(core, told[100 * number : 100 * number + 100]))
                if number < 3:
                    pid = await asyncio.to_thread(own_nats.kill, "nats")
                    await asyncio.to_thread(own_nats.wait_running, "nats", other_than=pid)
                else:
                    await (await observer.connection()).raw.close()
                await publishing
            async with asyncio.timeout(30):
                followed = await task
        assert [item.sequence for item in followed] == sorted({item.sequence for item in followed})
        assert {item.event.event_id for item in followed} == {event.event_id for event in told}
        assert len(await read(EventLog(observer), run)) == 400


async def _one_by_one(core: NatsClient, events: list[Event]) -> None:
    for event in events:
        await EventLog(core).publish([event])


async def test_an_indeterminate_publish_is_said_and_repeated_once(own_nats: LocalStack) -> None:
    """The server is away for longer than the patience; afterwards the same call stores each event once."""
    nats = own_nats.status().nats
    assert nats is not None
    run = sample_key(2)
    told = [*sample_events(run, 60), completed(run)]
    async with client_as(nats, "core", publish_patience_seconds=0.5) as core:
        await ensure_streams(core, LOGS)
        await EventLog(core).publish(told[:20])
        await asyncio.to_thread(own_nats.stop_member, "nats")
        with pytest.raises(MessagingUnavailableError, match="may or may not"):
            await EventLog(core).publish(told)
        with pytest.raises(DeliverableTooLargeError):  # whoever heard of the outage alone would repeat it for ever
            await EventLog(core).publish([*told, paused(run, traceparent="x" * MAX_PAYLOAD_BYTES)])
        await asyncio.to_thread(own_nats.start_member, "nats")
        await EventLog(core).publish(told)
        assert {item.event.event_id for item in await read(EventLog(core), run)} == {item.event_id for item in told}
        assert (await core.api(f"STREAM.INFO.{AUDIT_LOG.name}"))["state"]["messages"] == 61


async def test_one_run_of_5000_is_read_alone_and_within_a_second(own_nats: LocalStack) -> None:
    """The server filters: the reader receives this run's messages and one answer that there are no more."""
    nats = own_nats.status().nats
    assert nats is not None
    runs = [sample_key(number) for number in range(5000)]
    wanted = runs[2500]
    async with client_as(nats, "core") as core, client_as(nats, "observer") as observer:
        await ensure_streams(core, LOGS)
        log = EventLog(core)
        told = sample_events(wanted, 50)
        for number, batch in enumerate(rounds_of([run for run in runs if run != wanted], 2)):
            for start in range(0, 5000, 200):
                await log.publish([*batch[start : start + 200], told[25 * number + start // 200]])
        await log.publish(told)
        connection = (await observer.connection()).raw
        before, started = connection.stats["in_msgs"], time.perf_counter()
        stored = await read(EventLog(observer), wanted)
        seconds, received = time.perf_counter() - started, connection.stats["in_msgs"] - before
        state = (await core.api(f"STREAM.INFO.{AUDIT_LOG.name}", {"subjects_filter": run_events(wanted)}))["state"]
    print(f"{len(stored)} of {state['messages']:,} events: {received} messages received, {1000 * seconds:.0f} ms")
    assert [item.event for item in stored] == told
    assert state["messages"] == 4999 * 2 + 50
    assert received == len(stored) + 1
    assert seconds < 1
