"""Many runs, and workers that die at every point in an order that a seed decides, one member beside the other.

`COATCHECK_CHAOS_SEED` repeats a plan; the timing stays the machine's.
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
MEMBERS = {"agent": "agents", "state": "core", "llm": "gateway"}
"""Prefix of a point → who dies there."""


async def test_workers_die_at_every_point_under_load(lab: Lab) -> None:
    """Every run completes and every rule holds; only calls in flight in a dying gateway may be made again."""
    seed = int(os.environ.get("COATCHECK_CHAOS_SEED", random.randrange(10_000)))
    print(f"COATCHECK_CHAOS_SEED={seed}")
    plans = plan(random.Random(seed))
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
    """Member → its points, every one once, in the order in which it dies there."""
    points = sorted(POINTS)
    chance.shuffle(points)
    return {member: [point for point in points if point.startswith(f"{prefix}.")] for prefix, member in MEMBERS.items()}


async def reap(lab: Lab, member: str, points: list[str]) -> int:
    """Let the member die at each point; returns how many model calls died with it."""
    lost = 0
    for point in points:
        dead = await lab.death(member, point)
        if member == "gateway":
            lost += await lab.in_flight()
        await lab.back(member, dead)
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
