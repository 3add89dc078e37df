"""`ObservabilityProvider`: what one process needs to be observed, built once by its composition root.

Owns the resource, the tracer, the meter, the logs and the sender of run traces, and how they end: bounded, whatever
the endpoint does. Without an endpoint everything is a no-op of the API; the SDK is not even imported.

The trace of a run is made by the core worker from the audit log (`coatcheck.events.tracer`), so that it is whole
whoever dies (docs/adr/0020). `span` is for what has no event, such as the messages between processes.
"""

import contextlib
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from openinference.semconv.resource import ResourceAttributes
from opentelemetry.metrics import Meter, NoOpMeter
from opentelemetry.semconv._incubating.attributes import service_attributes
from opentelemetry.trace import Tracer

from coatcheck.settings import Settings
from coatcheck.telemetry.live import LiveSpans, Told
from coatcheck.telemetry.privacy import ContentCapture, Privacy
from coatcheck.telemetry.spans import AttributeValue, Kind

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.resources import Resource

    from coatcheck.telemetry.exporting import SpanSender
    from coatcheck.telemetry.scores import ScoreSender

SHUTDOWN_SECONDS: Final = 2.0
"""For what is still queued; the SDK's own flush takes 30 to 50 s when the endpoint is away."""
EXPORT_SECONDS: Final = 5
"""Of one export of logs, metrics or message spans."""
SCOPE: Final = "coatcheck"
SELF_METRICS: Final = "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"
"""The SDK counts what its queues drop and its exporters fail to send only when this is set."""


