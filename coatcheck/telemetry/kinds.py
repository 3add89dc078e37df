"""What each kind of span says: OpenInference's attributes, by their own names, and ours under `coatcheck.*`.

One function per kind of work, so that two spans of a kind never differ in what they say. Whatever a person or a model
wrote is not here: it is content (`Span.content`, `coatcheck.events.dialogue`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from openinference.semconv.trace import DocumentAttributes, SpanAttributes
from opentelemetry.semconv._incubating.attributes import messaging_attributes

from schemas.notice import Notice

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


def place(stage: str | None, number: int | None) -> dict[str, Any]:
    """The stage and round that a span is about, as far as it is about one."""
    told = {STAGE: stage, ROUND: number}
    return {name: value for name, value in told.items() if value is not None}


def agent_attributes(
    agent: str, stage: str, number: int, inputs: Mapping[str, str], notice: Notice | None
) -> dict[str, Any]:
    """AGENT: who did which round, from which tickets (stage → ticket), and what was handed in, if anything."""
    handed = ",".join(f"{name}={ticket}" for name, ticket in inputs.items())
    return {
        SpanAttributes.AGENT_NAME: agent,
        SpanAttributes.GRAPH_NODE_ID: stage,
        **place(stage, number),
        **({"coatcheck.inputs": handed} if handed else {}),
        **(_notice_attributes(notice) if notice else {}),
    }


def llm_attributes(model: str, tokens_in: int, tokens_out: int, tokens_cached: int, cost: str) -> dict[str, Any]:
    """LLM: one turn; `model` as `provider:model`."""
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
    """TOOL: one call."""
    return {SpanAttributes.TOOL_NAME: tool, SpanAttributes.TOOL_ID: call_id}


def retriever_attributes(tool: str, call_id: str, documents: Sequence[str]) -> dict[str, Any]:
    """RETRIEVER: a call that reads what others have stored; documents as subject, sequence and sha256.

    They have no score: what is read is read by its name.
    """
    found = {
        f"{SpanAttributes.RETRIEVAL_DOCUMENTS}.{number}.{DocumentAttributes.DOCUMENT_ID}": name
        for number, name in enumerate(documents)
    }
    return tool_attributes(tool, call_id) | found


def evaluator_attributes(judge: str, score: float | None = None) -> dict[str, Any]:
    """EVALUATOR: one judge's opinion on one criterion; no score when it could not be had."""
    return {"coatcheck.judge": judge, **({} if score is None else {"coatcheck.score": score})}


def _notice_attributes(notice: Notice) -> dict[str, Any]:
    meta = notice.metadata
    said = {
        REFERENCE: notice.ref.to_ticket(),
        COST: UNKNOWN if meta.cost_usd is None else str(meta.cost_usd),
        "coatcheck.verdict": str(meta.verdict) if meta.verdict else None,
    }
    return {name: value for name, value in said.items() if value is not None}
