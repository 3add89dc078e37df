"""`MessageTracing`: trace context in the headers of messages, and spans of messages where they are wanted.

Headers are W3C's. What they name is not the span of the sending but that of the work it belongs to (`Scope`), which the
audit log guarantees: so no message's span is without its parent when its sender dies (docs/adr/0021). Sending and
processing are siblings. There is no official convention for NATS: `nats` is a custom `messaging.system`, and of the
conventions for messaging the operations and kinds are followed.
"""

import contextlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final
from urllib.parse import quote, unquote

from openinference.semconv.trace import SpanAttributes
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.semconv._incubating.attributes import messaging_attributes as messaging
from opentelemetry.trace import SpanContext, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from coatcheck.telemetry.live import LiveSpans
from coatcheck.telemetry.scope import current_scope
from coatcheck.telemetry.spans import Kind
from schemas.tracing import HEADER_TRACEPARENT
from schemas.workflow_ids import session_of

HEADER_BAGGAGE: Final = "baggage"
_SESSION: Final = f"{SpanAttributes.SESSION_ID}="
_SYSTEM: Final = "nats"
_LITERAL_TOKENS: Final = 3
"""Of a subject of ours: the prefix, what it is, and whose or which; names of runs and features come after those."""
_W3C: Final = TraceContextTextMapPropagator()
_NOTHING: Final[AbstractContextManager[None]] = contextlib.nullcontext()


class MessageTracing:
    """What one process's clients put into headers and tell of their messages; nothing unless told so.

    Args:
        has_headers: Whether messages carry their trace context.
        spans: Make a span per message; none when absent.
    """

    def __init__(self, *, has_headers: bool = False, spans: LiveSpans | None = None) -> None:
        self._has_headers = has_headers
        self._spans = spans

    def headers(self) -> dict[str, str]:
        """What tells the receiver which work of which run a message belongs to; empty outside of any."""
        return _headers() if self._has_headers else {}

    def sending(self, subject: str, message_id: str = "") -> AbstractContextManager[object]:
        """The block sends a message that belongs to the present work."""
        said = {messaging.MESSAGING_MESSAGE_ID: message_id} if message_id else {}
        return self._span("send", SpanKind.PRODUCER, subject, None, said)

    def receiving(self, place: str) -> AbstractContextManager[object]:
        """The block reads a message for the present work."""
        return self._span("receive", SpanKind.CLIENT, place, None, {})

    def processing(self, subject: str, headers: Mapping[str, str] | None) -> AbstractContextManager[object]:
        """The block does what a message asks for."""
        return self._span("process", SpanKind.CONSUMER, subject, headers or {}, {})

    def processing_batch(self, stream: str, batch: Iterable[Mapping[str, str]]) -> AbstractContextManager[object]:
        """The block has the effect of many messages of many runs: a trace of its own, linked to theirs."""
        if self._spans is None:
            return _NOTHING
        contexts = {context.span_id: context for headers in batch if (context := _context(headers)) is not None}
        return self._spans.below(
            None,
            Kind.CHAIN,
            f"process {stream}",
            role=SpanKind.CONSUMER,
            attributes=_attributes("process", stream),
            links=[trace.Link(context) for context in contexts.values()],
        )

    def _span(
        self, operation: str, role: SpanKind, place: str, given: Mapping[str, str] | None, attributes: Mapping[str, Any]
    ) -> AbstractContextManager[object]:
        if self._spans is None:
            return _NOTHING
        headers = _headers() if given is None else given
        if (parent := _context(headers)) is None:
            return _NOTHING  # about no run: a heartbeat, a breaker
        said = {**_attributes(operation, place), **attributes, **_session(headers)}
        name = f"{operation} {_template(place)}"
        return self._spans.below(parent, Kind.CHAIN, name, role=role, attributes=said)


def _headers() -> dict[str, str]:
    if (scope := current_scope()) is None:
        return {}
    session = quote(session_of(scope.run_key), safe="")
    return {HEADER_TRACEPARENT: scope.traceparent, HEADER_BAGGAGE: f"{_SESSION}{session}"}


def _context(headers: Mapping[str, str]) -> SpanContext | None:
    found = trace.get_current_span(_W3C.extract(_lower(headers), Context())).get_span_context()
    return found if found.is_valid else None


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    """nats-py's headers are case-sensitive; others write `Traceparent`."""
    return {name.lower(): value for name, value in headers.items()}


def _session(headers: Mapping[str, str]) -> dict[str, str]:
    baggage = _lower(headers).get(HEADER_BAGGAGE, "")
    found = next((part for part in baggage.split(",") if part.startswith(_SESSION)), "")
    return {SpanAttributes.SESSION_ID: unquote(found.removeprefix(_SESSION))} if found else {}


def _attributes(operation: str, place: str) -> dict[str, Any]:
    return {
        messaging.MESSAGING_SYSTEM: _SYSTEM,
        messaging.MESSAGING_OPERATION_NAME: operation,
        messaging.MESSAGING_OPERATION_TYPE: operation,
        messaging.MESSAGING_DESTINATION_NAME: place,
        messaging.MESSAGING_DESTINATION_TEMPLATE: _template(place),
    }


def _template(place: str) -> str:
    """`agog.deliverables.roy.>`: as few names as there are kinds of messages."""
    tokens = place.split(".")
    return place if len(tokens) <= _LITERAL_TOKENS else ".".join([*tokens[:_LITERAL_TOKENS], ">"])
