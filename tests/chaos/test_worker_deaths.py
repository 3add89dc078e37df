"""Workers die at every named point, and in the middle of a model call: the run goes on and nothing is done twice."""

import pytest

from schemas.activities import STAGE_HEARTBEAT_TIMEOUT, STAGE_RETRY
from tests.chaos.lab import LONG_TURNS, RECOVERY_SECONDS, Lab

BETWEEN_TWO_TURNS = 5
"""The call after which the backend stage goes on to its second turn."""


@pytest.mark.parametrize(
    ("member", "point"),
    [
        ("agents", "agent.before_turn"),
        ("agents", "agent.after_turn"),
        ("agents", "agent.before_publish"),
        ("agents", "agent.after_publish"),
        ("core", "state.before_record"),
        ("core", "state.after_record"),
        ("gateway", "llm.before_claim"),
        ("gateway", "llm.after_claim"),
        ("gateway", "llm.after_journal"),
    ],
)
async def test_death_at_a_point(lab: Lab, member: str, point: str) -> None:
    """A worker dies at the point, once: no model call is made again, finished or in flight."""
    feature = point.replace(".", "-").replace("_", "-")
    run = await lab.start(feature)
    await lab.calls(run, BETWEEN_TWO_TURNS)
    dead = await lab.death(member, point)
    seconds = await lab.recovery(member, dead, run)
    print(f"{point}: ended {seconds:.1f} s after the {member} worker was back")
    assert (await lab.inspect(run)).violations == []
    assert lab.calls_begun(feature) == LONG_TURNS
    assert seconds < RECOVERY_SECONDS


def test_the_hundredth_death_is_no_slower_than_the_first() -> None:
    """Noticing a dead worker and the pause before the next attempt leave time for the rest of the run."""
    assert STAGE_RETRY.maximum_interval is not None
    assert (STAGE_HEARTBEAT_TIMEOUT + STAGE_RETRY.maximum_interval).total_seconds() < RECOVERY_SECONDS


@pytest.mark.parametrize("answered", ["while-nobody-asks", "once-asked-again"])
async def test_the_agents_worker_dies_in_the_middle_of_a_model_call(lab: Lab, answered: str) -> None:
    """The call goes on in the gateway, and its answer is the next attempt's: journalled by then, or joined."""
    feature = f"mid-call-{answered}"
    async with lab.calls_held():
        run = await lab.start(feature)
        await lab.calls(run, 1)
        dead = lab.stack.kill("agents")
        if answered == "once-asked-again":
            await lab.attempt(run, 2)
    seconds = await lab.recovery("agents", dead, run)
    print(f"mid-call, answered {answered}: ended {seconds:.1f} s after the agents worker was back")
    assert (await lab.inspect(run)).violations == []
    assert lab.calls_begun(feature) == LONG_TURNS
    assert seconds < RECOVERY_SECONDS


async def test_the_core_worker_dies_while_a_stage_works(lab: Lab) -> None:
    """The agent does not notice: its call is made once and its deliverable waits for the next core worker."""
    feature = "core-mid-run"
    async with lab.calls_held():
        run = await lab.start(feature)
        await lab.calls(run, 1)
        dead = lab.stack.kill("core")
    seconds = await lab.recovery("core", dead, run)
    print(f"core mid-run: ended {seconds:.1f} s after the core worker was back")
    assert (await lab.inspect(run)).violations == []
    assert lab.calls_begun(feature) == LONG_TURNS
    assert seconds < RECOVERY_SECONDS


@pytest.mark.parametrize("moment", ["in-flight", "finished-not-journalled"])
async def test_a_gateway_takes_its_call_into_the_grave(lab: Lab, moment: str) -> None:
    """The stated exception: the one call that was in flight in a dying gateway is made again, and no other."""
    feature = f"gateway-{moment}"
    run = await lab.start(feature)
    await lab.calls(run, BETWEEN_TWO_TURNS)
    if moment == "in-flight":
        async with lab.calls_held():
            await lab.call_in_flight(run)
            dead = lab.stack.kill("gateway")
    else:
        dead = await lab.death("gateway", "llm.before_journal")
    seconds = await lab.recovery("gateway", dead, run)
    print(f"gateway, {moment}: ended {seconds:.1f} s after the gateway worker was back")
    assert (await lab.inspect(run, may_be_repeated=1)).violations == []
    assert lab.calls_begun(feature) == LONG_TURNS + 1
    assert seconds < RECOVERY_SECONDS
