"""Deliverables outlive retention: the archiver, its deaths, the fall-back of who fetches, on real servers."""

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from coatcheck.archive import archiver
from coatcheck.archive.monitoring import Alarm
from coatcheck.archive.shelf import Shelf, object_key, open_shelf
from coatcheck.archive.verifying import verify
from coatcheck.errors import (
    DeliverableCorruptError,
    DeliverableExpiredError,
    DeliverableLostError,
    DeliverableNotFoundError,
    DeliverableUnverifiedError,
    MessagingUnavailableError,
)
from coatcheck.localstack import LocalStack
from coatcheck.messaging.accounts import ARCHIVER
from coatcheck.messaging.artifacts import ArtifactStore
from coatcheck.messaging.consumer import BatchConsumer
from coatcheck.messaging.deliverables import DeliverableService, encode_deliverable
from coatcheck.messaging.streams import ensure_streams, stream_config
from coatcheck.objects.destinations import Folder
from coatcheck.storage.database import open_pool
from schemas.streams import AGENTS, STREAMS, bucket_streams
from tests.acceptance.program import coatcheck
from tests.integration.archive_lab import FILES, ArchiveLab, Delivered, corrupt, spec_of
from tests.integration.nats_clients import client_as, deliverable
from tests.integration.s3_server import S3Server


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """Servers for all of these tests; the streams are made anew for each."""
    with LocalStack(tmp_path_factory.mktemp("archive"), servers=("nats", "postgres"), workers=()) as started:
        yield started


@pytest.fixture
async def lab(stack: LocalStack, tmp_path: Path) -> AsyncIterator[ArchiveLab]:
    """An archive of the test's own."""
    status = stack.status()
    assert status.nats is not None
    assert status.postgres is not None
    async with client_as(status.nats, "core") as core, open_pool(status.postgres.dsn) as pool:
        specs = [*STREAMS, *bucket_streams(AGENTS)]
        for name in [one["config"]["name"] for one in (await core.api("STREAM.LIST"))["streams"]]:
            await core.api(f"STREAM.DELETE.{name}")
        await ensure_streams(core, specs)
        async with contextlib.AsyncExitStack() as clients:
            yield ArchiveLab(status.nats, status.postgres, core, pool, tmp_path / "archive", clients)


async def check_archived(lab: ArchiveLab, reader: str, delivered: Delivered, *, source: str = "archive") -> None:
    """The same text, whoever asks, by ticket, by sequence and by subject."""
    async with client_as(lab.nats, reader) as client:
        service = DeliverableService(client)
        by_ticket = await service.fetch(delivered.ref)
        assert (by_ticket.source, by_ticket.ref) == (source, delivered.ref)
        assert by_ticket.deliverable.content == delivered.content
        assert await service.fetch_by_sequence(delivered.ref.stream, delivered.ref.sequence) == by_ticket
        assert await service.fetch_by_subject(delivered.subject) == by_ticket


async def check_files(lab: ArchiveLab, reader: str, delivered: Delivered) -> None:
    """The same bytes of all files."""
    async with client_as(lab.nats, reader) as client:
        found = await DeliverableService(client).fetch(delivered.ref)
        artifacts = found.deliverable.artifacts
        assert await ArtifactStore(client).get_all(delivered.subject.split(".")[2], artifacts) == delivered.files


