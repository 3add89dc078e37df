"""Artifacts in real buckets: whole or invisible, stored once, read back as the deliverable names them or not at all."""

import asyncio
import base64
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from nats.js.errors import NotFoundError

from coatcheck.errors import (
    ArtifactInvalidError,
    DeliverableCorruptError,
    DeliverableExpiredError,
    DeliverableNotFoundError,
    MessagingRefusedError,
    NotAuthorizedError,
    StreamMissingError,
)
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.artifacts import CHUNK_BYTES, REUSE, ArtifactStore, media_type
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.streams import ensure_streams, stream_config
from schemas.deliverable import MAX_ARTIFACT_BYTES, Artifact
from schemas.streams import AGENTS, artifact_bucket, artifact_stream, bucket_streams
from tests.integration.nats_clients import client_as, raw_client_as

STREAM = artifact_stream("roy").name
SMALL = {"app.py": b"print(1)\n", "README.md": b"# App\n", "empty.txt": b"", "src/ui/page.ts": b"let a = 1"}
"""A small deliverable; other tests have contents of their own, so that nothing is there before."""


async def state(core: NatsClient, stream: str = STREAM) -> dict[str, Any]:
    """What the stream holds, to compare before and after; readers of other tests come and go meanwhile."""
    answer: dict[str, Any] = (await core.api(f"STREAM.INFO.{stream}"))["state"]
    del answer["consumer_count"]
    return answer


def sha256(data: bytes) -> str:
    """The name of an object."""
    return hashlib.sha256(data).hexdigest()


def named(data: bytes, path: str = "x.bin") -> Artifact:
    """What a deliverable says of a file."""
    return Artifact(path=path, sha256=sha256(data), bytes=len(data), media_type=media_type(path))


def meta_subject(name: str, agent: str = "roy") -> str:
    """Where an object becomes visible."""
    return f"$O.{artifact_bucket(agent)}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


async def test_round_trip(roy: NatsClient, cynthia: NatsClient, observer: NatsClient) -> None:
    """In order of the paths, read by another agent and by the observer; empty, small and of several chunks."""
    files = {**SMALL, "data/large.bin": os.urandom(3 * CHUNK_BYTES + 1), "exact.bin": os.urandom(2 * CHUNK_BYTES)}
    artifacts = await ArtifactStore(roy).put("roy", files)
    assert [artifact.path for artifact in artifacts] == sorted(files)
    assert [(artifact.sha256, artifact.bytes) for artifact in artifacts] == [
        (sha256(data), len(data)) for _, data in sorted(files.items())
    ]
    for reader in (cynthia, observer):
        assert await ArtifactStore(reader).get_all("roy", artifacts) == files
    assert await ArtifactStore(cynthia).get("roy", artifacts[0]) == files[artifacts[0].path]
    assert await ArtifactStore(roy).put("roy", {}) == []
    assert await ArtifactStore(roy).get_all("roy", []) == {}


def test_media_types() -> None:
    """The same on every system, and a plain answer for what is unknown."""
    assert {
        path: media_type(path) for path in ("a/b.md", "x.toml", "x.ts", "x.py", "x.json", "Makefile", "x.tar.gz")
    } == {
        "a/b.md": "text/markdown",
        "x.toml": "application/toml",
        "x.ts": "text/typescript",
        "x.py": "text/x-python",
        "x.json": "application/json",
        "Makefile": "application/octet-stream",
        "x.tar.gz": "application/octet-stream",
    }


async def test_nothing_is_stored_twice(roy: NatsClient, core: NatsClient) -> None:
    """Neither equal contents of one put, nor those of a later one under other paths."""
    files = {"a.txt": b"deduplicated", "b/c.txt": b"deduplicated", "d.txt": b"deduplicated too"}
    before = (await state(core))["last_seq"]
    await ArtifactStore(roy).put("roy", files)
    after = await state(core)
    assert after["last_seq"] == before + 4
    again = await ArtifactStore(roy).put("roy", {"other.md": b"deduplicated", **files})
    assert await state(core) == after
    assert await ArtifactStore(roy).get_all("roy", again) == {"other.md": b"deduplicated", **files}


