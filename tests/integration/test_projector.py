"""The projector on real servers: the table is the stream, whatever comes and whoever goes away meanwhile."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from coatcheck.errors import MessagingUnavailableError
from coatcheck.events.dead_letters import read_dead_letters
from coatcheck.events.rebuilding import rebuild
from coatcheck.localstack import LocalStack
from coatcheck.messaging.accounts import PROJECTOR
from coatcheck.messaging.streams import stream_config
from coatcheck.storage.events import emptied
from schemas.streams import AUDIT_LOG
from tests.integration.backbone_lab import Backbone, admin, open_backbone
from tests.integration.event_samples import paused, rounds_of, sample_events, sample_key, tool
from tests.integration.nats_clients import client_as

RUN = sample_key(1)


@pytest.fixture
async def backbone(new_stack: Callable[..., LocalStack]) -> AsyncIterator[Backbone]:
    """An audit log and a table of the test's own."""
    async with open_backbone(new_stack) as opened:
        yield opened


def newer(number: int, **changes: Any) -> bytes:
    """An event of a type that only a newer release knows."""
    told = {
        "event_id": f"newer-{number}",
        "event_type": "run.teleported",
        "version": 7,
        "occurrence": str(number),
        "source": "core",
        "entity_id": RUN,
        "correlation_id": RUN,
        "session_id": "feature/sample-1",
        "severity": "info",
        "occurred_at": datetime(2026, 11, 21, tzinfo=UTC).isoformat(),
        "payload": {"to": ["mars"], "fuel": {"litres": number}},
    }
    return json.dumps(told | changes).encode()


async def test_the_table_is_the_stream(backbone: Backbone) -> None:
    """Events of many runs at once, what newer releases tell too, each column as it was told."""
    runs = [sample_key(number) for number in range(20)]
    async with backbone.projecting(batch=64):
        for batch in rounds_of(runs, 40):
            await backbone.log.publish(batch)
        await backbone.store(newer(1), "newer-1")
        known_type = json.loads(paused(RUN, "x").to_wire()) | {"version": 2, "payload": {"new": True}}
        await backbone.store(json.dumps(known_type).encode(), known_type["event_id"])
        status = await backbone.settled()
    assert (status.events, status.dead_letters) == (802, 0)
    rows = await backbone.check_table()
    assert rows[-2]["payload"]["fuel"] == {"litres": 1}
    assert rows[-1]["payload"]["new"] is True


async def test_an_addition_to_a_known_payload_is_kept(backbone: Backbone) -> None:
    """Additions keep the version; a release that does not know them does not drop them from the table."""
    told = json.loads(paused(RUN, "1").to_wire())
    told["payload"]["weather"] = "rain"
    await backbone.store(json.dumps(told).encode(), told["event_id"])
    async with backbone.projecting():
        await backbone.settled()
    assert (await backbone.check_table())[0]["payload"]["weather"] == "rain"


async def test_what_comes_again_changes_nothing(backbone: Backbone) -> None:
    """The whole stream delivered again, and the same event told again after the stream has forgotten its id."""
    await backbone.log.publish(sample_events(RUN, 300))
    async with backbone.projecting():
        await backbone.settled()
    before = await backbone.check_table()
    await backbone.core.api(f"CONSUMER.RESET.{AUDIT_LOG.name}.{PROJECTOR}", {"seq": 1})
    assert (await backbone.status()).lag == 300
    again = sample_events(RUN, 1)[0]
    await backbone.store(again.to_wire(), "forgotten", again.subject)
    async with backbone.projecting():
        assert (await backbone.settled()).dead_letters == 0
    assert await backbone.rows() == before


POISON: list[tuple[str, bytes, str]] = [
    ("not JSON", b"\xff\x00 nonsense", "not an event"),
    ("no object", b"[1, 2]", "not a JSON object"),
    ("no envelope", b'{"event_type": "run.paused"}', "Field required"),
    ("no known severity", newer(10, severity="catastrophic"), "severity"),
    ("wrong payload", paused(RUN, "wrong").to_wire().replace(b'"status":"paused"', b'"status":null'), "payload"),
    ("somebody else's id", paused(RUN, "a").to_wire().replace(b'"occurrence":"a"', b'"occurrence":"b"'), "event_id"),
    ("a type too long", newer(11, event_type="x" * 101), "too long"),
    ("NUL in a key", newer(12, event_id="nul\x00"), "PostgreSQL refuses it"),
    ("no time zone", newer(13, occurred_at="2026-11-21T08:00:00"), "should have timezone info"),
    ("lone surrogate in a key", newer(14, event_id="\ud800"), "PostgreSQL refuses it"),
]


