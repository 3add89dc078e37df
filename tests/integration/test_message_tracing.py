"""Messages on a real NATS: their headers name the work they belong to, and each makes a span where that is wanted."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping

import pytest
from nats.aio.msg import Msg
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from coatcheck.errors import MessagingUnavailableError
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.accounts import LOGS
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.service import serve
from coatcheck.messaging.streams import ensure_streams
from coatcheck.messaging.tracing import MessageTracing
from coatcheck.messaging.work_queue import Job, WorkQueue, ensure_work_queue, working
from coatcheck.telemetry.live import LiveSpans
from coatcheck.telemetry.privacy import ContentCapture, Privacy
from coatcheck.telemetry.scope import working_on_task
from schemas.streams import AUDIT_LOG, MCP_REQUESTS
from schemas.tracing import round_span_id, trace_id
from tests.integration.nats_clients import client_as

RUN = "feature/customer-search/0198c0de-0000-7000-8000-000000000001"
TASK = f"{RUN}/backend-1"
CONTEXT = {
    "traceparent": f"00-{trace_id(RUN)}-{round_span_id(TASK)}-01",
    "baggage": "session.id=feature%2Fcustomer-search",
}
ASKED = "agog.svc.events.roy"
SENT = "agog.test.telling"
EVENT = "agog.events.system.core.x.y"
JOBS = "traced"
CALL = "agog.mcp.requests.traced.roy"
Heard = dict[str, Mapping[str, str]]
"""Where → headers."""


class Spans:
    """What was made, and what makes it."""

    def __init__(self, capture: ContentCapture = ContentCapture.OFF) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.live = LiveSpans(provider.get_tracer("test"), Privacy(capture))

    def made(self) -> tuple[ReadableSpan, ...]:
        """In the order of their ends."""
        return self._exporter.get_finished_spans()


@contextlib.asynccontextmanager
async def exchanged(server: NatsStatus, spans: Spans | None) -> AsyncIterator[tuple[NatsClient, Heard]]:
    """A client that has published, sent, asked, worked and read in the name of one round; and who heard what."""
    tracing = MessageTracing(has_headers=True, spans=spans.live if spans else None)
    heard: Heard = {}
    came, worked = asyncio.Event(), asyncio.Event()

    async def take(message: Msg) -> None:
        heard["subscribe"] = message.headers or {}
        came.set()

    async def work(job: Job) -> None:
        heard["queue"] = job.stored(CALL).headers
        await job.done()
        worked.set()

    async def answer(payload: bytes) -> bytes:
        if payload == b"fail":
            raise ValueError("CANARY in /a/path.py")
        return b"done"

    async with (
        client_as(server, "core", tracing=tracing) as core,
        client_as(server, "roy", tracing=tracing) as roy,
        serve(core, name="events", version="1.0.0", endpoints={ASKED: answer}),
    ):
        await ensure_streams(core, [*LOGS, MCP_REQUESTS])
        queue = {"stream": MCP_REQUESTS.name, "name": JOBS}
        await ensure_work_queue(core, **queue, filter_subject=f"agog.mcp.requests.{JOBS}.*", max_ack_pending=1)
        await core.subscribe(SENT, take)
        async with working([WorkQueue(core, **queue, slots=1, work=work)], 1):
            with working_on_task(TASK):
                await core.send(SENT, b"hello")
                await roy.request(ASKED, b"{}")
                stored = await core.publish(EVENT, b"{}", message_id=uuid.uuid4().hex, stream=AUDIT_LOG.name)
                await core.publish(CALL, b"{}", message_id=uuid.uuid4().hex, stream=MCP_REQUESTS.name)
                heard["fetch"] = (await core.fetch_by_sequence(AUDIT_LOG.name, stored.sequence)).headers
                with pytest.raises(MessagingUnavailableError):
                    await roy.request(ASKED, b"fail")
            async with asyncio.timeout(10):
                await came.wait()
                await worked.wait()
        yield core, heard


async def test_headers_name_the_work_though_no_spans_are_made(nats_server: NatsStatus) -> None:
    """Published, sent and queued, all carry the round's context and session; outside of any run nothing does."""
    async with exchanged(nats_server, None) as (core, heard):
        for headers in heard.values():
            assert {name: headers[name] for name in CONTEXT} == CONTEXT
        stored = await core.publish(EVENT, b"{}", message_id=uuid.uuid4().hex, stream=AUDIT_LOG.name)
        assert not CONTEXT.keys() & (await core.fetch_by_sequence(AUDIT_LOG.name, stored.sequence)).headers.keys()
    assert heard.keys() == {"subscribe", "queue", "fetch"}


async def test_each_message_makes_its_spans_where_that_is_wanted(nats_server: NatsStatus) -> None:
    """Sent, received and processed as siblings below the round; an error without the words that it was told in."""
    spans = Spans()
    async with exchanged(nats_server, spans):
        pass
    made = spans.made()
    assert {(span.name, span.kind) for span in made} == {
        ("send agog.test.telling", SpanKind.PRODUCER),
        ("process agog.test.telling", SpanKind.CONSUMER),
        ("send agog.svc.events.>", SpanKind.PRODUCER),
        ("process agog.svc.events.>", SpanKind.CONSUMER),
        ("send agog.events.system.>", SpanKind.PRODUCER),
        ("send agog.mcp.requests.>", SpanKind.PRODUCER),
        ("process agog.mcp.requests.>", SpanKind.CONSUMER),
        (f"receive {AUDIT_LOG.name}", SpanKind.CLIENT),
    }
    for span in made:
        assert span.context is not None
        assert span.parent is not None
        assert span.attributes is not None
        assert f"{span.context.trace_id:032x}" == trace_id(RUN)
        assert f"{span.parent.span_id:016x}" == round_span_id(TASK)
        assert span.attributes["session.id"] == "feature/customer-search"
        assert span.attributes["openinference.span.kind"] == "CHAIN"
    failed = [span for span in made if span.status.status_code is StatusCode.ERROR]
    assert {(span.attributes or {})["error.type"] for span in failed} == {"ValueError"}
    assert "CANARY" not in "".join(span.to_json() for span in made)
