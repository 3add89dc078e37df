"""Deliverables on a real stream: written once, read by ticket, every way of being gone named."""

import asyncio
import hashlib
import json
from base64 import b32decode, urlsafe_b64decode
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from nacl.signing import VerifyKey

from coatcheck.errors import (
    DeliverableCorruptError,
    DeliverableExpiredError,
    DeliverableLostError,
    DeliverableNotFoundError,
    DeliverableTooLargeError,
    DeliverableUnverifiedError,
    NotAuthorizedError,
)
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.deliverables import DeliverableService, Published, encode_deliverable, message_id
from coatcheck.messaging.keyring import Keyring
from coatcheck.messaging.signatures import Signatures
from coatcheck.messaging.streams import stream_config
from schemas.deliverable import Artifact, DeliverableRef
from schemas.notice import MAX_NOTICE_BYTES
from schemas.streams import STREAMS, StreamSpec
from tests.integration.nats_clients import deliverable, identity, raw_client_as

BACKEND = "agog_features_backend"
SHORT = StreamSpec(name="test_short", subjects=("agog.deliverables.test-short.>",), agent="test-short", max_msgs=2)


def subject(feature: str) -> str:
    """Where roy delivers."""
    return f"agog.deliverables.roy.backend.{feature}"


async def publish(service: DeliverableService, feature: str, content: str = "# Report") -> DeliverableRef:
    """Roy's deliverable, with a task key of the feature's own."""
    return (await publish_for(service, feature, content)).ref


async def publish_for(service: DeliverableService, feature: str, content: str) -> Published:
    """The same, with whatever was there already."""
    return await service.publish_report(
        deliverable("roy", "backend", feature, content),
        task_key=f"feature/{feature}/run/backend-1",
        stream=BACKEND,
        subject=subject(feature),
    )


async def messages(core: NatsClient, stream: str = BACKEND) -> int:
    """How many the stream holds."""
    count: int = (await core.api(f"STREAM.INFO.{stream}"))["state"]["messages"]
    return count


def keyring(server: NatsStatus) -> Keyring:
    """Everybody's public keys."""
    return Keyring.load(identity(server, "core").keyring_file)


def client_with(ring: Keyring, server: NatsStatus, name: str, folder: Path) -> NatsClient:
    """A client whose keyring is another one."""
    ring.save(folder / "keyring.json")
    user = identity(server, name).model_copy(update={"keyring_file": folder / "keyring.json"})
    return NatsClient(server.url, user=user, name=name)


async def test_a_seed_client_reads_it(nats_server: NatsStatus, roy: NatsClient) -> None:
    """A raw client with the observer's credentials gets the seed's shape, by sequence and by subject."""
    ref = await publish(DeliverableService(roy), "seed-shape", "# Full markdown ü")
    async with await raw_client_as(nats_server, "observer") as raw:
        jetstream = raw.jetstream(prefix=nats_server.users["observer"].js_prefix)
        by_sequence = await jetstream.get_msg(BACKEND, seq=ref.sequence)
        by_subject = await jetstream.get_last_msg(BACKEND, subject("seed-shape"))
    assert by_sequence.data == by_subject.data
    assert by_sequence.data is not None
    body = json.loads(by_sequence.data)
    assert list(body) == ["content", "metadata"]
    assert body["content"] == "# Full markdown ü"
    assert list(body["metadata"]) == ["agent", "taskType", "feature", "timestamp", "files_analyzed", "duration_minutes"]
    assert by_sequence.headers is not None
    key, _, signature = by_sequence.headers.pop("Coatcheck-Signature").partition(" ")
    text = f"coatcheck-deliverable/1\n{subject('seed-shape')}\nfeature/seed-shape/run/backend-1\n{ref.sha256}"
    assert key == nats_server.users["roy"].user
    VerifyKey(b32decode(key)[1:33]).verify(text.encode(), urlsafe_b64decode(signature))
    assert by_sequence.headers == {
        "Nats-Msg-Id": "feature/seed-shape/run/backend-1",
        "Nats-Expected-Stream": BACKEND,
        "Coatcheck-Schema": "deliverable/1",
        "Coatcheck-Task": "feature/seed-shape/run/backend-1",
        "Content-SHA256": hashlib.sha256(by_sequence.data).hexdigest(),
    }
    assert message_id(ref) == f"{BACKEND}.{ref.sequence}"