async def test_poison_is_buried_whole_and_the_rest_goes_on(backbone: Backbone) -> None:
    """With the reason, once, also when it is read again; what stood around it is in the table, in order."""
    good = sample_events(RUN, 10 * len(POISON))
    sequences = []
    for number, (name, data, _) in enumerate(POISON):
        await backbone.log.publish(good[10 * number : 10 * number + 10])
        sequences.append(await backbone.store(data, name))
    async with backbone.projecting():
        await backbone.settled()
    await backbone.core.api(f"CONSUMER.RESET.{AUDIT_LOG.name}.{PROJECTOR}", {"seq": 1})
    async with backbone.projecting(batch=7):
        status = await backbone.settled()
    assert [row["event_id"] for row in await backbone.rows()] == [event.event_id for event in good]
    assert status.dead_letters == len(POISON)
    letters = sorted(await read_dead_letters(backbone.core, latest=100), key=lambda letter: letter.stream_sequence)
    assert [letter.stream_sequence for letter in letters] == sequences
    for letter, (name, data, reason) in zip(letters, POISON, strict=True):
        assert (letter.stream, letter.consumer, letter.message_id) == (AUDIT_LOG.name, PROJECTOR, name)
        assert letter.data == data
        assert reason in letter.reason
        assert letter.subject == "agog.events.system.core.x.y"


async def test_what_only_a_payload_holds_is_made_visible(backbone: Backbone) -> None:
    """A tool's error may have a NUL and half an emoji in it: such an event is no poison."""
    await backbone.log.publish([tool(RUN, 1, error="nul \x00 here")])
    await backbone.store(newer(1, payload={"half": "\ud83d"}), "half")
    async with backbone.projecting():
        assert (await backbone.settled()).dead_letters == 0
    rows = await backbone.rows()
    assert rows[0]["payload"]["error"] == "nul \u2400 here"
    assert rows[1]["payload"]["half"] == "\ufffd"


async def test_a_standby_takes_over(backbone: Backbone) -> None:
    """One of three is active at any time; when it goes, another one goes on where it was."""
    batches = list(rounds_of([sample_key(number) for number in range(10)], 60))
    async with contextlib.AsyncExitStack() as standbys:
        for _ in range(2):
            await standbys.enter_async_context(backbone.projecting(batch=8))
        for _ in range(4):
            async with backbone.projecting(batch=8):
                for batch in batches[:10]:
                    await backbone.log.publish(batch)
                del batches[:10]
                assert await backbone.lock_holders() <= 1
            # The active one may be among the standbys: its lock's session is ended as by a network that failed.
            await backbone.pool.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
            )
        for batch in batches:
            await backbone.log.publish(batch)
        await backbone.settled()
        assert await backbone.lock_holders() == 1
    await backbone.check_table()


async def test_what_another_reader_holds_is_not_skipped(backbone: Backbone) -> None:
    """Its acknowledgement would cover what it never saw: a gap makes the projector go back."""
    raw = (await backbone.core.connection()).raw
    async with backbone.projecting(batch=20):
        await backbone.log.publish(sample_events(RUN, 20))
        await backbone.settled()
        thief = await raw.jetstream().pull_subscribe_bind(PROJECTOR, AUDIT_LOG.name)
        stolen = 0
        for number in range(2, 12):
            waiting = asyncio.create_task(thief.fetch(5, timeout=2))
            await backbone.log.publish(sample_events(sample_key(number), 30))
            with contextlib.suppress(TimeoutError):
                stolen += len(await waiting)
        assert stolen
        await thief.unsubscribe()
        await backbone.settled()
    assert len(await backbone.check_table()) == 320


@pytest.mark.parametrize("server", ["postgres", "nats"])
async def test_a_server_that_is_away_is_waited_for(backbone: Backbone, server: str) -> None:
    """Killed twice while events come; the projector neither dies nor skips."""
    async with backbone.projecting(batch=50):
        for number in range(4):
            runs = [sample_key(10 * number + more) for more in range(5)]
            publishing = asyncio.create_task(_publish(backbone, runs))
            if number % 2:
                pid = await asyncio.to_thread(backbone.stack.kill, server)
                await asyncio.to_thread(backbone.stack.wait_running, server, other_than=pid)
            await publishing
        await backbone.settled(60)
    assert len(await backbone.check_table()) == 4 * 5 * 40


async def _publish(backbone: Backbone, runs: list[str]) -> None:
    for batch in rounds_of(runs, 40):
        await backbone.log.publish(batch)


async def test_a_rebuild_gives_the_same_table(backbone: Backbone) -> None:
    """From zero and over what is there, in the presence of poison, row by row."""
    await _publish(backbone, [sample_key(number) for number in range(20)])
    await backbone.store(b"poison", "poison")
    await backbone.store(newer(12, event_id="nul\x00"), "nul")
    await _publish(backbone, [sample_key(number) for number in range(20, 30)])
    seen: list[tuple[int, int]] = []
    from_zero = await rebuild(backbone.pool, backbone.core, progress=lambda read, of: seen.append((read, of)))
    assert (from_zero.removed, from_zero.read) == (0, 1202)
    assert seen[-1] == (1202, 1202)
    first = await backbone.rows()
    async with backbone.projecting():
        status = await backbone.settled()
    assert await backbone.rows() == first
    assert status.dead_letters == 2
    await backbone.pool.execute("ALTER TABLE events DISABLE TRIGGER events_append_only")
    await backbone.pool.execute("UPDATE events SET severity = 'critical' WHERE event_type = 'turn.completed'")
    await backbone.pool.execute("DELETE FROM events WHERE event_type = 'stage.started'")
    await backbone.pool.execute("ALTER TABLE events ENABLE ALWAYS TRIGGER events_append_only")
    again = await rebuild(backbone.pool, backbone.core)
    assert again.removed == 1200 - 30
    assert await backbone.rows() == first
    assert (await backbone.status()).dead_letters == 2


