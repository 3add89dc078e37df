"""Records one history per branch of `Program`: `python -m tests.replay.record_program`.

The same rule as for `tests.replay.record`: a new recording only where new histories are meant to begin.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from temporalio.client import WorkflowFailureError

from schemas.program import MaxConcurrent
from tests.replay.record import without_traces
from tests.workflows.conftest import local_temporal
from tests.workflows.programs import Handle, Programs, becomes, held_programs
from workflows.program import ProgramWorkflow

HISTORIES: Final = Path(__file__).parent / "program_histories"
Branch = Callable[[Programs], Awaitable[Handle]]


async def everything(programs: Programs) -> Handle:
    """Two tenants, a priority, a feature that waits, one that fails, a pause and another bound."""
    features: list[dict[str, object]] = [
        {"feature": "invoice-export", "brief": "hold", "tenant": "finance"},
        {"feature": "invoice-import", "brief": "hold", "tenant": "finance"},
        {"feature": "customer-search", "brief": "hold", "tenant": "sales"},
        {"feature": "login", "brief": "hold", "priority": 1},
    ]
    handle = await programs.start(features, max_concurrent=2)
    await becomes(handle, {"login": "running", "invoice-export": "running"})
    await programs.ask("login", "critique")
    await becomes(handle, {"login": "waiting", "customer-search": "running"})
    await handle.signal(ProgramWorkflow.pause)
    await programs.end("invoice-export")
    await programs.end("customer-search", status="failed")
    await becomes(handle, {"invoice-export": "completed", "customer-search": "failed", "invoice-import": "pending"})
    await handle.execute_update(ProgramWorkflow.set_max_concurrent, MaxConcurrent(max_concurrent=1))
    await handle.signal(ProgramWorkflow.resume)
    await becomes(handle, {"invoice-import": "running"})
    await programs.ask("login", "")
    await becomes(handle, {"login": "running"})
    await programs.end("login", status="rejected")
    await programs.end("invoice-import")
    return handle


async def cancelled(programs: Programs) -> Handle:
    """Cancelled with one feature at work and one that has not begun."""
    handle = await programs.start(["paging", "sorting"], max_concurrent=1)
    await becomes(handle, {"paging": "running"})
    await programs.pipeline("paging")
    await handle.cancel()
    return handle


BRANCHES: tuple[Branch, ...] = (everything, cancelled)


async def record() -> None:
    """Run every branch and write its history."""
    HISTORIES.mkdir(exist_ok=True)
    async with local_temporal() as environment, held_programs(environment.client) as programs:
        for branch in BRANCHES:
            handle = await branch(programs)
            try:
                await handle.result()
            except WorkflowFailureError as failure:
                print(f"{branch.__name__}: {failure.cause}")
            history = await handle.fetch_history()
            (HISTORIES / f"{branch.__name__}.json").write_text(without_traces(history.to_json()) + "\n")


if __name__ == "__main__":
    asyncio.run(record())
