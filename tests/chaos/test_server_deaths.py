"""A server dies or stands still in the middle of runs: they complete, nothing is lost, nothing is paid twice."""

import asyncio

import pytest

from tests.chaos.lab import LONG_TURNS, RECOVERY_SECONDS, Lab
from tests.standstill import stopped

STANDSTILL_SECONDS = 3.0
"""Shorter than any time-out that would make somebody give a server up, longer than a hiccup."""
SERVERS = ("nats", "postgres", "temporal")


@pytest.mark.parametrize("server", SERVERS)
async def test_a_server_is_killed(lab: Lab, server: str) -> None:
    """Kill -9 with three runs in flight; the supervisor starts it again on its port."""
    features = [f"kill-{server}-{number}" for number in range(3)]
    runs = [await lab.start(feature) for feature in features]
    await lab.calls(runs[-1], 3)
    dead = lab.stack.kill(server)
    seconds = await lab.recovery(server, dead, *runs)
    print(f"{server} killed: the last of {len(runs)} runs ended {seconds:.1f} s after it was back")
    assert (await lab.inspect(*runs)).violations == []
    assert [lab.calls_begun(feature) for feature in features] == [LONG_TURNS] * len(runs)
    assert seconds < RECOVERY_SECONDS


@pytest.mark.parametrize("server", SERVERS)
async def test_a_server_stands_still(lab: Lab, server: str) -> None:
    """SIGSTOP for 3 s: connections stay open and nobody answers, which is not the same as a death."""
    features = [f"stop-{server}-{number}" for number in range(3)]
    runs = [await lab.start(feature) for feature in features]
    await lab.calls(runs[-1], 3)
    async with stopped(lab.stack.pid(server)):
        await asyncio.sleep(STANDSTILL_SECONDS)
    going_on = asyncio.get_running_loop().time()
    await asyncio.gather(*(lab.ended(run) for run in runs))
    seconds = asyncio.get_running_loop().time() - going_on
    print(f"{server} stopped: the last of {len(runs)} runs ended {seconds:.1f} s after it went on")
    assert (await lab.inspect(*runs)).violations == []
    assert [lab.calls_begun(feature) for feature in features] == [LONG_TURNS] * len(runs)
    assert seconds < RECOVERY_SECONDS