async def test_a_rebuild_while_events_come(backbone: Backbone) -> None:
    """What comes meanwhile is in the table in the end, and readers see a whole table all the time."""
    await _publish(backbone, [sample_key(number) for number in range(10)])
    async with backbone.projecting(batch=50):
        await backbone.settled()
        publishing = asyncio.create_task(_publish(backbone, [sample_key(number) for number in range(10, 30)]))
        counts = []
        rebuilds = 0
        while not publishing.done() or rebuilds < 3:
            task = asyncio.create_task(rebuild(backbone.pool, backbone.core))
            while not task.done():
                counts.append(await backbone.pool.fetchval("SELECT count(*) FROM events"))
            assert task.result().read >= 400
            rebuilds += 1
        await publishing
        await backbone.settled()
    assert counts == sorted(counts)
    assert counts[0] >= 400
    rows, messages = await backbone.rows(), await backbone.stored()
    assert [row["payload"]["_meta"]["sequence"] for row in rows] == [message.sequence for message in messages]


async def test_a_rebuild_keeps_what_the_stream_no_longer_holds(backbone: Backbone) -> None:
    """The table outlives retention."""
    await backbone.log.publish(sample_events(RUN, 200))
    async with backbone.projecting():
        await backbone.settled()
    before = await backbone.check_table()
    limits = stream_config(AUDIT_LOG) | {"max_msgs": 50}
    await backbone.core.api(f"STREAM.UPDATE.{AUDIT_LOG.name}", limits)
    done = await rebuild(backbone.pool, backbone.core)
    assert (done.first, done.removed, done.read) == (151, 50, 50)
    assert await backbone.rows() == before
    # A projector that was away while retention went on goes on with what is left, and does not wait for ever.
    await backbone.log.publish(sample_events(sample_key(2), 200))
    async with backbone.projecting():
        await backbone.settled()
    assert len(await backbone.rows()) == 200 + 50


async def test_a_rebuild_that_fails_leaves_the_table_as_it_was(backbone: Backbone) -> None:
    """NATS goes away in the middle."""
    await backbone.log.publish(sample_events(RUN, 600))
    async with backbone.projecting():
        await backbone.settled()
    before = await backbone.rows()

    def stop_nats(read: int, of: int) -> None:
        assert read < of
        backbone.stack.stop_member("nats")

    with pytest.raises(MessagingUnavailableError):
        await rebuild(backbone.pool, backbone.core, progress=stop_nats)
    assert await backbone.rows() == before
    await _append_only(await admin(backbone))


async def test_during_a_rebuild_the_table_is_append_only_for_others(backbone: Backbone) -> None:
    """Another session can neither change rows while the trigger is off, nor afterwards; it can read all the time."""
    await backbone.log.publish(sample_events(RUN, 50))
    async with backbone.projecting():
        await backbone.settled()
    other = await admin(backbone)
    async with emptied(backbone.pool, 1, 50) as (inside, removed):
        assert removed == 50
        assert await inside.fetchval("SELECT count(*) FROM events") == 0
        assert await other.fetchval("SELECT count(*) FROM events") == 50
        await other.execute("SET lock_timeout = 100")
        for statement in ("DELETE FROM events", "UPDATE events SET severity = 'debug'", "TRUNCATE events"):
            with pytest.raises(asyncpg.LockNotAvailableError):
                await other.execute(statement)
    await _append_only(other)


async def _append_only(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    for statement in ("DELETE FROM events", "UPDATE events SET severity = 'debug'", "TRUNCATE events"):
        with pytest.raises(asyncpg.RestrictViolationError, match="append-only"):
            await connection.execute(statement)
    await connection.close()


async def test_lag_and_dead_letters_are_seen_from_outside(backbone: Backbone) -> None:
    """By the observer, before there is a projector, and with one."""
    nats = backbone.stack.status().nats
    assert nats is not None
    await backbone.log.publish(sample_events(RUN, 30))
    async with client_as(nats, "observer") as client:
        observer = Backbone(backbone.stack, client, backbone.pool)
        before = await observer.status()
        assert (before.projector_exists, before.lag, before.dead_letters) == (False, 30, 0)
        await backbone.store(b"poison", "poison")
        async with backbone.projecting():
            after = await observer.settled()
        assert (after.events, after.lag, after.dead_letters, after.last_sequence) == (31, 0, 1, 31)