async def test_a_seed_writer_is_read(
    nats_server: NatsStatus, core: NatsClient, roy: NatsClient, tmp_path: Path
) -> None:
    """A message with the seed's body and no header of ours is a deliverable too, where a team lets them be unsigned."""
    body = {
        "content": "# By hand",
        "metadata": {
            "agent": "roy",
            "taskType": "backend",
            "feature": "by-hand",
            "timestamp": "2025-12-17T10:30:00.000Z",
            "files_analyzed": 15,
            "duration_minutes": 12,
            "custom_field": "custom_value",
        },
    }
    await roy.publish(subject("by-hand"), json.dumps(body).encode(), message_id="by-hand", stream=BACKEND)
    with pytest.raises(DeliverableUnverifiedError, match="has no signature"):
        await DeliverableService(core).fetch_by_subject(subject("by-hand"))
    ring = keyring(nats_server).model_copy(update={"unsigned_until": datetime.now(UTC) + timedelta(days=1)})
    async with client_with(ring, nats_server, "core", tmp_path) as lenient:
        stored = await DeliverableService(lenient).fetch_by_subject(subject("by-hand"))
    assert stored.task_key is None
    assert stored.deliverable.metadata.model_extra == {"custom_field": "custom_value"}


async def test_what_its_agent_has_not_signed_is_refused(core: NatsClient, roy: NatsClient) -> None:
    """Whoever has the hub's key can write under any subject, and is not believed; a moved signature is none."""
    body = encode_deliverable(deliverable("roy", "backend", "forged", "# Forged"))
    real = await publish(DeliverableService(roy), "real")
    stored = await core.fetch_by_sequence(real.stream, real.sequence)
    forged = Signatures(core.user).headers(subject("forged"), "forged", hashlib.sha256(body).hexdigest())
    moved = {"Coatcheck-Signature": stored.headers["Coatcheck-Signature"]}
    for number, (headers, payload, complaint) in enumerate(
        (
            (forged, body, "is none of its keys"),
            (moved, body, "does not fit"),
            (moved, stored.data, "does not fit"),
            ({}, body, "no signature"),
        )
    ):
        sent = {**headers, "Content-SHA256": hashlib.sha256(payload).hexdigest(), "Coatcheck-Task": f"forged-{number}"}
        await core.publish(subject("forged"), payload, message_id=f"forged-{number}", stream=BACKEND, headers=sent)
        with pytest.raises(DeliverableUnverifiedError, match=complaint):
            await DeliverableService(roy).fetch_by_subject(subject("forged"))


async def test_round_trip_by_ticket_and_by_name(roy: NatsClient, observer: NatsClient) -> None:
    """Custom fields, artifacts and a task key that is not ASCII come back as they went."""
    sent = deliverable("roy", "backend", "round-trip", "# é\n\u2028 \x00 🧥", reviewed_by="sylvia")
    sent.artifacts.append(Artifact(path="src/ä.py", sha256="0" * 64, bytes=3, media_type="text/x-python"))
    key = "feature/größe 100%/run/backend-1"
    service = DeliverableService(roy)
    ref = (await service.publish_report(sent, task_key=key, stream=BACKEND, subject=subject("round-trip"))).ref
    by_ticket = await service.fetch(ref)
    assert by_ticket.deliverable == sent
    assert by_ticket.task_key == key
    assert by_ticket.ref == ref
    assert await DeliverableService(observer).fetch_report("roy", "backend", "round-trip") == by_ticket


