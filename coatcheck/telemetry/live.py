"""`LiveSpans`: spans of what has no event, made in the process where it happens, such as those of messages.

Each hangs below the span of the work that goes on (`Scope`), which the audit log guarantees, also one that is made
inside another: so a process that dies loses what it had not sent, and leaves no orphan (docs/adr/0021, 0048).
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from openinference.semconv.trace import SpanAttributes
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.semconv.attributes import error_attributes
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, Tracer

from coatcheck.telemetry.privacy import Privacy
from coatcheck.telemetry.scope import Scope, current_scope
from coatcheck.telemetry.spans import AttributeValue, Kind, safe_attributes, safe_name
from schemas.workflow_ids import session_of


@dataclass
class Told:
    """What the block around which there is a span may add to it."""

    attributes: dict[str, AttributeValue] = field(default_factory=dict)
    """Names and numbers."""
    content: dict[str, str] = field(default_factory=dict)
    """What a person or a model wrote; leaves as the setting says."""


@dataclass(frozen=True)
class LiveSpans:
    """Makes spans with OpenInference's kind and session.

    Args:
        tracer: Sends them, in batches.
        privacy: How much content they may have.
    """

    tracer: Tracer
    privacy: Privacy

    def span(
        self,
        kind: Kind,
        name: str,
        *,
        attributes: Mapping[str, AttributeValue] | None = None,
        content: Mapping[str, str] | None = None,
    ) -> contextlib.AbstractContextManager[Told]:
        """The block is a span below the present work; none outside of any run."""
        scope = current_scope()
        if scope is None:
            return contextlib.nullcontext(Told())
        said = {SpanAttributes.SESSION_ID: session_of(scope.run_key), **(attributes or {})}
        return self.below(_context(scope), kind, name, attributes=said, content=content)

    def below(
        self,
        parent: SpanContext | None,
        kind: Kind,
        name: str,
        *,
        role: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, AttributeValue],
        content: Mapping[str, str] | None = None,
        links: Sequence[Link] = (),
    ) -> contextlib.AbstractContextManager[Told]:
        """The block is a span below another process's, or the root of a trace of its own."""
        context = trace.set_span_in_context(NonRecordingSpan(parent), Context()) if parent else Context()
        told = Told({SpanAttributes.OPENINFERENCE_SPAN_KIND: kind.value, **attributes}, dict(content or {}))
        return self._recorded(name, context, role, told, links)

    @contextlib.contextmanager
    def _recorded(
        self, name: str, context: Context, role: SpanKind, told: Told, links: Sequence[Link]
    ) -> Iterator[Told]:
        # The SDK would put the text of an exception into status and events, whatever the setting.
        span = self.tracer.start_span(
            safe_name(name, self.privacy),
            context,
            kind=role,
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        )
        try:
            yield told
        except BaseException as error:
            told.attributes[error_attributes.ERROR_TYPE] = type(error).__name__
            span.set_status(Status(StatusCode.ERROR, self.privacy.content(str(error))))
            raise
        finally:
            span.set_attributes(safe_attributes(told.attributes, self.privacy))
            shown = {key: self.privacy.content(text) for key, text in told.content.items()}
            span.set_attributes({key: text for key, text in shown.items() if text is not None})
            span.end()


def _context(scope: Scope) -> SpanContext:
    return SpanContext(int(scope.trace_id, 16), int(scope.span_id, 16), True, TraceFlags(TraceFlags.SAMPLED))
