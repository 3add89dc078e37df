"""What telemetry costs a run: the product's stack with an OTLP backend against the same stack without one.

The backend is a collector that takes everything, then one that answers after 10 s, one that answers 500, and none.
"""

import statistics
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from temporalio.client import Client

from coatcheck.localstack import LocalStack
from tests.benchmarks.measure import run_batch, run_once
from tests.telemetry.collector import Collector
from workers.temporal import connect

OpenStack = Callable[[str, Mapping[str, str]], LocalStack]
"""Name of its folder and its environment → a stack."""

SLOW_SECONDS = 10.0
RUNS_ALONE = 40
BATCHES = 6
RUNS_IN_BATCH = 24


@dataclass(frozen=True)
class TelemetryCost:
    """Of one run."""

    cpu_milliseconds: float
    """That all processes together take more."""
    wall: float
    """Latency alone, as a ratio to that without telemetry."""
    spans: float
    kilobytes: float
    """Of spans and log lines, uncompressed."""
    wall_by_backend: Mapping[str, float]
    """The same ratio with a backend that is not well."""


async def measure_telemetry(open_stack: OpenStack, names: Sequence[str]) -> TelemetryCost:
    """Measure in interleaved pairs.

    Args:
        open_stack: Makes a stack.
        names: Processes that take part in a run.
    """
    async with AsyncExitStack() as stack:
        collector = stack.enter_context(Collector())
        plain = await stack.enter_async_context(_opened(open_stack("plain", {})))
        observed = await stack.enter_async_context(
            _opened(open_stack("observed", {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}))
        )
        clients = [client for _, client in (observed, plain)]
        pids = [[stack.pid(name) for name in names] for stack, _ in (observed, plain)]
        for client in clients:
            await run_batch(client, 10, in_flight=5, pids=[])
        cpu = []
        for _ in range(BATCHES):
            ours, theirs = [
                await run_batch(client, RUNS_IN_BATCH, in_flight=8, pids=ids)
                for client, ids in zip(clients, pids, strict=True)
            ]
            cpu.append(ours.cpu_milliseconds_per_run - theirs.cpu_milliseconds_per_run)
        wall = await _wall(clients)
        runs = 10 + BATCHES * RUNS_IN_BATCH + RUNS_ALONE
        spans, sent = len(collector.spans()), sum(len(body) for _, body in collector.bodies)
        collector.delay_seconds = SLOW_SECONDS
        ill = {f"answers after {SLOW_SECONDS:g} s": await _wall(clients)}
        collector.delay_seconds, collector.status = 0, 500
        ill["answers 500"] = await _wall(clients)
        collector.close()
        ill["is away"] = await _wall(clients)
    return TelemetryCost(statistics.median(cpu), wall, spans / runs, sent / runs / 1000, ill)


@asynccontextmanager
async def _opened(stack: LocalStack) -> AsyncIterator[tuple[LocalStack, Client]]:
    async with stack:
        status = stack.status()
        assert status.temporal is not None
        yield stack, await connect(status.temporal.address, "default")


async def _wall(clients: Sequence[Client]) -> float:
    pairs = [[await run_once(client) for client in clients] for _ in range(RUNS_ALONE)]
    return statistics.median(ours / theirs for ours, theirs in pairs)
