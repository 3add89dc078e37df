"""The projector as processes of its own, killed at random and at the points that matter: the table is the stream."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from coatcheck.localstack import LocalStack
from coatcheck.messaging.accounts import PROJECTOR
from tests.acceptance.program import environment
from tests.integration.backbone_lab import Backbone, open_backbone
from tests.integration.event_samples import rounds_of, sample_events, sample_key

SEED = int(os.environ.get("COATCHECK_CHAOS_SEED", "4"))
EVENTS = 10_000
DEATHS = 20


@pytest.fixture
async def backbone(new_stack: Callable[..., LocalStack]) -> AsyncIterator[Backbone]:
    """An audit log and a table of the test's own."""
    async with open_backbone(new_stack) as opened:
        yield opened


class Projectors:
    """Processes that are replaced when they die."""

    def __init__(self, backbone: Backbone, log: Path) -> None:
        status = backbone.stack.status()
        assert status.nats is not None
        assert status.postgres is not None
        key = status.nats.users["core"].nkey_file
        assert key is not None
        self._log = log
        self._environment = environment(
            NATS_URL=status.nats.url,
            DATABASE_URL=status.postgres.dsn,
            COATCHECK_NATS_KEYS_DIR=str(key.parent),
            COATCHECK_DATA_DIR=str(backbone.stack.config.data_dir),
        )
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, **variables: str) -> subprocess.Popen[bytes]:
        """One more."""
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "workers", "projector"],
                env=self._environment | variables,
                stdout=log,
                stderr=log,
            )
        self._running.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """With SIGKILL, and wait until it is gone."""
        process.kill()
        process.wait()
        self._running.remove(process)

    def kill_all(self) -> None:
        """Leave nothing behind."""
        for process in list(self._running):
            self.kill(process)

    def begun(self) -> int:
        """How often one of them has begun to project."""
        return self._log.read_text().count(f"{PROJECTOR} reads the audit log from")


@pytest.fixture
def projectors(backbone: Backbone, tmp_path: Path) -> Iterator[Projectors]:
    """None yet."""
    made = Projectors(backbone, tmp_path / "projectors.log")
    yield made
    made.kill_all()


async def test_random_kills_while_events_come(backbone: Backbone, projectors: Projectors) -> None:
    """20 kills during 10,000 events, half of them of the active one; no row twice, none missing, each run in order."""
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    pair = [projectors.start(), projectors.start()]
    batches = list(rounds_of([sample_key(number) for number in range(50)], EVENTS // 50))
    killed = 0
    for number, batch in enumerate(batches):
        await backbone.log.publish(batch)
        if killed < DEATHS and killed < DEATHS * number / len(batches):
            await _active(backbone)
            await asyncio.sleep(chance.uniform(0, 0.3))  # chance, not synchronisation
            victim = chance.randrange(2)
            projectors.kill(pair[victim])
            pair[victim] = projectors.start()
            killed += 1
    status = await backbone.settled(60)
    assert killed == DEATHS
    assert projectors.begun() > DEATHS // 4  # so often the active one was hit
    assert (status.events, status.dead_letters) == (EVENTS, 0)
    assert len(await backbone.check_table()) == EVENTS


@pytest.mark.parametrize("point", ["projector.before_insert", "projector.after_insert"])
async def test_a_death_at_a_point_that_matters(
    backbone: Backbone, projectors: Projectors, tmp_path: Path, point: str
) -> None:
    """Before the rows are there, and when they are there and not acknowledged: three deaths in a row, then success."""
    for number in range(5):
        await backbone.log.publish(sample_events(sample_key(number), 40))
    await backbone.store(b"poison", "poison")
    fired = tmp_path / "fired"
    fired.mkdir()
    variables = {"COATCHECK_FAILPOINTS": f"{point}=kill*3", "COATCHECK_FAILPOINTS_DIR": str(fired)}
    for _ in range(3):
        process = projectors.start(**variables)
        async with asyncio.timeout(30):
            assert await asyncio.to_thread(process.wait) == -signal.SIGKILL
        rows = len(await backbone.rows())
        assert rows == (200 if point.endswith("after_insert") else 0)
        assert (await backbone.status()).lag == 201
    projectors.start(**variables)
    status = await backbone.settled()
    assert len(list(fired.iterdir())) == 3
    assert (status.events, status.dead_letters) == (201, 1)
    assert len(await backbone.rows()) == 200
    await backbone.check_order()


async def test_a_stopped_process_is_not_overtaken(backbone: Backbone, projectors: Projectors) -> None:
    """The active one stands still (SIGSTOP) with its lock: the standby waits, and goes on when it is killed."""
    active = projectors.start()
    await backbone.log.publish(sample_events(sample_key(1), 40))
    await backbone.settled()
    projectors.start()
    active.send_signal(signal.SIGSTOP)
    await backbone.log.publish(sample_events(sample_key(2), 40))
    with pytest.raises(TimeoutError):
        await backbone.settled(3)
    assert await backbone.lock_holders() == 1
    projectors.kill(active)
    await backbone.settled()
    assert projectors.begun() == 2
    assert len(await backbone.check_table()) == 80


async def _active(backbone: Backbone) -> None:
    """Until one of them has the lock."""
    async with asyncio.timeout(30):
        while not await backbone.lock_holders():
            await asyncio.sleep(0.02)
