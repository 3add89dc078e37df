"""One span as plain data, and how it is made fit to leave.

Kinds are OpenInference's. `Span` knows nothing of the SDK, so whoever makes spans needs none; `exporting` turns them
into OTLP.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Self

from openinference.semconv.trace import OpenInferenceSpanKindValues

from coatcheck.telemetry.privacy import Privacy

AttributeValue = str | int | float | bool

MAX_NAME_CHARACTERS: Final = 256
MAX_NUMBER: Final = 2**63 - 1
"""Of OTLP's integers; an agent may tell of a result of any size."""

Kind = OpenInferenceSpanKindValues


@dataclass(frozen=True)
class Moment:
    """Something that happened within a span."""

    name: str
    at: datetime
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Words:
    """Which part of a conversation a span is about."""

    task_key: str
    turn: int = 0
    call_id: str = ""
    """Of a tool call; else it is the turn."""


@dataclass(frozen=True)
class Span:
    """One span of a run's trace."""

    trace_id: str
    span_id: str
    parent_id: str | None
    """`None`: the root."""
    name: str
    kind: Kind
    start: datetime
    end: datetime
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    content: Mapping[str, str] = field(default_factory=dict)
    """Attributes that are content: written by a person or a model."""
    words: Words | None = None
    """Where more content is."""
    moments: Sequence[Moment] = ()
    is_ok: bool | None = None
    """`None`: neither well nor badly."""
    error: str = ""
    """Content: what went wrong."""
    links: Sequence[tuple[str, str]] = ()
    """Trace and span ids of what it is about."""

    def exported(self, privacy: Privacy) -> Self:
        """The span with as much content as may leave, as attributes; nothing in it that cannot be encoded or stored."""
        shown = {name: text for name, value in self.content.items() if (text := privacy.content(value)) is not None}
        return replace(
            self,
            name=safe_name(self.name, privacy),
            attributes={**safe_attributes(self.attributes, privacy), **shown},
            content={},
            moments=[
                replace(moment, attributes=safe_attributes(moment.attributes, privacy)) for moment in self.moments
            ],
            error=privacy.content(self.error) or "",
        )


def safe_name(name: str, privacy: Privacy) -> str:
    """A span's name as it may leave."""
    return privacy.safe(name)[:MAX_NAME_CHARACTERS]


def safe_attributes(attributes: Mapping[str, AttributeValue], privacy: Privacy) -> dict[str, AttributeValue]:
    """Names and numbers as they may leave: redacted, and such that every backend can store them."""
    return {name: _safe_value(value, privacy) for name, value in attributes.items()}


def _safe_value(value: AttributeValue, privacy: Privacy) -> AttributeValue:
    if isinstance(value, str):
        return privacy.safe(value)
    return max(-MAX_NUMBER, min(value, MAX_NUMBER)) if isinstance(value, int) else value