async def test_a_second_attempt_gets_the_stored_ticket(core: NatsClient, roy: NatsClient) -> None:
    """Whatever it wanted to write: one message, the first one's bytes."""
    service = DeliverableService(roy)
    first = await publish_for(service, "twice", "# First")
    assert first.earlier is None
    before = await messages(core)
    second = await publish_for(service, "twice", "# Second, and quite different")
    assert second.ref == first.ref
    assert second.earlier is not None
    assert second.earlier.content == "# First"
    assert await messages(core) == before
    assert (await service.fetch(second.ref)).deliverable == second.earlier


async def test_many_attempts_at_once_store_one(core: NatsClient, roy: NatsClient) -> None:
    """Also when they race."""
    service = DeliverableService(roy)
    before = await messages(core)
    refs = await asyncio.gather(*(publish(service, "race", f"# Attempt {number}") for number in range(20)))
    assert len(set(refs)) == 1
    assert await messages(core) == before + 1


async def test_another_tasks_message_under_the_id_is_not_taken(roy: NatsClient) -> None:
    """A message id that belongs to something else is an error, not a ticket."""
    await roy.publish(subject("stolen"), b"{}", message_id="feature/stolen/run/backend-1", stream=BACKEND)
    with pytest.raises(DeliverableCorruptError, match="belongs to None"):
        await publish(DeliverableService(roy), "stolen")


@pytest.fixture
async def short_stream(nats_server: NatsStatus, core: NatsClient, tmp_path: Path) -> AsyncIterator[DeliverableService]:
    """A stream that keeps two messages, and the service of its agent, whose key is core's."""
    if SHORT.name not in {item["config"]["name"] for item in (await core.api("STREAM.LIST"))["streams"]}:
        await core.api(f"STREAM.CREATE.{SHORT.name}", stream_config(SHORT))
    ring = keyring(nats_server).with_key(SHORT.agent, nats_server.users["core"].user)
    async with client_with(ring, nats_server, "core", tmp_path) as client:
        yield DeliverableService(client, streams=[*STREAMS, SHORT], archived=False)


async def publish_short(service: DeliverableService, feature: str) -> DeliverableRef:
    """A deliverable on the short stream."""
    published = await service.publish_report(
        deliverable("test-short", "backend", feature),
        task_key=f"short/{feature}",
        stream=SHORT.name,
        subject=f"agog.deliverables.test-short.backend.{feature}",
    )
    return published.ref


async def test_what_retention_dropped_is_expired(short_stream: DeliverableService) -> None:
    """And the error says where the stream begins now."""
    gone = await publish_short(short_stream, "expired")
    for number in range(2):
        await publish_short(short_stream, f"newer-{number}")
    with pytest.raises(DeliverableExpiredError, match=rf"{gone.sequence} is no longer kept"):
        await short_stream.fetch(gone)


async def test_a_duplicate_of_nothing_is_published_again(short_stream: DeliverableService) -> None:
    """The server acknowledges an id whose message it has dropped; the deliverable must be there all the same."""
    gone = await publish_short(short_stream, "evicted")
    for number in range(2):
        await publish_short(short_stream, f"evicting-{number}")
    again = await publish_short(short_stream, "evicted")
    assert again.sequence > gone.sequence
    assert (await short_stream.fetch(again)).task_key == "short/evicted"
    assert await publish_short(short_stream, "evicted") == again
    for number in range(2, 4):
        await publish_short(short_stream, f"evicting-{number}")
    assert (await publish_short(short_stream, "evicted")).sequence > again.sequence