class ObservabilityProvider:
    """Tracer, meter and logs of one process.

    Args:
        settings: Of the process.
        service: Its kind, such as `core`.
        readers: Of metrics, besides the Prometheus endpoint and the one that pushes to the OTLP endpoint.

    Raises:
        ConfigError: the address of the Prometheus endpoint cannot be had.
    """

    def __init__(self, settings: Settings, service: str, *, readers: Sequence["MetricReader"] = ()) -> None:
        self.privacy = Privacy(ContentCapture(settings.content_capture), settings.secrets)
        self.has_traces = settings.has_otlp("traces")
        self.meter: Meter = NoOpMeter(SCOPE)
        self.has_metrics = False
        """Whether somebody reads the meter."""
        self.log_handlers: list[logging.Handler] = []
        self._settings = settings
        self._service = service
        self._ends: list[Callable[[], None]] = []
        os.environ.setdefault(SELF_METRICS, "true")
        self._meters = self._start_metrics(readers)
        if settings.has_otlp("logs"):
            self._start_logs()

    @cached_property
    def resource(self) -> "Resource":
        """Who this process is; `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` add to it and win."""
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415

        said = {
            service_attributes.SERVICE_NAME: f"coatcheck-{self._service}",
            service_attributes.SERVICE_NAMESPACE: SCOPE,
            service_attributes.SERVICE_VERSION: version("coatcheck"),
            ResourceAttributes.PROJECT_NAME: self._settings.phoenix_project,
        }
        return Resource.create(said).merge(OTELResourceDetector().detect())

    @cached_property
    def live(self) -> LiveSpans | None:
        """What makes spans in this process; `None` where nobody takes them. The SDK starts when it is first asked."""
        return LiveSpans(self._start_tracer(), self.privacy) if self.has_traces else None

    def span(
        self,
        kind: Kind,
        name: str,
        *,
        attributes: Mapping[str, AttributeValue] | None = None,
        content: Mapping[str, str] | None = None,
    ) -> contextlib.AbstractContextManager[Told]:
        """The block is a span of the run that is worked on (`coatcheck.telemetry.scope`), with its kind and session.

        A leaf below the present round, also inside another such span. Without an endpoint, or outside of any run,
        nothing is made.

        Args:
            kind: OpenInference's: AGENT, LLM, TOOL, CHAIN, RETRIEVER, EVALUATOR and so on.
            name: One of few: names of runs and people are attributes.
            attributes: Names and numbers; `coatcheck.telemetry.kinds` has those of each kind.
            content: What a person or a model wrote, such as `input.value`; leaves as `COATCHECK_CONTENT_CAPTURE` says.

        Returns:
            A context manager; what it yields takes further attributes and content until the block ends.
        """
        return (
            contextlib.nullcontext(Told())
            if self.live is None
            else self.live.span(kind, name, attributes=attributes, content=content)
        )

    def span_sender(self) -> "SpanSender":
        """What brings a run's spans to the endpoint; only where `has_traces`."""
        from coatcheck.telemetry.exporting import SpanSender  # noqa: PLC0415

        return SpanSender(self.resource, meter=self.meter)

    @contextlib.asynccontextmanager
    async def score_sender(self) -> AsyncIterator["ScoreSender | None"]:
        """What brings scores and decisions to Phoenix; `None` when none is known."""
        from coatcheck.telemetry.scores import ScoreSender  # noqa: PLC0415

        url, key = self._settings.phoenix_url, self._settings.phoenix_api_key
        if url is None:
            yield None
            return
        async with ScoreSender(url, api_key=key.get_secret_value() if key else None) as sender:
            yield sender

    def shutdown(self) -> None:
        """Send what is queued, for 2 s at most; never raises."""

        def end() -> None:
            for close in self._ends:
                close()

        last = threading.Thread(target=end, name="telemetry-shutdown", daemon=True)
        last.start()
        last.join(SHUTDOWN_SECONDS)

    def _start_metrics(self, readers: Sequence["MetricReader"]) -> "MeterProvider | None":
        found = [*readers]
        if self._settings.metrics_port is not None:
            from coatcheck.telemetry.prometheus import PrometheusEndpoint  # noqa: PLC0415

            found.append(PrometheusEndpoint(self._settings.metrics_host, self._settings.metrics_port))
        if self._settings.has_otlp("metrics"):
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415
            from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader  # noqa: PLC0415

            found.append(PeriodicExportingMetricReader(OTLPMetricExporter(timeout=EXPORT_SECONDS)))
        if not found:
            return None
        from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415

        from coatcheck.telemetry.temporal import VIEWS  # noqa: PLC0415

        provider = MeterProvider(found, self.resource, shutdown_on_exit=False, views=VIEWS)
        self.meter, self.has_metrics = provider.get_meter(SCOPE), True
        self._ends.append(provider.shutdown)
        return provider

    def _start_logs(self) -> None:
        from opentelemetry.exporter.otlp.proto.http import Compression  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter  # noqa: PLC0415
        from opentelemetry.sdk._logs import LoggerProvider  # noqa: PLC0415
        from opentelemetry.sdk._logs.export import BatchLogRecordProcessor  # noqa: PLC0415

        from coatcheck.telemetry.logs import ExportingHandler  # noqa: PLC0415

        exporter = OTLPLogExporter(timeout=EXPORT_SECONDS, compression=Compression.Gzip, meter_provider=self._meters)
        provider = LoggerProvider(self.resource, shutdown_on_exit=False, meter_provider=self._meters)
        provider.add_log_record_processor(BatchLogRecordProcessor(exporter, meter_provider=self._meters))
        self.log_handlers.append(ExportingHandler(provider.get_logger(SCOPE), self.privacy))
        self._ends.insert(0, provider.shutdown)

    def _start_tracer(self) -> Tracer:
        from opentelemetry.exporter.otlp.proto.http import Compression  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        exporter = OTLPSpanExporter(timeout=EXPORT_SECONDS, compression=Compression.Gzip, meter_provider=self._meters)
        provider = TracerProvider(resource=self.resource, shutdown_on_exit=False, meter_provider=self._meters)
        provider.add_span_processor(BatchSpanProcessor(exporter, meter_provider=self._meters))
        self._ends.insert(0, provider.shutdown)
        return provider.get_tracer(SCOPE)
