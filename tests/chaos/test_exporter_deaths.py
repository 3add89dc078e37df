"""kill -9 of the exporter, at random and at every file: the bytes are those of an undisturbed export."""

import hashlib
import json
import random
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from coatcheck.localstack import LocalStack
from coatcheck.localstack.status import NatsStatus, PostgresStatus
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.streams import ensure_streams
from tests.chaos.export_once import export
from tests.forks import FORKS
from tests.integration.nats_clients import client_as
from tests.integration.training_lab import (
    RULE_CACHE,
    RunMaker,
    Texts,
    every_stream,
    files_below,
    gather_runs,
    last_sequence,
    publish_all,
)

KILLS = 20
EVENTS = 10_000
DAYS = 8
LATEST_KILL = 2 / DAYS
"""Of what the whole takes, after a start: two days' worth of work, so the deaths are spread over all of them."""
SEED = 20261121


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsStatus]:
    """A server of the test's own."""
    with LocalStack(tmp_path / "nats", servers=("nats",), workers=()) as stack:
        status = stack.status().nats
        assert status is not None
        yield status


@pytest.fixture
async def core(nats: NatsStatus) -> AsyncIterator[NatsClient]:
    """Who writes the log."""
    async with client_as(nats, "core") as client:
        await ensure_streams(client, every_stream())
        yield client


@dataclass
class Exports:
    """Exports of one log in processes of their own."""

    options: dict[str, Any]
    folder: Path

    def start(self, name: str, **more: Any) -> ForkServerProcess:
        """Begin an export into the folder `name`."""
        where = {"out": str(self.folder / name), "staging": str(self.folder / f"staging-{name}")}
        process = FORKS.Process(target=export, args=(self.options | where | more,))
        process.start()
        return process

    def run(self, name: str, **more: Any) -> int | None:
        """Export into the folder `name`; returns the exit code."""
        process = self.start(name, **more)
        process.join()
        return process.exitcode

    def files(self, name: str) -> dict[str, bytes]:
        """What others can see: files under their own names."""
        found = files_below(self.folder / name)
        return {path: content for path, content in found.items() if not path.rpartition("/")[2].startswith(".")}

    def check(self, name: str, expected: dict[str, bytes]) -> None:
        """Every file that is there is whole, and no manifest vouches for what is not there."""
        found = self.files(name)
        for path, content in found.items():
            if not path.startswith("manifests/"):
                assert content == expected[path], path
                continue
            for told in json.loads(content)["types"].values():
                for named, file in told["files"].items():
                    assert hashlib.sha256(found[named]).hexdigest() == file["sha256"], (path, named)


@pytest.fixture
async def exports(
    nats: NatsStatus, database: PostgresStatus, core: NatsClient, tmp_path: Path, request: pytest.FixtureRequest
) -> Exports:
    """A log of so many events that is 8 days long, and a few conversations."""
    maker = RunMaker(nats, database, core)
    for _ in range(3):
        await maker.run(Texts(comment="Ask bob@example.com"))
    await publish_all(core, gather_runs(request.param // 92 + 1, tools=40, spread=timedelta(days=DAYS)))
    newest = await last_sequence(core)
    assert newest >= request.param
    options = {
        "nats": nats.model_dump(mode="json"),
        "postgres": database.model_dump(mode="json"),
        "newest": newest,
        "per_day": newest // DAYS,
        "cache": str(RULE_CACHE),
    }
    return Exports(options, tmp_path)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("exports", [EVENTS], indirect=True)
async def test_killed_anywhere_it_ends_with_the_same_bytes(exports: Exports) -> None:
    """20 times at random moments, then left alone; what is there in between is whole."""
    begun = time.monotonic()
    assert exports.run("undisturbed") == 0
    seconds = time.monotonic() - begun
    expected = exports.files("undisturbed")
    manifests = {path for path in expected if path.startswith("manifests/")}
    assert len(manifests) >= DAYS
    events = sum(
        content.count(b"\n")
        for path, content in expected.items()
        if path.startswith("agent_events/agent") and path.endswith("jsonl")
    )
    assert events == exports.options["newest"], "each event is in exactly one file"

    moments, kills, finished, seen = random.Random(SEED), 0, 0, set()
    while kills < KILLS:
        name = f"disturbed-{finished}"
        child = exports.start(name)
        child.join(moments.uniform(0.2, LATEST_KILL * seconds))
        child.kill()
        child.join()
        assert child.exitcode in (0, -9)
        finished += child.exitcode == 0
        kills += child.exitcode == -9
        exports.check(name, expected)
        seen.add(len(exports.files(name)))
    print(f"undisturbed: {seconds:.1f} s; {kills} kills, {finished} exports got through between them, seed {SEED}")
    name = f"disturbed-{finished}"
    assert exports.run(name) == 0
    for number in range(finished + 1):
        assert exports.files(f"disturbed-{number}") == expected
    assert not any(path.rpartition("/")[2].startswith(".") for path in files_below(exports.folder / name))
    assert len(seen) > 2, "the kills came at different points"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("exports", [500], indirect=True)
async def test_killed_while_it_publishes_it_ends_with_the_same_bytes(exports: Exports) -> None:
    """Before and after a day's first and last file and its manifest: the next export goes on from there."""
    assert exports.run("undisturbed") == 0
    expected = exports.files("undisturbed")
    counts = {
        path: 1 + sum(len(told["files"]) for told in json.loads(content)["types"].values())
        for path, content in expected.items()
        if path.startswith("manifests/")
    }
    manifest, count = max(counts.items(), key=lambda item: item[1])
    assert count >= 5
    day = manifest.rpartition("_")[2].removesuffix(".json")
    for number in (1, count - 1, count):
        for when in ("before", "after"):
            assert exports.run("disturbed", dies={"day": day, when: number}) == -9
            exports.check("disturbed", expected)
            has_manifest = manifest in exports.files("disturbed")
            assert has_manifest == (number == count and when == "after")
    assert exports.run("disturbed") == 0
    assert exports.files("disturbed") == expected
