"""`python -m tests.benchmarks.tools`: what the gateway adds to a call of a tool, and how many calls it takes.

Real servers that sync every write, one gateway process, and a tool that does nothing. Direct calls go to a second
process of the same server, without queue or record.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from coatcheck.gateway.tools.server import ToolServer, open_servers
from coatcheck.localstack import LocalStack
from coatcheck.messaging.streams import ensure_streams
from coatcheck.storage.database import open_pool
from schemas.mcp import CallTool
from schemas.streams import DEAD_LETTERS
from tests.benchmarks.measure import cpu_seconds
from tests.integration.nats_clients import client_as
from tests.integration.tool_lab import Agent, counting_server, make_queues
from tests.providers.gateway import record_task
from tests.tools.gateway import GatewayOrder, start

PAIRS = 200
CALLS = 3000
IN_FLIGHT = 48
SERVER = "bench"


@dataclass(frozen=True)
class ToolFigures:
    """What calls of a trivial tool take."""

    direct_ms: float
    through_ms: float
    added_ms: float
    """Median of the differences of interleaved pairs."""
    per_second: float
    """With 48 in flight."""
    cpu_ms: float
    """Of everything for one of those calls: gateway, MCP server, NATS, PostgreSQL, and the agents that ask."""


async def measure_tools(folder: Path) -> ToolFigures:
    """Start NATS, PostgreSQL and a gateway in `folder`, and measure."""
    servers = {SERVER: counting_server(folder / "ledger", max_concurrent=IN_FLIGHT, timeout_seconds=60)}
    async with AsyncExitStack() as stack:
        local = await stack.enter_async_context(LocalStack(folder, servers=("nats", "postgres"), workers=()))
        status = local.status()
        assert status.nats is not None
        assert status.postgres is not None
        core = await stack.enter_async_context(client_as(status.nats, "core"))
        await ensure_streams(core, [DEAD_LETTERS])
        await make_queues(core, servers)
        owner = await stack.enter_async_context(open_pool(status.postgres.dsn))
        task_key = await record_task(owner, agent="roy", stage="backend")
        order = GatewayOrder(status.nats, status.postgres.gateway_dsn, servers, ready=folder / "ready")
        gateway = start(order)
        stack.callback(gateway.kill)
        while not order.ready.exists():
            await asyncio.sleep(0.02)
        roy = Agent(await stack.enter_async_context(client_as(status.nats, "roy")), "roy")
        direct = (await stack.enter_async_context(open_servers(servers, os.environ)))[SERVER]
        return await _measure(roy, direct, task_key)


async def _measure(roy: Agent, direct: ToolServer, task_key: str) -> ToolFigures:
    numbers = iter(range(10**9))

    async def through() -> None:
        call_id, arguments = f"call-{next(numbers)}", {"text": "x"}
        call = CallTool(task_key=task_key, tool_call_id=call_id, server=SERVER, tool="echo", arguments=arguments)
        outcome = await roy.ask(call)
        assert outcome.status == "result", outcome

    async def plain() -> None:
        await direct.call("echo", {"text": "x"})

    for _ in range(20):
        await through()
        await plain()
    pairs = [(await _timed(through), await _timed(plain)) for _ in range(PAIRS)]
    left = iter(range(CALLS))

    async def lane() -> None:
        for _ in left:
            await through()

    everything = [os.getpid()]  # servers and gateway are its descendants
    cpu, began = cpu_seconds(everything), time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(IN_FLIGHT)))
    wall, cpu = time.perf_counter() - began, cpu_seconds(everything) - cpu
    return ToolFigures(
        direct_ms=statistics.median(theirs for _, theirs in pairs),
        through_ms=statistics.median(ours for ours, _ in pairs),
        added_ms=statistics.median(ours - theirs for ours, theirs in pairs),
        per_second=CALLS / wall,
        cpu_ms=cpu * 1000 / CALLS,
    )


async def _timed(do: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await do()
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        found = asyncio.run(measure_tools(Path(name)))
    sys.stdout.write(
        f"direct {found.direct_ms:.1f} ms, through the gateway {found.through_ms:.1f} ms, "
        f"added {found.added_ms:.1f} ms; {found.per_second:.0f} calls/s, {found.cpu_ms:.1f} ms of CPU each\n"
    )
