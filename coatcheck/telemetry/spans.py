"""One span as plain data, and what each kind of span says: the OpenInference attributes, by their own names.

Kinds are OpenInference's. `Span` knows nothing of the SDK, so whoever makes spans needs none; `exporting` turns them
into OTLP.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Self

from openinference.semconv.trace import OpenInferenceSpanKindValues, SpanAttributes
from opentelemetry.semconv._incubating.attributes import messaging_attributes

from coatcheck.telemetry.privacy import Privacy

AttributeValue = str | int | float | bool

STAGE: Final = "coatcheck.stage"
ROUND: Final = "coatcheck.round"
RUN_KEY: Final = "coatcheck.run.key"
TASK_KEY: Final = "coatcheck.task.key"
STATUS: Final = "coatcheck.status"
REFERENCE: Final = "coatcheck.reference"
"""Where the whole content is: a ticket of a deliverable, or a turn of the conversation in the database."""
COST: Final = "coatcheck.cost_usd"
"""A decimal number, or `unknown`: Phoenix shows 0 for a model that it has no price for."""
UNKNOWN: Final = "unknown"

DESTINATION: Final = messaging_attributes.MESSAGING_DESTINATION_NAME
MESSAGE_ID: Final = messaging_attributes.MESSAGING_MESSAGE_ID

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
            name=privacy.safe(self.name)[:MAX_NAME_CHARACTERS],
            attributes={**_safe(self.attributes, privacy), **shown},
            content={},
            moments=[replace(moment, attributes=_safe(moment.attributes, privacy)) for moment in self.moments],
            error=privacy.content(self.error) or "",
        )


def _safe(attributes: Mapping[str, AttributeValue], privacy: Privacy) -> dict[str, AttributeValue]:
    return {name: _safe_value(value, privacy) for name, value in attributes.items()}


def _safe_value(value: AttributeValue, privacy: Privacy) -> AttributeValue:
    if isinstance(value, str):
        return privacy.safe(value)
    return max(-MAX_NUMBER, min(value, MAX_NUMBER)) if isinstance(value, int) else value


def llm_attributes(model: str, tokens_in: int, tokens_out: int, tokens_cached: int, cost: str) -> dict[str, Any]:
    """What every LLM span says; `model` as `provider:model`."""
    provider, _, name = model.rpartition(":")
    said: dict[str, Any] = {
        SpanAttributes.LLM_MODEL_NAME: name,
        SpanAttributes.LLM_TOKEN_COUNT_PROMPT: tokens_in,
        SpanAttributes.LLM_TOKEN_COUNT_COMPLETION: tokens_out,
        SpanAttributes.LLM_TOKEN_COUNT_TOTAL: tokens_in + tokens_out,
        COST: cost,
    }
    if provider:
        said[SpanAttributes.LLM_PROVIDER] = provider
    if tokens_cached:
        said[SpanAttributes.LLM_TOKEN_COUNT_PROMPT_DETAILS_CACHE_READ] = tokens_cached
    if cost != UNKNOWN:
        said[SpanAttributes.LLM_COST_TOTAL] = float(cost)
    return said


def tool_attributes(tool: str, call_id: str) -> dict[str, Any]:
    """What every TOOL or RETRIEVER span says."""
    return {SpanAttributes.TOOL_NAME: tool, SpanAttributes.TOOL_ID: call_id}