async def test_what_retention_dropped_comes_from_the_archive(lab: ArchiveLab, stack: LocalStack) -> None:
    """For agents, the gateway, judges and people, who have no access to its folder."""
    early = await lab.deliver("roy", "dropped", FILES)
    async with lab.archiver().running(), lab.serving():
        await lab.settled("roy")
        await check_archived(lab, "cynthia", early, source="stream")
        late = await lab.deliver("roy", "kept")
        await lab.settled("roy")
        await lab.drop("roy")
        for reader in ("cynthia", "roy", "gateway", "judge", "observer", "core"):
            await check_archived(lab, reader, early)
        await check_archived(lab, "observer", late, source="stream")
        await check_files(lab, "cynthia", early)
        name = f"{early.ref.stream}:{early.ref.sequence}"
        data_dir = stack.config.data_dir
        told = await asyncio.to_thread(coatcheck, "fetch", name, "--json", data_dir=data_dir)
        assert (told.code, told.json["from"], told.json["deliverable"]["content"]) == (0, "archive", early.content)
        out = lab.folder.parent / "out"
        told = await asyncio.to_thread(coatcheck, "fetch", early.subject, "--out", str(out), data_dir=data_dir)
        assert "comes from the archive" in told.err
    assert {path: (out / path).read_bytes() for path in early.files} == early.files
    found = await verify(lab.shelf())
    assert (found.messages, found.contents, found.problems) == (2, 5, [])


async def test_an_archive_that_somebody_wrote_to_is_not_believed(lab: ArchiveLab) -> None:
    """Its hashes fit, since whoever can write there makes them fit; the agent's signature does not."""
    real = await lab.deliver("priya", "tampered")
    async with lab.archiver().running(), lab.serving():
        await lab.settled("priya")
        await lab.deliver("priya", "later")
        await lab.settled("priya")
        await lab.drop("priya")
        shelf = lab.shelf()
        record = await shelf.find(real.ref.stream, real.ref.sequence)
        assert record is not None
        body = encode_deliverable(deliverable("priya", "statistics", "tampered", "# Rewritten"))
        digest = await shelf.keep_body(body)
        headers = {**record.headers, "Content-SHA256": digest}
        changed = {"sha256": digest, "bytes": len(body), "headers": headers}
        later = {"stored_at": record.stored_at + timedelta(seconds=1)}
        await shelf.keep_record(record.model_copy(update=changed | later))
        async with client_as(lab.nats, "cynthia") as client:
            service = DeliverableService(client)
            assert (await service.fetch(real.ref)).deliverable.content == real.content
            for ask in (
                service.fetch_by_sequence(real.ref.stream, real.ref.sequence),
                service.fetch_by_subject(real.subject),
            ):
                with pytest.raises(DeliverableUnverifiedError, match="does not fit"):
                    await ask


async def test_gone_is_told_apart(lab: ArchiveLab) -> None:
    """Dropped before it was archived, lost, never there, and nobody to ask: each its own error."""
    gone = await lab.deliver("cynthia", "never-archived", {"a.py": b"a"})
    await lab.deliver("cynthia", "later", {"b.py": b"b"})
    artifacts = (await DeliverableService(lab.core).fetch(gone.ref)).deliverable.artifacts
    await lab.drop("cynthia")
    async with client_as(lab.nats, "sylvia") as client:
        service, files = DeliverableService(client), ArtifactStore(client)
        asking = (service.fetch(gone.ref), service.fetch_by_subject(gone.subject), files.get_all("cynthia", artifacts))
        for ask in asking:
            with pytest.raises(MessagingUnavailableError, match="archive does not answer") as failure:
                await ask
            assert failure.value.retryable, "an archive that is away for a moment ends no run"
        async with lab.serving():
            with pytest.raises(DeliverableExpiredError, match=r"begins at .* from .*; nor is it in the archive"):
                await service.fetch(gone.ref)
            with pytest.raises(DeliverableExpiredError, match=r"\.1 is no longer kept"):
                await service.fetch_by_sequence(gone.ref.stream, gone.ref.sequence)
            with pytest.raises(DeliverableExpiredError, match=r"a\.py .* no longer kept"):
                await files.get_all("cynthia", artifacts)
            with pytest.raises(DeliverableNotFoundError, match="nothing is stored"):
                await service.fetch_by_subject(gone.subject)
            with pytest.raises(DeliverableLostError):
                await service.fetch(gone.ref.model_copy(update={"sequence": 1000}))


