"""What a trace must be, and what is wrong with one that is not."""

from collections import Counter
from collections.abc import Iterable, Sequence

from opentelemetry.proto.trace.v1 import trace_pb2

from coatcheck.telemetry.run_trace import RunTrace
from coatcheck.telemetry.spans import Span
from schemas.events import Event


def fold(run_key: str, events: Iterable[Event]) -> list[Span]:
    """The spans of a run's events."""
    trace = RunTrace(run_key)
    return [span for event in events for span in trace.add(event)]


def check_tree(spans: Sequence[Span]) -> None:
    """One root, no orphan, no span twice, no cycle, every span of the one trace, inside of a sane time."""
    assert len({span.trace_id for span in spans}) == 1
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans), Counter(span.name for span in spans)
    assert [span.name for span in spans if span.parent_id is None] == [spans[0].name]
    for span in spans:
        assert span.start <= span.end
        above, seen = span, {span.span_id}
        while above.parent_id is not None:
            assert above.parent_id in by_id, f"{above.name} is an orphan"
            above = by_id[above.parent_id]
            assert above.span_id not in seen
            seen.add(above.span_id)


def check_exported(spans: Sequence[trace_pb2.Span]) -> None:
    """The same of one run's spans as a collector has them; one that came twice must be the same both times."""
    first = {span.span_id: span for span in spans}
    for span in spans:
        assert span == first[span.span_id]
        assert not span.parent_span_id or span.parent_span_id in first, f"{span.name} is an orphan"
        assert attribute(span, "session.id")
        assert attribute(span, "openinference.span.kind") not in {None, "UNKNOWN"}
    assert len({span.trace_id for span in spans}) == 1
    assert len([span for span in first.values() if not span.parent_span_id]) == 1


def attribute(span: trace_pb2.Span, key: str) -> str | int | float | bool | None:
    """The value of a span's attribute."""
    for item in span.attributes:
        if item.key == key:
            kind = item.value.WhichOneof("value")
            assert kind is not None
            value: str | int | float | bool = getattr(item.value, kind)
            return value
    return None
