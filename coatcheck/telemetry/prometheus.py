"""The Prometheus endpoint of a process: its own metrics, Temporal's and the operating system's under one address.

Imported only by a process that has a port for it; without one, nothing is measured.
"""

from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from coatcheck.errors import ConfigError


class PrometheusEndpoint(PrometheusMetricReader):
    """Answers `GET /metrics` until it is shut down, in a thread of its own.

    Args:
        host: Where to listen; the loopback unless the network is private, since nobody is asked who they are.
        port: 0 takes a free one.

    Raises:
        ConfigError: the address cannot be had.
    """

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