async def test_deaths_at_the_points_that_matter(lab: ArchiveLab, tmp_path: Path) -> None:
    """Kill -9 before, in the middle of and after what is stored: nothing is missing, nothing is there twice."""
    fired = tmp_path / "fired"
    fired.mkdir()
    points = ("archive.before_store", "archive.before_record", "archive.after_store")
    told = ",".join(f"{point}=kill*1" for point in points)
    variables = {"COATCHECK_FAILPOINTS": told, "COATCHECK_FAILPOINTS_DIR": str(fired)}
    delivered = [
        await lab.deliver("jen", f"deaths-{n}", {"same.txt": b"same", f"{n}.txt": b"%d" % n}) for n in range(3)
    ]
    for number in range(len(points)):
        with lab.process(**variables) as process:
            async with asyncio.timeout(60):
                assert await asyncio.to_thread(process.wait) == -signal.SIGKILL
        assert len(list(fired.iterdir())) == number + 1
        assert (await lab.lag("jen")).unarchived == 3
    with lab.process(**variables):
        await lab.settled("jen")
        await lab.drop("jen")
        for one in delivered[:2]:
            await check_archived(lab, "observer", one)  # the process serves the archive, too
    found = await verify(lab.shelf())
    assert (found.messages, found.contents, found.problems) == (3, 3 + 4, [])
    assert Counter(name.split("/")[0] for name in lab.objects()) == {"objects": 7, "messages": 3, "subjects": 3}


