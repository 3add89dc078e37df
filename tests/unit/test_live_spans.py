"""Spans of what has no event, and the provider of a process: what they say, where they hang, what may leave."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from coatcheck.telemetry.kinds import retriever_attributes
from coatcheck.telemetry.live import LiveSpans
from coatcheck.telemetry.privacy import ContentCapture, Privacy
from coatcheck.telemetry.scope import working_on_task
from coatcheck.telemetry.spans import Kind
from schemas.tracing import round_span_id, trace_id

RUN = "feature/customer-search/0198c0de-0000-7000-8000-000000000001"
TASK = f"{RUN}/backend-1"


def made(capture: ContentCapture) -> dict[str, dict[str, object]]:
    """Two spans, one in the other, of which the inner one fails; name → what an exporter is given."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    live = LiveSpans(provider.get_tracer("test"), Privacy(capture, secrets=("hunter2hunter2",)))
    with live.span(Kind.TOOL, "about nothing"):
        pass
    with working_on_task(TASK):
        found = retriever_attributes("search", "call-1", ["agog.x/1/abc"])
        with live.span(Kind.RETRIEVER, "search", attributes=found, content={"input.value": "CANARY"}) as told:
            told.content["output.value"] = "CANARY too"
            with pytest.raises(ValueError, match="CANARY"), live.span(Kind.TOOL, "fail"):
                raise ValueError("CANARY hunter2hunter2")
    return {
        span.name: {
            "trace": f"{span.context.trace_id:032x}" if span.context else "",
            "parent": f"{span.parent.span_id:016x}" if span.parent else "",
            "error": span.status.description,
            "events": len(span.events),
            **(span.attributes or {}),
        }
        for span in exporter.get_finished_spans()
    }


def test_a_live_span_says_its_kind_and_hangs_from_the_round() -> None:
    """Also inside another one, so that whoever dies leaves no orphan; outside of any run there is none."""
    spans = made(ContentCapture.PREVIEW)
    assert spans.keys() == {"search", "fail"}
    for span in spans.values():
        assert span["trace"] == trace_id(RUN)
        assert span["parent"] == round_span_id(TASK)
        assert span["session.id"] == "feature/customer-search"
    found = spans["search"]
    assert (found["openinference.span.kind"], found["tool.name"]) == ("RETRIEVER", "search")
    assert found["retrieval.documents.0.document.id"] == "agog.x/1/abc"
    assert (found["input.value"], found["output.value"]) == ("CANARY", "CANARY too")


def test_the_words_of_an_exception_leave_as_all_content_does() -> None:
    """Redacted, or not at all; its type always."""
    shown = made(ContentCapture.PREVIEW)["fail"]
    assert (shown["error"], shown["error.type"], shown["events"]) == ("CANARY ***", "ValueError", 0)
    hidden = made(ContentCapture.OFF)
    assert "CANARY" not in str(hidden)
    assert hidden["fail"]["error.type"] == "ValueError"