async def test_by_task_among_all_that_a_subject_has(roy: NatsClient) -> None:
    """Whoever published last; nothing for a task that has published nothing, nor for one that began later."""
    service, where = DeliverableService(roy), subject("by-task")

    async def stores(task_key: str) -> DeliverableRef:
        body = deliverable("roy", "backend", "by-task", f"# {task_key}")
        return (await service.publish_report(body, task_key=task_key, stream=BACKEND, subject=where)).ref

    assert await service.fetch_by_task(where, "one/backend-1") is None
    refs = {key: await stores(key) for key in ("one/backend-1", "zwei ü/backend-1", "three/backend-1")}
    for key, ref in refs.items():
        found = await service.fetch_by_task(where, key, after=ref.sequence - 1)
        assert found is not None
        assert (found.ref, found.task_key, found.deliverable.content) == (ref, key, f"# {key}")
        assert await service.fetch_by_task(where, key) == found
        assert await service.fetch_by_task(where, key, after=ref.sequence) is None
        assert await service.fetch_by_task(subject("by-task-other"), key) is None
    assert await service.fetch_by_task(where, "one/backend-11") is None
    headers = {"Content-SHA256": "0" * 64, "Coatcheck-Task": "four"}
    await roy.publish(where, b"{}", message_id="by-task-four", stream=BACKEND, headers=headers)
    with pytest.raises(DeliverableCorruptError, match="sha256"):
        await service.fetch_by_task(where, "four")
    with pytest.raises(DeliverableNotFoundError, match="not the subject of a deliverable"):
        await service.fetch_by_task("agog.deliverables.roy", "four")


async def test_beyond_the_end_is_lost(roy: NatsClient) -> None:
    """A ticket for a sequence that the stream never reached means that acknowledged data is gone."""
    service = DeliverableService(roy, archived=False)
    ref = await publish(service, "lost")
    with pytest.raises(DeliverableLostError, match="the stream ends at"):
        await service.fetch(ref.model_copy(update={"sequence": ref.sequence + 1_000_000}))


async def test_a_hole_is_not_found(core: NatsClient) -> None:
    """Deleted by an administrator, on a stream that allows it."""
    spec = StreamSpec(name="test_hole", subjects=("test.hole.>",), agent="core")
    await core.api(f"STREAM.CREATE.{spec.name}", {**stream_config(spec), "deny_delete": False})
    for number in range(3):
        await core.publish("test.hole.x", b"{}", message_id=f"hole-{number}", stream=spec.name)
    await core.api(f"STREAM.MSG.DELETE.{spec.name}", {"seq": 2})
    ticket = DeliverableRef(stream=spec.name, sequence=2, sha256="0" * 64, bytes=2)
    with pytest.raises(DeliverableNotFoundError, match="has been deleted"):
        await DeliverableService(core).fetch(ticket)


async def test_other_bytes_are_corrupt(roy: NatsClient) -> None:
    """By ticket against the ticket's hash, by subject against the header's, on a duplicate as well."""
    service = DeliverableService(roy)
    ref = await publish(service, "corrupt")
    with pytest.raises(DeliverableCorruptError, match="sha256"):
        await service.fetch(ref.model_copy(update={"sha256": "0" * 64}))
    headers = {"Content-SHA256": "0" * 64, "Coatcheck-Task": "corrupt-2"}
    await roy.publish(subject("corrupt-2"), b"{}", message_id="corrupt-2", stream=BACKEND, headers=headers)
    with pytest.raises(DeliverableCorruptError, match="sha256"):
        await service.fetch_by_subject(subject("corrupt-2"))
    with pytest.raises(DeliverableCorruptError, match="sha256"):
        await service.publish_report(
            deliverable("roy", "backend", "corrupt-2"),
            task_key="corrupt-2",
            stream=BACKEND,
            subject=subject("corrupt-2"),
        )


@pytest.mark.parametrize("body", [b"", b"not json", b"{}", b'{"content": 1, "metadata": {}}', b"\xff"])
async def test_what_is_no_deliverable_is_corrupt(roy: NatsClient, body: bytes) -> None:
    """Never an unexplained exception."""
    feature = f"garbage-{len(body)}"
    await roy.publish(subject(feature), body, message_id=feature, stream=BACKEND)
    with pytest.raises(DeliverableCorruptError, match="not a deliverable"):
        await DeliverableService(roy).fetch_by_subject(subject(feature))


