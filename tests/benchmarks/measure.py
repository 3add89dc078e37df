"""Measuring: latencies of runs, CPU of whole process trees, bytes on disk."""

import asyncio
import statistics
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from temporalio.client import Client

from schemas.pipeline import FeatureRequest, Pipeline
from schemas.task_queues import CORE
from workflows.feature_pipeline import FeaturePipelineWorkflow

BRIEF = (
    "Sales people must find customers by name, city or tax number within a second. "
    "The search tolerates one typing error. Results are paged, twenty at a time. "
    "Every search is logged with user and time. The page works without a mouse."
)


@dataclass(frozen=True)
class Batch:
    """What a number of runs took."""

    latencies_seconds: list[float]
    wall_seconds: float
    cpu_seconds: float

    @property
    def median_seconds(self) -> float:
        """Median latency of one run."""
        return statistics.median(self.latencies_seconds)

    @property
    def cpu_milliseconds_per_run(self) -> float:
        """CPU of all measured processes, per run."""
        return self.cpu_seconds * 1000 / len(self.latencies_seconds)


async def run_batch(
    client: Client, count: int, *, in_flight: int, pids: Sequence[int], pipeline: Pipeline | None = None
) -> Batch:
    """Run `count` pipelines, at most `in_flight` at a time, and measure the process trees of `pids`."""
    slots = asyncio.Semaphore(in_flight)

    async def one() -> float:
        async with slots:
            return await run_once(client, pipeline)

    cpu, started = cpu_seconds(pids), time.perf_counter()
    latencies = await asyncio.gather(*(one() for _ in range(count)))
    wall = time.perf_counter() - started
    return Batch(list(latencies), wall, cpu_seconds(pids) - cpu)


async def run_once(client: Client, pipeline: Pipeline | None = None) -> float:
    """Run one pipeline to its end; returns its latency in seconds."""
    name = f"bench-{uuid.uuid4().hex[:12]}"
    fields = {"feature": name, "brief": BRIEF} | ({"pipeline": pipeline} if pipeline else {})
    started = time.perf_counter()
    await client.execute_workflow(
        FeaturePipelineWorkflow.run, FeatureRequest.model_validate(fields), id=f"feature/{name}", task_queue=CORE
    )
    return time.perf_counter() - started


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of the processes and all their descendants, ended children included."""
    total = 0.0
    for pid in pids:
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            times = member.cpu_times()
            total += times.user + times.system
        ended = process.cpu_times()
        total += ended.children_user + ended.children_system
    return total


def disk_bytes(folder: Path) -> int:
    """Bytes that the files below `folder` occupy."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
