"""`SpanSender`: brings spans to the OTLP endpoint, and says when that will never succeed.

The exporter is OpenTelemetry's own: OTLP over HTTP, gzip, set up by the `OTEL_EXPORTER_OTLP_*` variables. It blocks, so
it has a thread; nobody waits for that thread when the process ends.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Final

import requests  # noqa: TID251  what the OTLP exporter speaks through
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Meter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags

from coatcheck.errors import TelemetryUnavailableError
from coatcheck.telemetry.spans import Moment, Span

EXPORT_SECONDS: Final = 5.0
"""Of one request, its repetitions included."""
MAX_SPANS: Final = 100
"""Of one request; Phoenix writes so many in one transaction."""
MAX_TEXT: Final = 4 * 1024 * 1024
"""Characters of one request, unless a single span has more."""
_REFUSALS: Final = frozenset({400, 413, 415, 422})
"""Answers that no repetition will change. A wrong key or address may be mended meanwhile."""
_SCOPE: Final = InstrumentationScope("coatcheck.run_trace")
_NANOSECONDS: Final = 1_000_000_000
_LAST_MOMENT: Final = 2**63 - 1

_log = logging.getLogger(__name__)


class SpanSender:
    """Exports spans; what the endpoint refuses for good is counted and forgotten.

    Args:
        resource: Whose spans they are.
        meter: Counts what is lost.
    """

    def __init__(self, resource: Resource, *, meter: Meter) -> None:
        session = requests.Session()
        # Or REQUESTS_CA_BUNDLE would silently replace OTEL_EXPORTER_OTLP_CERTIFICATE.
        session.trust_env = False
        session.hooks["response"].append(self._answered)
        self._exporter = OTLPSpanExporter(session=session, timeout=EXPORT_SECONDS, compression=Compression.Gzip)
        self._resource = resource
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="telemetry")
        self._status: int | None = None
        self._refused = meter.create_counter(
            "coatcheck.telemetry.spans.refused", "{span}", "Spans of runs that the endpoint refused for good."
        )
        self._refused.add(0)  # of a counter that appears at 1, Prometheus does not see the step

    async def send(self, spans: Sequence[Span]) -> None:
        """Export the spans; returns when the endpoint has them.

        Raises:
            TelemetryUnavailableError: it did not answer, or not now. Some may have arrived: sent again, they are the
                same spans.
        """
        for chunk in _chunks(spans):
            readable = [self._readable(span) for span in chunk]
            if await asyncio.get_running_loop().run_in_executor(self._thread, self._export, readable):
                continue
            if self._status not in _REFUSALS:
                answer = f"HTTP {self._status}" if self._status else "no answer"
                raise TelemetryUnavailableError(f"the telemetry endpoint does not take spans: {answer}")
            self._refused.add(len(chunk))
            _log.error("the telemetry endpoint refuses %d spans for good (HTTP %d)", len(chunk), self._status)

    def close(self) -> None:
        """Let go; a request under way ends by itself."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _export(self, spans: Sequence[ReadableSpan]) -> bool:
        self._status = None
        return self._exporter.export(spans) is SpanExportResult.SUCCESS

    def _answered(self, response: requests.Response, **_: Any) -> None:
        self._status = response.status_code

    def _readable(self, span: Span) -> ReadableSpan:
        return ReadableSpan(
            span.name,
            context=_context(span.trace_id, span.span_id),
            parent=_context(span.trace_id, span.parent_id) if span.parent_id else None,
            resource=self._resource,
            attributes=span.attributes,
            events=[_event(moment) for moment in span.moments],
            links=[Link(_context(*target)) for target in span.links],
            status=_status(span),
            start_time=_nanoseconds(span.start),
            end_time=_nanoseconds(span.end),
            instrumentation_scope=_SCOPE,
        )


def _chunks(spans: Sequence[Span]) -> Iterator[list[Span]]:
    chunk: list[Span] = []
    size = 0
    for span in spans:
        length = sum(len(value) for value in span.attributes.values() if isinstance(value, str))
        if chunk and (len(chunk) == MAX_SPANS or size + length > MAX_TEXT):
            yield chunk
            chunk, size = [], 0
        chunk.append(span)
        size += length
    if chunk:
        yield chunk


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _event(moment: Moment) -> Event:
    return Event(moment.name, attributes=moment.attributes, timestamp=_nanoseconds(moment.at))


def _status(span: Span) -> Status:
    if span.is_ok is None:
        return Status(StatusCode.UNSET)
    return Status(StatusCode.OK) if span.is_ok else Status(StatusCode.ERROR, span.error or None)


def _nanoseconds(moment: datetime) -> int:
    """Since 1970, as far as OTLP goes: an agent's clock may say anything."""
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    passed = (since.days * 86_400 + since.seconds) * _NANOSECONDS + since.microseconds * 1000
    return max(0, min(passed, _LAST_MOMENT))
