"""The provider as processes have it: nothing without an endpoint, and an end in bounded time with one that is bad."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from coatcheck.settings import Settings
from coatcheck.telemetry.instruments import ModelInstruments
from coatcheck.telemetry.provider import ObservabilityProvider
from coatcheck.telemetry.scope import working_on_task
from coatcheck.telemetry.spans import Kind
from tests.acceptance.program import environment
from tests.telemetry.collector import Collector
from tests.telemetry.counting import counted
from tests.telemetry.tree import attribute

OBSERVE = """
import logging, sys, time
from coatcheck.settings import Settings
from coatcheck.telemetry.logs import configure_logging
from coatcheck.telemetry.provider import ObservabilityProvider

telemetry = ObservabilityProvider(Settings(), "test")
configure_logging("test", telemetry.log_handlers)
for number in range(3000):
    logging.getLogger("coatcheck.test").info("line %d", number)
before = time.monotonic()
telemetry.shutdown()
print(time.monotonic() - before, "opentelemetry.sdk" in sys.modules, flush=True)
import os
os._exit(0)
"""


def observe(tmp_path: Path, **variables: str) -> tuple[float, bool, list[str]]:
    """Log 3,000 lines in a process: seconds of its shutdown, whether it has loaded the SDK, its standard error."""
    done = subprocess.run(
        [sys.executable, "-c", OBSERVE],
        env=environment(**variables),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    seconds, has_sdk = done.stdout.split()
    return float(seconds), has_sdk == "True", done.stderr.splitlines()


def test_without_an_endpoint_nothing_is_loaded(tmp_path: Path) -> None:
    """And lines in files are JSON all the same."""
    seconds, has_sdk, lines = observe(tmp_path)
    assert not has_sdk
    assert seconds < 1
    assert json.loads(lines[-1])["message"] == "line 2999"


def test_the_sdk_can_be_switched_off(tmp_path: Path) -> None:
    """By OpenTelemetry's own variable."""
    _, has_sdk, _ = observe(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", OTEL_SDK_DISABLED="true")
    assert not has_sdk


def test_lines_arrive_before_the_end(tmp_path: Path) -> None:
    """What is queued at the end is sent."""
    with Collector() as collector:
        observe(tmp_path, OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=f"{collector.url}/v1/logs")
        assert "line 2999" in [record.body.string_value for record in collector.logs()]


def test_metrics_and_live_spans_are_pushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last values and the last spans with the end of the process; without a scrape."""
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        telemetry = ObservabilityProvider(Settings(), "test")
        instruments = ModelInstruments(telemetry.meter, ["openai:x"])
        instruments.paid_again("openai:x")
        with working_on_task("feature/x/0198c0de/backend-1"), telemetry.span(Kind.TOOL, "lookup"):
            pass
        telemetry.shutdown()
        [point] = collector.metrics()["coatcheck.call.paid_again"].sum.data_points
        assert point.as_int == 1
        assert "coatcheck.breaker.state" in collector.metrics()
        [span] = collector.spans()
        assert (span.name, attribute(span, "session.id")) == ("lookup", "feature/x")


@pytest.mark.parametrize("trouble", ["down", "slow", "failing"])
def test_a_bad_endpoint_costs_two_seconds_at_the_end(tmp_path: Path, trouble: str) -> None:
    """Nobody listens, nobody answers for 10 s, or everything is an error; all the lines were written meanwhile."""
    with Collector() as collector:
        collector.delay_seconds = 10 if trouble == "slow" else 0
        collector.status = 500 if trouble == "failing" else 200
        url = "http://127.0.0.1:1" if trouble == "down" else collector.url
        before = time.monotonic()
        seconds, _, lines = observe(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=url)
        assert seconds < 3
        assert time.monotonic() - before < 50
    assert len([line for line in lines if '"line ' in line]) == 3000


def test_what_is_dropped_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the SDK's own metrics: what its queue had no room for, and what could not be exported."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://127.0.0.1:1/v1/logs")
    reader = InMemoryMetricReader()
    telemetry = ObservabilityProvider(Settings(), "test", readers=[reader])
    [handler] = telemetry.log_handlers
    for number in range(6000):
        handler.emit(logging.LogRecord("coatcheck.test", logging.INFO, "x.py", 1, "line %d", (number,), None))
    dropped = counted(reader, "otel.sdk.processor.log.processed", {"error.type": "queue_full"})
    assert dropped > 0
    assert counted(reader, "otel.sdk.log.created", {}) == 6000
    telemetry.shutdown()
