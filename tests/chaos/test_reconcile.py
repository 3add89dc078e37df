"""The core worker dies in the middle of a repair; a reset run is compared while it works."""

import asyncio
import time
import uuid
from collections import Counter

import asyncpg
import pytest

from tests.chaos.evidence import Run
from tests.chaos.lab import LONG_TURNS, Lab
from tests.chaos.test_runs import reset

BOUND_SECONDS = 120.0
"""A row says "running" no longer than that after its run has ended."""
POLL_SECONDS = 0.05
STATUS = "SELECT status FROM workflows WHERE workflow_id = $1"


@pytest.mark.parametrize("point", ["reconcile.before_events", "reconcile.after_events", "reconcile.after_rows"])
async def test_death_in_the_middle_of_a_repair(lab: Lab, point: str) -> None:
    """A terminated run is put right by the next core worker, within the bound, and its events are there once."""
    feature = point.replace(".", "-").replace("_", "-")
    async with lab.calls_held():
        run = await lab.start(feature)
        await lab.calls(run, 1)
        pid = lab.stack.pid("core")
        lab.arm(point)
        await lab.temporal.get_workflow_handle(run.workflow_id).terminate(reason="by a person")
        ended = time.monotonic()
        await lab.temporal.get_schedule_handle("reconcile").trigger()
        back = await lab.back("core", pid)
        assert lab.fired(point)
        await becomes(lab, run, "cancelled")
        seconds = time.monotonic() - ended
    print(
        f"{point}: put right {seconds:.1f} s after the run ended, {time.monotonic() - back:.1f} s after core was back"
    )
    assert seconds < BOUND_SECONDS
    await look(lab)
    repairs = {kind: count for kind, count in (await events(lab, run)).items() if kind.endswith(".repaired")}
    assert repairs == {"run.repaired": 1, "stage.repaired": 1}
    rows = await query(lab, "SELECT status, error FROM task_executions WHERE workflow_id = $1", run.key)
    assert [row["status"] for row in rows] == ["cancelled"]
    assert rows[0]["error"].endswith("by a person")


async def test_a_reset_run_is_left_to_itself(lab: Lab) -> None:
    """Compared before and after its reset in mid-run, it is found by its first run id; it ends as if nobody looked."""
    feature = "reset-compared"
    run = await lab.start(feature)
    await lab.calls(run, 5)
    async with lab.calls_held():
        await lab.call_in_flight(run)
        await look(lab)
        again = await reset(lab, run)
        for _ in range(3):
            await look(lab)
    await lab.ended(again)
    await look(lab)
    assert (await lab.inspect(again)).violations == []
    assert lab.calls_begun(feature) == LONG_TURNS
    assert not [kind for kind in await events(lab, run) if kind.endswith(".repaired")]


async def look(lab: Lab) -> None:
    """One look, to its end."""
    await lab.temporal.execute_workflow("Reconcile", id=f"look-{uuid.uuid4()}", task_queue="coatcheck")


async def becomes(lab: Lab, run: Run, status: str) -> None:
    """Wait until the run's row says so."""
    async with asyncio.timeout(BOUND_SECONDS):
        while [row["status"] for row in await query(lab, STATUS, run.key)] != [status]:
            await asyncio.sleep(POLL_SECONDS)


async def events(lab: Lab, run: Run) -> Counter[str]:
    """Type → how many the audit log has of the run."""
    return Counter(event["event_type"] for event in (await lab._investigator.collect(run)).events)


async def query(lab: Lab, statement: str, *arguments: object) -> list[asyncpg.Record]:
    """Ask the database."""
    postgres = lab.stack.status().postgres
    assert postgres is not None
    connection = await asyncpg.connect(postgres.dsn)
    try:
        return await connection.fetch(statement, *arguments)
    finally:
        await connection.close()