async def test_an_old_copy_is_stored_again(roy: NatsClient, core: NatsClient) -> None:
    """So that a file lives at least as long as any deliverable that names it: 7 days of the bucket's 14."""
    [artifact] = await ArtifactStore(roy).put("roy", {"x": b"ages"})
    before = (await state(core))["last_seq"]
    for age, stored in ((REUSE - timedelta(minutes=1), 0), (REUSE + timedelta(minutes=1), 2)):
        later = ArtifactStore(roy, now=lambda age=age: datetime.now(UTC) + age)  # type: ignore[misc]
        assert await later.put("roy", {"x": b"ages"}) == [artifact]
        assert (await state(core))["last_seq"] == before + stored
    assert await ArtifactStore(roy).get("roy", artifact) == b"ages"
    assert timedelta(days=7) < timedelta(seconds=artifact_stream("roy").max_age_seconds) - REUSE


async def test_the_standard_client_reads_it(roy: NatsClient, core: NatsClient, nats_server: NatsStatus) -> None:
    """nats-py's own ObjectStore, as core."""
    files = {"a.bin": os.urandom(CHUNK_BYTES + 7), "b.txt": b"standard", "empty": b""}
    artifacts = await ArtifactStore(roy).put("roy", files)
    async with await raw_client_as(nats_server, "core") as raw:
        bucket = await raw.jetstream().object_store(artifact_bucket("roy"))
        for artifact in artifacts:
            found = await bucket.get(artifact.sha256)
            assert (found.data or b"") == files[artifact.path]
            assert (found.info.size, found.info.name) == (artifact.bytes, artifact.sha256)
            assert found.info.chunks == -(-artifact.bytes // CHUNK_BYTES)
    assert await ArtifactStore(core).get("roy", artifacts[1]) == b"standard"


async def test_many_writers_of_one_content(roy: NatsClient, core: NatsClient) -> None:
    """All succeed, and one object is visible."""
    data = os.urandom(CHUNK_BYTES + 1)
    listings = await asyncio.gather(*(ArtifactStore(roy).put("roy", {"x.bin": data}) for _ in range(10)))
    assert listings == [[named(data)]] * 10
    metas = await core.api(f"STREAM.INFO.{STREAM}", {"subjects_filter": meta_subject(sha256(data))})
    assert metas["state"]["subjects"] == {meta_subject(sha256(data)): 1}
    assert await ArtifactStore(core).get("roy", named(data)) == data


CHILD = """
import asyncio, sys
from pathlib import Path
from coatcheck.messaging.accounts import load_user
from coatcheck.messaging.artifacts import ArtifactStore
from coatcheck.messaging.client import NatsClient

async def main():
    url, keys, seed = sys.argv[1:]
    async with NatsClient(url, user=load_user(Path(keys), "roy"), name="roy") as client:
        await ArtifactStore(client).put("roy", {f"{n}.bin": f"{seed} {n} ".encode() * 40_000 for n in range(8)})

asyncio.run(main())
"""


@pytest.mark.parametrize("point", ["artifact.before_put", "artifact.after_chunks", "artifact.after_put"])
async def test_killed_in_the_middle(
    nats_server: NatsStatus, core: NatsClient, observer: NatsClient, tmp_path: Path, point: str
) -> None:
    """By kill -9: no object is visible that is not whole, and the same put again completes all of them."""
    files = {f"{n}.bin": f"{point} {n} ".encode() * 40_000 for n in range(8)}
    key = nats_server.users["roy"].nkey_file
    assert key is not None
    environment = {**os.environ, "COATCHECK_FAILPOINTS": f"{point}=kill*1", "COATCHECK_FAILPOINTS_DIR": str(tmp_path)}
    command = [sys.executable, "-c", CHILD, nats_server.url, str(key.parent), point]
    started = (await state(core))["last_seq"]

    async def run() -> int:
        process = await asyncio.create_subprocess_exec(*command, env=environment)
        async with asyncio.timeout(60):
            return await process.wait()

    assert await run() == -signal.SIGKILL
    reader = ArtifactStore(observer)
    whole = 0
    for path, data in files.items():
        try:
            assert await reader.get("roy", named(data, path)) == data
            whole += 1
        except (DeliverableNotFoundError, DeliverableExpiredError):
            continue
    chunks = (await state(core))["last_seq"] - started
    assert (whole, chunks > 0) == {
        "artifact.before_put": (0, False),
        "artifact.after_chunks": (0, True),
        "artifact.after_put": (8, True),
    }[point]
    assert await run() == 0
    assert await reader.get_all("roy", [named(data, path) for path, data in files.items()]) == files


LISTINGS: list[tuple[dict[str, bytes], str]] = [
    ({"../x": b""}, "plain relative path"),
    ({"/etc/passwd": b""}, "plain relative path"),
    ({"a//b": b""}, "plain relative path"),
    ({"a\\b": b""}, "backslash"),
    ({"a\0b": b""}, "control character"),
    ({".git/config": b""}, "plain relative path"),
    ({"": b""}, "1 to 240 bytes"),
    ({"x" * 241: b""}, "1 to 240 bytes"),
    ({"a.py": b"1", "A.py": b"2"}, "one file where case does not count"),
    ({"a": b"1", "A/b": b"2"}, "needs it as a folder"),
    ({"a": b"1", "a/b/c": b"2"}, "needs it as a folder"),
]


@pytest.mark.parametrize(("files", "complaint"), LISTINGS)
async def test_bad_paths_are_refused(
    roy: NatsClient, core: NatsClient, files: dict[str, bytes], complaint: str
) -> None:
    """Before anything is sent."""
    before = await state(core)
    with pytest.raises(ArtifactInvalidError, match=complaint):
        await ArtifactStore(roy).put("roy", {"good.txt": b"not even this", **files})
    assert await state(core) == before


async def test_too_much_is_refused(roy: NatsClient, core: NatsClient) -> None:
    """10,001 files and 1 GB, to put and to get, with the number and the limit; nothing is sent or asked for."""
    before = await state(core)
    store = ArtifactStore(roy)
    with pytest.raises(ArtifactInvalidError, match=r"10,001 files; .* at most 10,000"):
        await store.put("roy", {f"{number}": b"" for number in range(10_001)})
    megabytes = bytes(16 * 1024**2)
    with pytest.raises(ArtifactInvalidError, match=r"1,073,741,824 bytes of files; .* at most 268,435,456"):
        await store.put("roy", {f"{number}": megabytes for number in range(64)})
    large = named(b"").model_copy(update={"bytes": MAX_ARTIFACT_BYTES + 1})
    with pytest.raises(ArtifactInvalidError, match="at most 268,435,456"):
        await store.get("roy", large)
    with pytest.raises(ArtifactInvalidError, match="10,001 files"):
        await store.get_all("roy", [named(b"", str(number)) for number in range(10_001)])
    with pytest.raises(ArtifactInvalidError, match="one file"):
        await store.get_all("roy", [named(b"1"), named(b"2")])
    assert await state(core) == before


async def test_a_thousand_files_or_nine_megabytes(roy: NatsClient, cynthia: NatsClient) -> None:
    """The sizes of a real stage go through, and come back, within seconds on a slow machine."""
    for files in (
        {f"src/module_{number}.py": f"NUMBER = {number}  # a thousand files\n".encode() for number in range(1000)},
        {"bundle.js": os.urandom(9 * 1000**2)},
    ):
        started = time.perf_counter()
        artifacts = await ArtifactStore(roy).put("roy", files)
        stored = time.perf_counter()
        assert await ArtifactStore(roy).put("roy", files) == artifacts
        repeated = time.perf_counter()
        assert await ArtifactStore(cynthia).get_all("roy", artifacts) == files
        read = time.perf_counter()
        print(f"{len(files)}: put {stored - started:.2f} again {repeated - stored:.2f} get {read - repeated:.2f} s")
        assert read - started < 60  # 2 s alone, 10 s on a busy machine


async def test_what_is_not_there(roy: NatsClient, core: NatsClient) -> None:
    """Never stored, and no bucket, each with its own error and the file's name."""
    with pytest.raises(DeliverableNotFoundError, match=r"src/x\.py \(artifacts_roy/[0-9a-f]{64}\) has never been"):
        await ArtifactStore(roy).get("roy", named(b"never stored", "src/x.py"))
    with pytest.raises(StreamMissingError):
        await ArtifactStore(core).get("no-such-agent", named(b"x"))
    with pytest.raises(ArtifactInvalidError, match="no agent's name"):
        await ArtifactStore(core).get("*", named(b"x"))


async def bucket_of(core: NatsClient, agent: str, **changes: Any) -> ArtifactStore:
    """A bucket that only core can use, with other settings than the product's."""
    config = {**stream_config(artifact_stream(agent)), **changes}
    await core.api(f"STREAM.CREATE.{artifact_stream(agent).name}", config)
    return ArtifactStore(core, archived=False)


async def test_what_retention_dropped_is_expired(core: NatsClient) -> None:
    """A bucket that has dropped its beginning says so."""
    store = await bucket_of(core, "test-expiry", max_msgs=3, discard="old")
    [artifact] = await store.put("test-expiry", {"old.txt": b"old"})
    await store.put("test-expiry", {"new.txt": b"new"})
    await store.put("test-expiry", {"newer.txt": b"newer"})
    with pytest.raises(DeliverableExpiredError, match=r"old\.txt .* no longer kept: the bucket begins at"):
        await store.get("test-expiry", artifact)
    assert await store.put("test-expiry", {"old.txt": b"old"}) == [artifact]
    assert await store.get("test-expiry", artifact) == b"old"


async def test_a_full_bucket_refuses(core: NatsClient) -> None:
    """Instead of dropping the files of deliverables that still live."""
    store = await bucket_of(core, "test-full", max_bytes=300_000)
    [kept] = await store.put("test-full", {"kept.bin": b"k" * 200_000})
    with pytest.raises(MessagingRefusedError, match="bucket artifacts_test-full is full") as refused:
        await store.put("test-full", {"more.bin": b"m" * 200_000})
    assert "14 days" in str(refused.value.hint)
    assert await store.get("test-full", kept) == b"k" * 200_000


async def test_missing_chunks_are_corrupt(core: NatsClient) -> None:
    """An object whose chunks are gone, by an administrator's hand."""
    store = await bucket_of(core, "test-chunks", deny_delete=False)
    [artifact] = await store.put("test-chunks", {"x.bin": bytes(2 * CHUNK_BYTES)})
    await core.api(f"STREAM.MSG.DELETE.{artifact_stream('test-chunks').name}", {"seq": 2})
    with pytest.raises(DeliverableCorruptError, match="ends after 131,072 of 262,144 bytes"):
        await store.get("test-chunks", artifact)


async def overwrite(client: NatsClient, name: str, meta: Mapping[str, Any]) -> None:
    """What an owner that lies does: put another meta message under the name of an object."""
    body = json.dumps(meta).encode()
    await client.publish(meta_subject(name), body, message_id=os.urandom(8).hex(), stream=STREAM)


async def upload(client: NatsClient, *chunks: bytes) -> str:
    """Chunks that no object names yet."""
    nuid = os.urandom(8).hex()
    for number, chunk in enumerate(chunks):
        await client.publish(f"$O.artifacts_roy.C.{nuid}", chunk, message_id=f"{nuid}.{number}", stream=STREAM)
    return nuid


async def test_a_lying_owner_fools_nobody(roy: NatsClient, cynthia: NatsClient) -> None:
    """Whatever it puts over its own object, a reader gets the bytes of the deliverable or an error, and soon."""
    data = b"what the deliverable names"
    [artifact] = await ArtifactStore(roy).put("roy", {"x.bin": data})
    honest = json.loads((await roy.fetch_by_subject(STREAM, meta_subject(artifact.sha256))).data)
    lies: list[tuple[str, Mapping[str, Any]]] = [
        ("another sha256", {"nuid": await upload(roy, b"something else, as long...")}),
        ("chunks of", {"nuid": await upload(roy, data + b"and more")}),
        ("chunks of", {"nuid": await upload(roy, data[:10], data[10:])}),
        ("chunks of", {"nuid": await upload(roy, b"", data)}),
        ("ends after 0", {"nuid": "nowhere"}),
        ("not what", {"nuid": "*"}),
        ("not what", {"nuid": "x\r\nPUB a 1"}),
        ("not what", {"nuid": ""}),
        ("not what", {"size": len(data) - 1}),
        ("not what", {"size": 10**15}),
        ("not what", {"size": "many"}),
        ("not what", {"digest": "SHA-256=" + base64.urlsafe_b64encode(bytes(32)).decode()}),
        ("not what", {"name": "another"}),
        ("not what", {"deleted": True}),
        ("not what", {"options": {"link": {"bucket": "artifacts_cynthia", "name": "x"}}}),
    ]
    for complaint, lie in lies:
        await overwrite(roy, artifact.sha256, {**honest, **lie})
        with pytest.raises(DeliverableCorruptError, match=rf"x\.bin \(artifacts_roy/.*{complaint}"):
            await ArtifactStore(cynthia).get("roy", artifact)
    # What can be seen from the meta message is mended by the next put.
    await ArtifactStore(roy).put("roy", {"x.bin": data})
    assert await ArtifactStore(cynthia).get("roy", artifact) == data


async def test_rights(roy: NatsClient, observer: NatsClient, nats_server: NatsStatus, core: NatsClient) -> None:
    """Nobody puts into another's bucket, and nobody but its owner and core into any."""
    before = await state(core, artifact_stream("cynthia").name)
    async with client_as(nats_server, "gateway") as gateway:
        for client in (roy, observer, gateway):
            with pytest.raises(NotAuthorizedError):
                await ArtifactStore(client).put("cynthia", {"forged.py": b"forged"})
    assert await state(core, artifact_stream("cynthia").name) == before


@pytest.mark.parametrize("headers", [{"Nats-Rollup": "sub"}, {"Nats-Rollup": "all"}, {"Nats-TTL": "1s"}])
async def test_no_header_removes_anything(roy: NatsClient, core: NatsClient, headers: dict[str, str]) -> None:
    """Not in the owner's own bucket either."""
    await ArtifactStore(roy).put("roy", {"x.bin": b"stays"})
    before = await state(core)
    with pytest.raises(MessagingRefusedError, match=r"rollup|TTL"):
        await roy.publish(
            meta_subject(sha256(b"stays")), b"{}", message_id=os.urandom(8).hex(), stream=STREAM, headers=headers
        )
    assert await state(core) == before


async def test_the_standard_clients_purge_is_refused(
    roy: NatsClient, core: NatsClient, nats_server: NatsStatus
) -> None:
    """Even core's: its ObjectStore cannot delete what we have stored."""
    [artifact] = await ArtifactStore(roy).put("roy", {"x.bin": b"not to be deleted"})
    before = await state(core)
    async with await raw_client_as(nats_server, "core") as raw:
        bucket = await raw.jetstream().object_store(artifact_bucket("roy"))
        with pytest.raises(Exception, match=r"rollup|purge"):
            await bucket.delete(artifact.sha256)
        with pytest.raises(NotFoundError):
            await bucket.get_info("0" * 64)
    assert (await state(core))["messages"] >= before["messages"]
    assert await ArtifactStore(roy).get("roy", artifact) == b"not to be deleted"


async def test_buckets_are_as_declared(core: NatsClient) -> None:
    """By the server's own report: write-once, kept for 14 days, refused when full."""
    statuses = await ensure_streams(core, bucket_streams(AGENTS))
    assert [(status.name, status.drift) for status in statuses] == [(spec.name, []) for spec in bucket_streams(AGENTS)]
    config = (await core.api(f"STREAM.INFO.{STREAM}"))["config"]
    expected = {
        "deny_delete": True,
        "deny_purge": True,
        "allow_rollup_hdrs": False,
        "allow_direct": False,
        "discard": "new",
        "max_age": 14 * 86_400 * 10**9,
    }
    assert expected.items() <= config.items()
