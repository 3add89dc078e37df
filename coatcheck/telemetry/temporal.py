"""Temporal's own metrics, in our meters.

Its SDK could open an address of its own, in Rust, or push by itself. It is drained into our meters instead
(docs/adr/0023): one address per process to scrape, one way to push, one set of buckets.

`temporalio.contrib.opentelemetry.MetricsExporter` does the same and is not used: it knows sets of labels by their
`id()`, and those of a workflow or a call are freed when it ends, so that values came under the labels of others.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from temporalio.runtime import (
    BUFFERED_METRIC_KIND_COUNTER,
    BUFFERED_METRIC_KIND_HISTOGRAM,
    BufferedMetric,
    MetricBuffer,
    MetricBufferDurationFormat,
    Runtime,
    TelemetryConfig,
)

from coatcheck.telemetry.instruments import LLM_SECONDS

BUFFERED_UPDATES: Final = 100_000
"""Between two drains; beyond that they are dropped, and Temporal's core says so in the log."""
DRAIN_SECONDS: Final = 1.0
VIEWS: Final = (View(instrument_name="temporal_*latency", aggregation=ExplicitBucketHistogramAggregation(LLM_SECONDS)),)
"""Temporal's own buckets end at 60 s, where a model's round may only begin to be slow."""

_Record: TypeAlias = Callable[[float, Mapping[str, Any]], None]


@asynccontextmanager
async def measured_runtime(meter: Meter) -> AsyncIterator[Runtime]:
    """A runtime for this process's Temporal clients that measures into `meter` until the block ends."""
    buffer = MetricBuffer(BUFFERED_UPDATES, MetricBufferDurationFormat.SECONDS)
    runtime = Runtime(telemetry=TelemetryConfig(metrics=buffer, attach_service_name=False))
    drain = _Drain(buffer, meter)
    task = asyncio.create_task(drain.run(), name="temporal-metrics")
    try:
        yield runtime
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        drain.once()


class _Drain:
    def __init__(self, buffer: MetricBuffer, meter: Meter) -> None:
        self._buffer = buffer
        self._meter = meter
        self._records: dict[str, _Record] = {}

    async def run(self) -> None:
        while True:
            await asyncio.sleep(DRAIN_SECONDS)
            self.once()

    def once(self) -> None:
        for update in self._buffer.retrieve_updates():
            record = self._records.get(update.metric.name) or self._instrument(update.metric)
            record(update.value, update.attributes)

    def _instrument(self, metric: BufferedMetric) -> _Record:
        said = (metric.name, metric.unit or "", metric.description or "")
        record: _Record
        if metric.kind == BUFFERED_METRIC_KIND_COUNTER:
            record = self._meter.create_counter(*said).add
        elif metric.kind == BUFFERED_METRIC_KIND_HISTOGRAM:
            record = self._meter.create_histogram(*said).record
        else:
            record = self._meter.create_gauge(*said).set
        self._records[metric.name] = record
        return record