async def test_object_storage_away_and_back(
    lab: ArchiveLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody who delivers notices; the archive lags, says so, and catches up."""
    (tmp_path / "s3" / "bucket").mkdir(parents=True)
    server = S3Server(tmp_path / "s3", tmp_path)
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(archiver, "LONGEST_PAUSE_SECONDS", 0.1)
    shelf = open_shelf("s3://bucket/archive", patience_seconds=0.2)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(server.kill)
        server.start()
        async with lab.archiver(shelf).running(), lab.serving(shelf):
            before = await lab.deliver("billy", "before", FILES)
            await lab.settled("billy")
            server.kill()
            during = await lab.deliver("billy", "during", {"b.txt": b"b"})
            async with asyncio.timeout(60):
                while "agog_features_qa is not archived just now: s3://bucket/archive" not in caplog.text:
                    await asyncio.sleep(0.02)
            assert (await lab.lag("billy")).unarchived == 1
            await lab.deliver("billy", "kept")
            server.start()
            await lab.settled("billy")
            await lab.drop("billy")
            for one in (before, during):
                await check_archived(lab, "roy", one)
                await check_files(lab, "roy", one)
            server.kill()
            async with client_as(lab.nats, "roy") as client:
                with pytest.raises(MessagingUnavailableError, match="archive does not answer: s3://bucket/archive"):
                    await DeliverableService(client).fetch(during.ref)
            server.start()
        found = await verify(shelf)
    assert (found.messages, found.problems) == (3, [])


class CountingFolder(Folder):
    """Counts what is written."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.written: Counter[str] = Counter()

    def put(self, path: str, source: Path | bytes) -> None:
        """Count, then write."""
        self.written[path] += 1
        super().put(path, source)


async def test_two_archivers_store_each_thing_once(lab: ArchiveLab) -> None:
    """One has the lock, the other stands by; and where both would write the same, it is the same."""
    folder = CountingFolder(lab.folder)
    shelves = [Shelf(folder, place="one"), Shelf(folder, place="two")]
    async with lab.archiver(shelves[0]).running(), lab.archiver(shelves[1]).running():
        delivered = [await lab.deliver("priya", f"twice-{n}", {"same.txt": b"same"}) for n in range(12)]
        await lab.settled("priya")
    assert set(folder.written.values()) == {1}
    before = lab.objects()
    assert before.keys() == folder.written.keys()
    assert len(before) == 3 * len(delivered) + 1
    again = BatchConsumer(lab.core, stream=spec_of("priya").name, name="again")
    await again.rewind()
    messages = await again.fetch(100, wait_seconds=5)
    await again.close()
    assert len(messages) == len(delivered)
    lab.folder.rename(lab.folder.with_name("first"))
    await asyncio.gather(*(lab.archiver(shelf).store(messages) for shelf in shelves))
    assert lab.objects() == before


async def test_a_corrupt_object_is_an_error_and_no_wrong_body(lab: ArchiveLab) -> None:
    """Body, file, record: each is found out by who reads it and by who looks it over, and mended while it can be."""
    one = await lab.deliver("sylvia", "corrupt", {"c.txt": b"some text"})
    async with lab.archiver().running(), lab.serving():
        await lab.settled("sylvia")
        shelf = lab.shelf()
        stored = await DeliverableService(lab.core).fetch(one.ref)
        body, file = (
            lab.folder / object_key(one.ref.sha256),
            lab.folder / object_key(stored.deliverable.artifacts[0].sha256),
        )
        [record] = (lab.folder / "messages" / one.ref.stream).rglob("*.*")
        for path in (body, file, record):
            corrupt(path)
            assert len((await verify(shelf)).problems) == 1
            corrupt(path)  # the same bit again
        file.rename(file.with_name("away"))
        assert "c.txt of agog_features_critique.1 is missing" in (await verify(shelf)).problems[0]
        corrupt(body)
        await lab.core.api(f"CONSUMER.DELETE.{one.ref.stream}.{ARCHIVER}")
        async with asyncio.timeout(60):
            while (await verify(shelf)).problems:
                await asyncio.sleep(0.1)
        await lab.deliver("sylvia", "kept")
        await lab.settled("sylvia")
        await lab.drop("sylvia")
        await check_archived(lab, "roy", one)
        await check_files(lab, "roy", one)
        async with client_as(lab.nats, "roy") as client:
            for path, complaint in ((body, "have this sha256"), (record, "corrupt")):
                corrupt(path)
                with pytest.raises(DeliverableCorruptError, match=complaint):
                    await DeliverableService(client).fetch(one.ref)
                corrupt(path)
            corrupt(file)
            with pytest.raises(DeliverableCorruptError, match="have this sha256"):
                await ArtifactStore(client).get("sylvia", stored.deliverable.artifacts[0])


async def test_an_alarm_before_retention_drops_anything(
    lab: ArchiveLab, stack: LocalStack, caplog: pytest.LogCaptureFixture
) -> None:
    """Lag is visible everywhere; 70, 85 and 95% of a limit are said, louder each time."""
    spec, data_dir = spec_of("roy"), stack.config.data_dir
    await lab.core.api(f"STREAM.UPDATE.{spec.name}", {**stream_config(spec), "max_msgs": 20, "max_age": 0})
    alarm, levels = Alarm(), []
    for number in range(20):
        await lab.deliver("roy", f"alarm-{number}")
        lag = await lab.lag("roy")
        levels.append(lag.level)
        alarm.look(lag)
    assert levels == [0] * 13 + [70] * 3 + [85] * 2 + [95] * 2
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR", "CRITICAL"]
    status, streams, seen, doctor = await asyncio.gather(
        *(
            asyncio.to_thread(coatcheck, *command, "--json", data_dir=data_dir)
            for command in (("archive", "status"), ("streams",), ("status",), ("doctor",))
        )
    )
    assert (status.code, status.json[2]["level"]) == (3, 95), "and nobody serves it"
    assert {one["name"]: one["unarchived"] for one in streams.json}[spec.name] == 20
    assert seen.json["unarchived"] == 20
    [finding] = [one for one in doctor.json if one["check"] == "archive"]
    assert finding["verdict"] == "failed"
    assert f"{spec.name}: 20 deliverables wait since" in finding["detail"]
    async with lab.archiver().running(), lab.serving():
        await lab.settled("roy")
        status = await asyncio.to_thread(coatcheck, "archive", "status", data_dir=data_dir)
    assert (status.code, f"the archive is in {lab.folder}" in status.err) == (0, True)
