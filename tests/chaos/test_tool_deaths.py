"""kill -9 of gateways a hundred times, at every point of a call and at random: no effect twice, every call ends.

The judge is the server's own ledger. Two tools are called all the while: `count`, which must not be called twice, and
`echo`, which may, and so must never end as unknown.
"""

import asyncio
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from coatcheck.errors import MessagingUnavailableError
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging import work_queue
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.streams import ensure_streams
from coatcheck.storage.database import open_pool
from schemas.mcp import CallTool, ToolOutcome, ToolPending, ToolReply, ToolsReply
from schemas.streams import DEAD_LETTERS
from schemas.subjects import tools_subject
from tests.integration.nats_clients import client_as
from tests.integration.tool_lab import counted, counting_server, make_queues
from tests.providers.gateway import record_task
from tests.tools.gateway import ACK_WAIT_SECONDS, GatewayOrder, start

KILLS = 100
GATEWAYS = 6
LANES = 60
POINTS = ("before_queue", "after_queue", "before_claim", "after_claim", "after_call")
POINTS += ("after_outcome", "after_result", "after_ack")
PERCENT = 30
"""Of the passes of a point: a process lives for a handful of calls."""


class Herd:
    """Gateways that die at points, or are killed, and are replaced at once, until there were enough deaths."""

    def __init__(self, order: GatewayOrder, folder: Path, seed: int) -> None:
        self._order = order
        self._folder = folder
        self._numbers = itertools.count()
        self._chance = random.Random(seed)
        self.deaths: Counter[str] = Counter()
        self._alive: list[tuple[str, BaseProcess]] = []

    async def rage(self) -> None:
        """Keep them dying."""
        points = itertools.cycle((*POINTS, "at random"))
        while sum(self.deaths.values()) < KILLS:
            while len(self._alive) < GATEWAYS:
                self._alive.append(self._start(next(points)))
            await asyncio.sleep(0.05)
            for _, process in [it for it in self._alive if it[0] == "at random"]:
                if self._chance.random() < 0.15 and process.pid is not None:
                    os.kill(process.pid, signal.SIGKILL)
                    process.join()
            for entry in [it for it in self._alive if not it[1].is_alive()]:
                assert entry[1].exitcode == -signal.SIGKILL
                self.deaths[entry[0]] += 1
                self._alive.remove(entry)

    async def calm_down(self) -> None:
        """End the mortal ones and leave one that does not die."""
        for _, process in self._alive:
            process.kill()
        self._alive = [self._start("")]

    def close(self) -> None:
        """End them all."""
        for _, process in self._alive:
            process.kill()
            process.join()

    def _start(self, point: str) -> tuple[str, BaseProcess]:
        failpoints = f"tools.{point}=kill%{PERCENT}" if point in POINTS else ""
        ready = self._folder / str(next(self._numbers))
        order = GatewayOrder(self._order.nats, self._order.dsn, self._order.servers, failpoints, ready)
        return point, start(order)


class Caller:
    """Roy's worker: asks for each call until it has ended."""

    def __init__(self, nats: NatsClient, task_key: str, server: str) -> None:
        self._nats = nats
        self._task_key = task_key
        self._server = server
        self.ended: dict[str, ToolOutcome] = {}
        self.refused: list[ToolReply] = []

    async def call(self, tool: str, key: str) -> None:
        """One call to its end."""
        arguments = {"key": key, "seconds": 0.03} if tool == "count" else {"text": key}
        call = CallTool(task_key=self._task_key, tool_call_id=key, server=self._server, tool=tool, arguments=arguments)
        payload = call.model_dump_json().encode()
        while True:
            try:
                reply = ToolsReply.model_validate_json(
                    await self._nats.request(tools_subject("roy"), payload, timeout=0.8)
                ).root
            except MessagingUnavailableError:
                await asyncio.sleep(0.05)
                continue
            if isinstance(reply, ToolOutcome):
                self.ended[key] = reply
                return
            if not isinstance(reply, ToolPending):
                self.refused.append(reply)
                await asyncio.sleep(0.05)


@pytest.fixture
async def core(nats_server: NatsStatus, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NatsClient]:
    """The core worker, whose queues give a dead gateway's jobs away after a second."""
    monkeypatch.setattr(work_queue, "ACK_WAIT_SECONDS", ACK_WAIT_SECONDS)
    async with client_as(nats_server, "core") as client:
        await ensure_streams(client, [DEAD_LETTERS])
        yield client


@pytest.mark.timeout(60 + 8 * KILLS)  # 0.5 s per death, more than ten times that on a busy machine
async def test_dead_gateways(
    core: NatsClient, nats_server: NatsStatus, postgres_dsn: str, gateway_dsn: str, tmp_path: Path
) -> None:
    """At most one count per key; a result was counted, an error before the call was not; every call ends."""
    seed = time.time_ns() % 10_000
    print(f"seed {seed}")
    ledger = tmp_path / "ledger"
    servers = {
        "mortal": counting_server(
            ledger, max_concurrent=LANES, idempotent=("echo",), failures_to_open=1000, timeout_seconds=60
        )
    }
    await make_queues(core, servers)
    herd = Herd(GatewayOrder(nats_server, gateway_dsn, servers), tmp_path, seed)
    async with open_pool(postgres_dsn) as owner, client_as(nats_server, "roy") as roy:
        caller = Caller(roy, await record_task(owner, agent="roy", stage="backend"), "mortal")
        numbers, over = itertools.count(), asyncio.Event()

        async def lane() -> None:
            while not over.is_set():
                number = next(numbers)
                await caller.call("echo" if number % 4 == 0 else "count", f"k{number}")

        lanes = [asyncio.create_task(lane()) for _ in range(LANES)]
        try:
            async with asyncio.timeout(40 + 8 * KILLS):
                await herd.rage()
                over.set()
                await herd.calm_down()
                await asyncio.gather(*lanes)
        finally:
            for task in lanes:
                task.cancel()
            herd.close()
        left = await owner.fetchval("SELECT count(*) FROM tool_calls WHERE status = 'called'")
    counts, ended = counted(ledger), Counter(outcome.status for outcome in caller.ended.values())
    print(f"{dict(herd.deaths)} deaths, {dict(ended)}, {len(counts)} counted, {len(caller.refused)} refused")
    assert sum(herd.deaths.values()) >= KILLS
    assert set(POINTS) <= set(herd.deaths)
    assert [key for key, times in counts.items() if times > 1] == []
    assert left == 0
    assert len(caller.ended) == next(numbers)
    for key, outcome in caller.ended.items():
        if int(key[1:]) % 4 == 0:
            assert outcome.status == "result", outcome
        elif outcome.status == "result":
            assert counts[key] == 1, key
        elif outcome.status == "error":
            assert counts[key] == 0, (key, outcome)
    assert ended["outcome_unknown"] > 0
