"""What telemetry costs a run: the product's stack with an OTLP backend against the same stack without one.

Both stand side by side and take turns. The backend takes everything, then answers after 10 s, then answers 500, then is
away; in each of the last three the workers are stopped as well, with spans and log lines still to send.
"""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from temporalio.client import Client

from coatcheck.events.monitoring import backbone_status
from coatcheck.localstack import LocalStack
from coatcheck.messaging.client import NatsClient
from tests.benchmarks.measure import cpu_seconds, run_batch, run_once
from tests.integration.nats_clients import client_as
from tests.telemetry.collector import Collector
from workers.temporal import connect

OpenStack = Callable[[str, Mapping[str, str]], LocalStack]
"""Name of its folder and its environment → a stack."""

SLOW_SECONDS: Final = 10.0
RUNS_ALONE: Final = 40
BATCHES: Final = 8
RUNS_IN_BATCH: Final = 32
WARM_UP: Final = 16
WINDOW_SECONDS: Final = 14.0
"""For a batch and what follows: the tracer lets events gather for 5 s."""
WORKERS: Final = ("core", "gateway", "agents")
LONGEST_SETTLING_SECONDS: Final = 60.0


@dataclass(frozen=True)
class TelemetryCost:
    """Of one run."""

    cpu_milliseconds: float
    """That all processes together take more, until the backend has everything."""
    cpu_without: float
    """Of the same run without telemetry."""
    wall: float
    """Latency alone, as a ratio to that without telemetry."""
    spans: float
    kilobytes: float
    """Of traces, uncompressed."""
    wall_by_backend: Mapping[str, float]
    """The same ratio with a backend that is not well."""
    exit_seconds: Mapping[str, float]
    """From SIGTERM to the end of the slowest worker, by backend."""


@dataclass(frozen=True)
class _Side:
    """One of the two stacks."""

    stack: LocalStack
    temporal: Client
    nats: NatsClient
    pids: Sequence[int]

    async def settled(self) -> None:
        """Wait until the table has every event, and traces too where they are made."""
        async with asyncio.timeout(LONGEST_SETTLING_SECONDS):
            while (found := await backbone_status(self.nats)).lag or found.tracer_lag:
                await asyncio.sleep(0.1)

    async def cpu(self) -> float:
        """CPU milliseconds per run of a batch, everything that follows included.

        What idles costs CPU as well, so both sides are looked at for equally long.
        """
        used, began = cpu_seconds(self.pids), time.perf_counter()
        await run_batch(self.temporal, RUNS_IN_BATCH, in_flight=8, pids=[])
        await self.settled()
        await asyncio.sleep(max(0, began + WINDOW_SECONDS - time.perf_counter()))
        return (cpu_seconds(self.pids) - used) * 1000 / RUNS_IN_BATCH


async def measure_telemetry(open_stack: OpenStack, names: Sequence[str]) -> TelemetryCost:
    """Measure in interleaved pairs.

    Args:
        open_stack: Makes a stack.
        names: Processes that take part in a run.
    """
    async with AsyncExitStack() as stack:
        collector = stack.enter_context(Collector())
        plain = await stack.enter_async_context(_opened(open_stack("plain", {}), names))
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        observed = await stack.enter_async_context(_opened(open_stack("observed", environment), names))
        for side in (observed, plain):
            await run_batch(side.temporal, WARM_UP, in_flight=8, pids=[])
            await side.settled()
        pairs = []
        for number in range(BATCHES):
            used = {side.stack: await side.cpu() for side in _in_turn(number, observed, plain)}
            pairs.append((used[observed.stack], used[plain.stack]))
        wall = await _wall(observed, plain)
        await observed.settled()
        runs = WARM_UP + BATCHES * RUNS_IN_BATCH + RUNS_ALONE
        spans, sent = len(collector.spans()), sum(len(body) for at, body in collector.bodies if at == "/v1/traces")
        ill, exits = {}, {}
        for how, make_ill in _illnesses(collector).items():
            make_ill()
            ill[how] = await _wall(observed, plain)
            exits[how] = await asyncio.to_thread(_stop_workers, observed.stack)
            for name in WORKERS:
                await asyncio.to_thread(observed.stack.start_member, name)
    added = statistics.median(ours - theirs for ours, theirs in pairs)
    without = statistics.median(theirs for _, theirs in pairs)
    return TelemetryCost(added, without, wall, spans / runs, sent / runs / 1000, ill, exits)


def _illnesses(collector: Collector) -> dict[str, Callable[[], None]]:
    def be_slow() -> None:
        collector.delay_seconds = SLOW_SECONDS

    def fail() -> None:
        collector.delay_seconds, collector.status = 0, 500

    return {f"answers after {SLOW_SECONDS:g} s": be_slow, "answers 500": fail, "is away": collector.close}


def _stop_workers(stack: LocalStack) -> float:
    """Seconds that the slowest worker takes to end, one after the other."""
    longest = 0.0
    for name in WORKERS:
        began = time.perf_counter()
        stack.stop_member(name)
        longest = max(longest, time.perf_counter() - began)
    return longest


@asynccontextmanager
async def _opened(stack: LocalStack, names: Sequence[str]) -> AsyncIterator[_Side]:
    async with stack:
        status = stack.status()
        assert status.temporal is not None
        assert status.nats is not None
        temporal = await connect(status.temporal.address, "default")
        async with client_as(status.nats, "observer") as nats:
            yield _Side(stack, temporal, nats, [stack.pid(name) for name in names])


async def _wall(observed: _Side, plain: _Side) -> float:
    """Latency of a run alone, as a ratio."""
    ratios = []
    for number in range(RUNS_ALONE):
        seconds = {side.stack: await run_once(side.temporal) for side in _in_turn(number, observed, plain)}
        ratios.append(seconds[observed.stack] / seconds[plain.stack])
    return statistics.median(ratios)


def _in_turn(number: int, observed: _Side, plain: _Side) -> tuple[_Side, _Side]:
    """Every other pair begins with the other side."""
    return (observed, plain) if number % 2 else (plain, observed)
