"""Many runs, and workers that die at points that a seed chooses, one member beside the other.

`COATCHECK_CHAOS_SEED` repeats a plan; the timing stays the machine's. `test_worker_deaths` has every point, alone.
"""

import asyncio
import os
import random
from itertools import count

from coatcheck.failpoints import POINTS
from tests.chaos.evidence import Run
from tests.chaos.lab import Lab

IN_FLIGHT = 8
AT_LEAST_RUNS = 20
DEATHS_PER_MEMBER = 2
CALLS_BETWEEN_DEATHS = 6
"""Progress between two deaths of a member: one that dies whenever it is back only shows that nothing can run."""
MEMBERS = {"agent": "agents", "state": "core", "llm": "gateway"}
"""Prefix of a point → who dies there."""


async def test_workers_die_beside_each_other_under_load(lab: Lab) -> None:
    """Every run completes and every rule holds; only calls in flight in a dying gateway may be made again."""
    seed = int(os.environ.get("COATCHECK_CHAOS_SEED", random.randrange(10_000)))
    plans = plan(random.Random(seed))
    print(f"COATCHECK_CHAOS_SEED={seed}: {plans}")
    over = asyncio.Event()
    async with asyncio.TaskGroup() as load:
        running = load.create_task(keep_running(lab, over))
        async with asyncio.TaskGroup() as deaths:
            reapers = [deaths.create_task(reap(lab, member, points)) for member, points in plans.items()]
        over.set()
    runs, lost = running.result(), sum(reaper.result() for reaper in reapers)
    findings = await lab.inspect(*runs, may_be_repeated=lost)
    print(f"{len(runs)} runs, {sum(map(len, plans.values()))} deaths, {lost} calls in flight in dying gateways")
    assert findings.violations == []
    assert len(runs) >= AT_LEAST_RUNS


def plan(chance: random.Random) -> dict[str, list[str]]:
    """Member → the points at which it dies, in that order."""
    points = sorted(POINTS)
    return {
        member: chance.sample([point for point in points if point.startswith(f"{prefix}.")], DEATHS_PER_MEMBER)
        for prefix, member in MEMBERS.items()
    }


async def reap(lab: Lab, member: str, points: list[str]) -> int:
    """Let the member die at each point; returns how many model calls died with it."""
    lost = 0
    for point in points:
        dead = await lab.death(member, point)
        if member == "gateway":
            lost += await lab.in_flight()
        await lab.back(member, dead)
        await lab.more_calls(CALLS_BETWEEN_DEATHS)
    return lost


async def keep_running(lab: Lab, over: asyncio.Event) -> list[Run]:
    """Keep runs in flight until it is over and there were enough; all of them have ended then."""
    runs: list[Run] = []
    numbers = count(1)

    async def one_after_the_other() -> None:
        while not over.is_set() or len(runs) < AT_LEAST_RUNS:
            run = await lab.start(f"soak-{next(numbers)}")
            runs.append(run)
            await lab.ended(run)

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(one_after_the_other())
    return runs
