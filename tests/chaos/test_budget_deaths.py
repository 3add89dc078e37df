"""Budgets while everything dies: no run pays more than it may, no credit is lost or made, nothing is held for ever."""

import asyncio
from decimal import Decimal
from pathlib import Path

from coatcheck.storage import budgets, ledger
from coatcheck.storage.database import Pool, open_pool
from schemas.budget import BLOCKED_BY_BUDGET
from schemas.pipeline import Progress
from tests.chaos.evidence import Run
from tests.chaos.lab import Lab, open_lab
from tests.providers.bill import paid_twice
from tests.providers.script import Step

PRICE = """
[prices."openai:test"]
input_usd = 10
output_usd = 10
as_of = 2026-11-27
source = "the test"
"""
CAP, MORE = Decimal("0.60"), Decimal(20)
FILE = {"path": "backend/made.py", "content": "print('made')\n" * 700}
SPENDTHRIFT = Step(do="write", feature="spendthrift", stage="backend", round=1, times=None, arguments=FILE)
"""Sixty turns of a conversation that grows by 10 KB each: $40 if nobody stopped it."""
DEATHS = {"llm.after_claim": "gateway", "llm.before_journal": "gateway", "llm.after_journal": "gateway"}


async def test_a_cap_holds_while_everything_dies(tmp_path: Path) -> None:
    """Gateway, core worker and PostgreSQL are killed under capped runs; then a person gives one of them more."""
    async with open_lab(tmp_path, settings=PRICE) as lab:
        lab.provider.script.add(SPENDTHRIFT)
        capped = await lab.start("spendthrift", long=False, budget={"usd": str(CAP)})
        others = [await lab.start(f"modest-{number}", budget={"usd": "5"}) for number in range(2)]
        for point, member in DEATHS.items():
            await lab.back(member, await lab.death(member, point))
        await lab.back("core", await lab.death("core", "state.before_record"))
        await lab.back("postgres", lab.stack.kill("postgres"))
        waiting = await blocked(lab, capped)
        await asyncio.gather(*(lab.ended(run) for run in others))
        status = lab.stack.status()
        assert status.postgres is not None
        async with open_pool(status.postgres.dsn) as pool:
            assert await spent(pool, capped) <= CAP
            assert waiting.stages[2].sequence is not None, "the partial work is delivered"
            handle = lab.temporal.get_workflow_handle(capped.workflow_id)
            await handle.execute_update("set_budget", {"budget": {"usd": str(MORE)}, "by": "ann"})
            await lab.ended(capped)
            await settled(pool)
            for run in (capped, *others):
                await spent(pool, run)
                assert (await ledger.balance(pool, f"run/{run.key}")).balance == 0
        assert paid_twice(lab.provider.bill) == {}


async def blocked(lab: Lab, run: Run) -> Progress:
    """Wait until the run asks for more."""
    handle = lab.temporal.get_workflow_handle(run.workflow_id)
    async with asyncio.timeout(90):
        while True:
            progress = Progress.model_validate(await handle.query("progress"))
            if any(BLOCKED_BY_BUDGET in item.reason for item in progress.waiting):
                return progress
            await asyncio.sleep(0.1)


async def spent(pool: Pool, run: Run) -> Decimal:
    """What the run has paid, in dollars: to the micro-credit what its journalled turns cost."""
    rows = await pool.fetch(
        "SELECT cost_usd FROM llm_turns WHERE task_key LIKE $1 || '/%' AND status = 'done'", run.key
    )
    found = await budgets.run_budget(pool, run.key)
    assert found is not None
    assert found.spent == sum(row["cost_usd"] for row in rows) * 1_000_000
    return Decimal(found.spent) / 1_000_000


async def settled(pool: Pool) -> None:
    """The books are right, and a look of reconcile leaves nothing held."""
    await pool.execute("UPDATE holds SET expires_at = now()")  # what the dead left behind; eleven minutes in a test
    await budgets.sweep(pool)
    found = await ledger.check(pool)
    assert (found.is_right, found.total, found.holds, found.shortfall) == (True, 0, 0, 0)