@pytest.mark.parametrize("header", ["Nats-Stream", "Nats-Subject"])
async def test_injected_messages_are_rejected(roy: NatsClient, header: str) -> None:
    """The server writes these when it republishes; stored, they betray a message that no agent published."""
    feature = f"injected-{header.lower()}"
    body = deliverable("roy", "backend", feature).model_dump_json().encode()
    ack = await roy.publish(subject(feature), body, message_id=feature, stream=BACKEND, headers={header: "x"})
    ref = DeliverableRef(
        stream=BACKEND, sequence=ack.sequence, sha256=hashlib.sha256(body).hexdigest(), bytes=len(body)
    )
    with pytest.raises(DeliverableCorruptError, match=header):
        await DeliverableService(roy).fetch(ref)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "x.y.z.a.b",
        "agog.deliverables.roy.backend",
        "agog.deliverables.roy.>",
        "agog.deliverables.roy.backend.*",
        "agog.deliverables.roy.backend.UPPER",
        "agog.deliverables.nobody.backend.x",
    ],
)
async def test_what_is_no_subject_is_not_found(roy: NatsClient, name: str) -> None:
    """Wildcards would match other deliverables; the hint says what a subject looks like."""
    with pytest.raises(DeliverableNotFoundError) as refused:
        await DeliverableService(roy).fetch_by_subject(name)
    assert "agog.deliverables.<agent>" in str(refused.value.hint)


async def test_nothing_under_a_subject(roy: NatsClient) -> None:
    """A legal subject without a message, and a name that makes no subject."""
    service = DeliverableService(roy)
    with pytest.raises(DeliverableNotFoundError, match="nothing is stored under"):
        await service.fetch_report("roy", "backend", "never-written")
    with pytest.raises(DeliverableNotFoundError, match="slug"):
        await service.fetch_report("roy", "backend", "Not A Slug")


async def test_nine_megabytes_go_through(roy: NatsClient, observer: NatsClient) -> None:
    """The seed's limit is 10 MB."""
    content = "x" * 9 * 1024 * 1024
    ref = await publish(DeliverableService(roy), "nine-megabytes", content)
    assert ref.bytes > 9 * 1024 * 1024
    assert (await DeliverableService(observer).fetch(ref)).deliverable.content == content


async def test_eleven_megabytes_are_refused_with_the_numbers(core: NatsClient, roy: NatsClient) -> None:
    """Before anything is sent; the client lives on."""
    service = DeliverableService(roy)
    before = await messages(core)
    with pytest.raises(DeliverableTooLargeError, match=r"11,\d{3},\d{3} bytes, at most 10,420,224 fit"):
        await publish(service, "eleven-megabytes", "x" * 11_000_000)
    assert await messages(core) == before
    assert await publish(service, "after-eleven-megabytes")


async def test_another_agents_subject_is_refused(cynthia: NatsClient) -> None:
    """By the server, in the typed way."""
    with pytest.raises(NotAuthorizedError):
        await publish(DeliverableService(cynthia), "not-mine")


async def test_a_notice_for_a_deliverable(roy: NatsClient) -> None:
    """The service makes it; it leads back to the deliverable."""
    service = DeliverableService(roy)
    ref = await publish(service, "noticed")
    notice = service.create_notice(
        agent="roy",
        feature="noticed",
        subject=subject("noticed"),
        ref=ref,
        summary="x" * 5000,
        completion_time=datetime.now(UTC),
        round=1,
    )
    assert len(notice.to_wire()) <= MAX_NOTICE_BYTES
    assert (await service.fetch(notice.ref)).subject == notice.nats_channel


async def test_stream_statuses(observer: NatsClient, roy: NatsClient) -> None:
    """As the seed prints them, for whoever may only read."""
    await publish(DeliverableService(roy), "counted")
    statuses = {status.name: status for status in await DeliverableService(observer).stream_statuses()}
    assert list(statuses) == [spec.name for spec in STREAMS]
    assert statuses[BACKEND].messages > 0
    assert statuses[BACKEND].last_seq >= statuses[BACKEND].messages
