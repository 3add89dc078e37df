"""The tracer on a real audit log: every trace arrives whole, whatever the endpoint does and whoever reads."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
from opentelemetry.metrics import NoOpMeter
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource

from coatcheck.bench.recording import Recording
from coatcheck.events import tracer as tracer_module
from coatcheck.events.tracer import Tracer
from coatcheck.localstack import LocalStack
from coatcheck.messaging.accounts import LOGS, TRACER
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.consumer import consumer_lag
from coatcheck.messaging.events import EventLog
from coatcheck.messaging.streams import ensure_streams
from coatcheck.storage.database import open_pool
from coatcheck.telemetry.exporting import SpanSender
from coatcheck.telemetry.privacy import ContentCapture, Privacy
from schemas.events import ToolCompleted
from schemas.streams import AUDIT_LOG
from schemas.tracing import trace_id
from tests.bench.record import recorded
from tests.integration.backbone_lab import Backbone
from tests.integration.nats_clients import client_as
from tests.telemetry.collector import Collector
from tests.telemetry.counting import counted
from tests.telemetry.tree import check_exported, fold

WITH_TOOLS, *_others = [item for name in ("er_001", "er_007", "er_008", "er_009") for _, item in recorded(name)]
_recordings = iter(_others)


@pytest.fixture(scope="module")
async def backbone(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Backbone]:
    """An audit log of this file's own; every test tells a run of its own."""
    folder = tmp_path_factory.mktemp("tracer")
    async with LocalStack(folder / "stack", servers=("nats", "postgres"), workers=()) as stack:
        status = stack.status()
        assert status.nats is not None
        assert status.postgres is not None
        async with client_as(status.nats, "core") as core, open_pool(status.postgres.dsn) as pool:
            await ensure_streams(core, LOGS)
            yield Backbone(stack, core, pool)


@pytest.fixture
def collector() -> Iterator[Collector]:
    """One that is well until a test says otherwise."""
    with Collector() as running:
        yield running


@pytest.fixture
def recording() -> Recording:
    """A run that no other test has told."""
    return next(_recordings)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask a failing endpoint again soon."""
    monkeypatch.setattr(tracer_module, "FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(tracer_module, "LINGER_SECONDS", 0.02)


@contextlib.asynccontextmanager
async def tracing(
    backbone: Backbone, collector: Collector, monkeypatch: pytest.MonkeyPatch, meters: MeterProvider | None = None
) -> AsyncIterator[None]:
    """A tracer in this process."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    meter = meters.get_meter("test") if meters else NoOpMeter("test")
    with contextlib.closing(SpanSender(Resource({"service.name": "test"}), meter=meter)) as sender:
        tracer = Tracer(backbone.pool, backbone.core, sender=sender, privacy=Privacy(ContentCapture.OFF))
        async with tracer.running():
            yield


async def drained(client: NatsClient) -> None:
    """Wait until the tracer has acknowledged everything."""
    async with asyncio.timeout(30):
        while True:
            lag = await consumer_lag(client, stream=AUDIT_LOG.name, name=TRACER)
            if lag is not None and lag.total == 0:
                return
            await asyncio.sleep(0.02)


def of_run(collector: Collector, recording: Recording) -> list[trace_pb2.Span]:
    """What the collector has of a run, as often as it came."""
    return [span for span in collector.spans() if span.trace_id.hex() == trace_id(recording.run_key)]


def check_whole(collector: Collector, recording: Recording) -> list[trace_pb2.Span]:
    """The collector has the run's trace, all of it and nothing else."""
    spans = of_run(collector, recording)
    check_exported(spans)
    expected = {span.span_id: span.name for span in fold(recording.run_key, recording.events)}
    assert {span.span_id.hex(): span.name for span in spans} == expected
    return spans


async def test_a_run_arrives_once(
    backbone: Backbone, collector: Collector, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told while the tracer reads."""
    async with tracing(backbone, collector, monkeypatch):
        for event in recording.events:
            await EventLog(backbone.core).publish([event])
        await drained(backbone.core)
    spans = check_whole(collector, recording)
    assert len(spans) == len({span.span_id for span in spans})


async def test_a_successor_knows_what_was_told_before(
    backbone: Backbone, collector: Collector, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part is read by a tracer that has just started, with nothing in mind."""
    for start in range(0, len(recording.events), 13):
        await EventLog(backbone.core).publish(recording.events[start : start + 13])
        async with tracing(backbone, collector, monkeypatch):
            await drained(backbone.core)
    check_whole(collector, recording)


@pytest.mark.parametrize("status", [500, 503, 429, 401])
async def test_an_endpoint_that_fails_is_waited_for(
    backbone: Backbone, collector: Collector, recording: Recording, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Nothing is lost, and nobody else knows of it: the log goes on."""
    collector.status = status
    async with tracing(backbone, collector, monkeypatch):
        await EventLog(backbone.core).publish(recording.events)
        await asyncio.to_thread(collector.wait_for, "refused /v1/traces")
        assert collector.spans() == []
        collector.status = 200
        await drained(backbone.core)
    check_whole(collector, recording)


async def test_what_is_refused_for_good_is_counted_and_left_out(
    backbone: Backbone, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run is not held up by it."""
    refused, taken = next(_recordings), next(_recordings)
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    async with tracing(backbone, collector, monkeypatch, meters):
        collector.status = 400
        await EventLog(backbone.core).publish(refused.events)
        await drained(backbone.core)
        collector.status = 200
        await EventLog(backbone.core).publish(taken.events)
        await drained(backbone.core)
    check_whole(collector, taken)
    assert of_run(collector, refused) == []
    assert counted(reader, "coatcheck.telemetry.spans.refused", {}) == len(fold(refused.run_key, refused.events))
    meters.shutdown()


async def test_an_endpoint_that_hangs_does_not_hold_up_the_end(
    backbone: Backbone, collector: Collector, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tracer stops at once, in the middle of a request; its successor sends it again."""
    collector.delay_seconds = 4
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(tracing(backbone, collector, monkeypatch))
        await EventLog(backbone.core).publish(recording.events)
        await asyncio.to_thread(collector.wait_for, "begun /v1/traces")
        async with asyncio.timeout(2):
            await stack.aclose()
    collector.delay_seconds = 0
    async with tracing(backbone, collector, monkeypatch):
        await drained(backbone.core)
    check_whole(collector, recording)


async def test_what_an_agent_may_tell_stops_nobody(
    backbone: Backbone, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes, times and durations that no span can have, in events that are valid."""
    recording = WITH_TOOLS
    tool = next(event for event in recording.events if isinstance(event, ToolCompleted))
    odd = [
        _retold(tool, "huge", result_bytes=10**30),
        _retold(tool, "long", seconds=1e300),
        _retold(tool, "early", seconds=3.2e9, tool="\0" * 1000),
    ]
    async with tracing(backbone, collector, monkeypatch):
        await EventLog(backbone.core).publish([*recording.events, *odd])
        await drained(backbone.core)
    spans = of_run(collector, recording)
    check_exported(spans)
    known = {span.span_id for span in fold(recording.run_key, recording.events)}
    assert known <= {span.span_id.hex() for span in spans}
    assert len([span for span in spans if span.span_id.hex() not in known]) == 2


def _retold(event: ToolCompleted, call_id: str, **said: object) -> ToolCompleted:
    """Another call in the same round."""
    payload = event.payload.model_copy(update={"tool_call_id": call_id, **said})
    fields = event.model_dump(exclude={"event_id", "event_type", "occurrence", "payload", "version"})
    return ToolCompleted.of(occurrence=call_id, payload=payload, **fields)
