"""The Prometheus endpoint of a process: its own metrics, Temporal's and the operating system's under one address.

Temporal's SDK could open an address of its own, in Rust and at no cost in Python. Its metrics are drained into our
meter instead (docs/adr/0023): one address per process to scrape, one way to push, one set of buckets.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final, Protocol

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from temporalio.contrib.opentelemetry import MetricsExporter
from temporalio.runtime import MetricBuffer, MetricBufferDurationFormat, Runtime, TelemetryConfig

from coatcheck.errors import ConfigError
from coatcheck.telemetry.instruments import LLM_SECONDS

BUFFERED_UPDATES: Final = 100_000
"""Of Temporal's metrics between two drains; beyond that they are dropped, and its core says so in the log."""
DRAIN_INTERVAL: Final = timedelta(seconds=1)
VIEWS: Final = (View(instrument_name="temporal_*latency", aggregation=ExplicitBucketHistogramAggregation(LLM_SECONDS)),)
"""Temporal's own buckets end at 60 s, where a model's round may only begin to be slow."""


class MetricsSettings(Protocol):
    """What an operator can set."""

    @property
    def metrics_host(self) -> str:
        """Where the endpoint listens; the loopback unless the network is private, since it asks nobody who they are."""

    @property
    def metrics_port(self) -> int | None:
        """0 takes a free one; without a port there is no endpoint, and measuring costs nothing."""


class PrometheusEndpoint(PrometheusMetricReader):
    """Answers `GET /metrics` until it is shut down; `port` is where."""

    def __init__(self, host: str, port: int) -> None:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        super().__init__(scope_info_enabled=False, registry=registry)
        try:
            self._server, _ = start_http_server(port, host, registry)
        except OSError as error:
            raise ConfigError(
                f"metrics cannot be offered on {host}:{port}: {error}",
                hint="set another OTEL_EXPORTER_PROMETHEUS_PORT; 0 takes a free one",
            ) from error
        self.port: int = self._server.server_port

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        super().shutdown(timeout_millis, **kwargs)


def metric_readers(settings: MetricsSettings) -> list[MetricReader]:
    """What reads the meters of this process: an endpoint, or nothing.

    Raises:
        ConfigError: the address is taken.
    """
    if settings.metrics_port is None:
        return []
    return [PrometheusEndpoint(settings.metrics_host, settings.metrics_port)]


@asynccontextmanager
async def temporal_runtime(provider: MeterProvider | None) -> AsyncIterator[Runtime | None]:
    """The runtime for this process's Temporal clients, which measures into `provider`; `None`: the default one."""
    if provider is None:
        yield None
        return
    buffer = MetricBuffer(BUFFERED_UPDATES, MetricBufferDurationFormat.SECONDS)
    runtime = Runtime(telemetry=TelemetryConfig(metrics=buffer, attach_service_name=False))
    async with MetricsExporter(buffer, provider, poll_interval=DRAIN_INTERVAL):
        yield runtime
