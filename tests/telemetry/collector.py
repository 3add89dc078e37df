"""A collector for OTLP/HTTP on a free port: keeps what it is sent, and can be slow, refuse, or be away."""

import gzip
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """A context manager; `url` is its OTLP endpoint."""

    def __init__(self) -> None:
        self.status = 200
        """What it answers."""
        self.delay_seconds = 0.0
        self.bodies: list[tuple[str, bytes]] = []
        """Path and uncompressed body of every request, those that it refused included."""
        self._heard = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, t: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Be away from now on."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait_for(self, place: str, seconds: float = 30) -> None:
        """Wait for a request: its path, after `begun ` when it arrives, or after `refused ` when it was refused."""

        def has_come() -> bool:
            return any(at == place for at, _ in self.bodies)

        with self._heard:
            assert self._heard.wait_for(has_come, seconds), place

    def spans(self) -> list[Span]:
        """Every span that was accepted, as often as it came."""
        return [span for body in self._accepted("/v1/traces") for span in _spans(body)]

    def logs(self) -> list[LogRecord]:
        """Every log line that was accepted."""
        requests = [ExportLogsServiceRequest.FromString(body) for body in self._accepted("/v1/logs")]
        return [
            record
            for request in requests
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    def metrics(self) -> dict[str, Metric]:
        """The last word on every metric that was accepted."""
        requests = [ExportMetricsServiceRequest.FromString(body) for body in self._accepted("/v1/metrics")]
        return {
            metric.name: metric
            for request in requests
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def _note(self, place: str, body: bytes) -> None:
        with self._heard:
            self.bodies.append((place, body))
            self._heard.notify_all()

    def _accepted(self, path: str) -> list[bytes]:
        with self._heard:
            return [body for at, body in self.bodies if at == path]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector._note(f"begun {self.path}", b"")
                time.sleep(collector.delay_seconds)
                status = collector.status
                collector._note(self.path if status == 200 else f"refused {self.path}", body)
                try:
                    self.send_response(status)
                    self.end_headers()
                except OSError:
                    pass  # the client has not waited

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _spans(body: bytes) -> Iterator[Span]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        for scope in resource.scope_spans:
            yield from scope.spans
