"""`make soak-cluster`: whole runs on three NATS servers, of which the leader of some stream is killed again and again.

Not part of `make test`: it takes minutes. What the streams themselves do is in tests/integration/test_nats_cluster.py.
"""

import asyncio
import sys
import tempfile
import time
from itertools import count, cycle
from pathlib import Path

from tests.chaos.evidence import Run
from tests.chaos.lab import Lab, open_lab
from tests.nats_cluster import leader_of

IN_FLIGHT = 20
SECONDS = 240.0
BETWEEN_KILLS_SECONDS = 20.0
RUN_PATIENCE_SECONDS = 300.0
"""For twenty at once on few cores, beside a server that is killed twice or more while they are under way."""
LED = ("agog_features_backend", "audit_log", "KV_agent_state", "agog_features_qa", "OBJ_artifacts_roy")


async def main() -> int:
    """Print the figures; 1 when a rule is broken."""
    with tempfile.TemporaryDirectory() as folder:
        async with open_lab(Path(folder), clustered=True) as lab:
            over = asyncio.Event()
            begin = time.monotonic()
            async with asyncio.TaskGroup() as group:
                load = group.create_task(keep_running(lab, over))
                kills = await kill_leaders(lab)
                over.set()
            runs = load.result()
            seconds = time.monotonic() - begin
            findings = await lab.inspect(*runs)
    deliverables = sum(len(item.own_messages) for item in findings.evidence)
    events = sum(len(item.events) for item in findings.evidence)
    print(f"{len(runs)} runs, {IN_FLIGHT} at once, in {seconds:.0f} s; leaders killed: {', '.join(kills)}")
    print(f"{deliverables} deliverables, {events} events, {len(findings.violations)} violations")
    for violation in findings.violations[:50]:
        print(f"  {violation.rule}: {violation.detail}")
    return bool(findings.violations) or len(kills) < SECONDS / BETWEEN_KILLS_SECONDS / 2


async def kill_leaders(lab: Lab) -> list[str]:
    """Every 20 s `kill -9` whoever leads the next stream, and start it again; returns who it was."""
    assert lab.cluster is not None
    killed: list[str] = []
    end = time.monotonic() + SECONDS
    async with lab.cluster.client("core") as core:
        for stream in cycle(LED):
            due = time.monotonic() + BETWEEN_KILLS_SECONDS
            leader = await leader_of(core, stream)
            lab.cluster.kill(leader)
            killed.append(leader)
            await asyncio.to_thread(lab.cluster.start, leader)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if time.monotonic() >= end:
                return killed
    raise AssertionError("the streams never end")


async def keep_running(lab: Lab, over: asyncio.Event) -> list[Run]:
    """Keep so many runs in flight until it is over; all of them have ended then."""
    runs: list[Run] = []
    numbers = count(1)

    async def one_after_the_other() -> None:
        while not over.is_set():
            run = await lab.start(f"cluster-{next(numbers)}")
            runs.append(run)
            await lab.ended(run, patience_seconds=RUN_PATIENCE_SECONDS)

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(one_after_the_other())
    return runs


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
