"""What was said, as content of the spans that are about it: OpenInference's messages, tool arguments and results.

Prompts in the journal hold claims, not the texts behind them, so a deliverable is shown as its ticket (ADR 0004).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from openinference.semconv.trace import MessageAttributes, SpanAttributes, ToolCallAttributes

from coatcheck.storage.conversations import Said
from coatcheck.telemetry.spans import Span

_TOOL_CALL = "tool-call"


def with_words(span: Span, conversation: Sequence[Said]) -> Span:
    """The span with what its task's conversation has of it."""
    if span.words is None:
        return span
    found = _call(conversation, span.words.call_id) if span.words.call_id else _turn(conversation, span.words.turn)
    return replace(span, content={**span.content, **found})


def _turn(conversation: Sequence[Said], turn: int) -> dict[str, str]:
    """The new messages of a turn, and its answer; earlier ones are on the spans of theirs."""
    told = [part for said in conversation if said.turn == turn and not said.is_answer for part in _parts(said)]
    answers = [said for said in conversation if said.turn == turn and said.is_answer]
    content: dict[str, str] = {}
    for number, part in enumerate(told):
        prefix = f"{SpanAttributes.LLM_INPUT_MESSAGES}.{number}"
        content[f"{prefix}.{MessageAttributes.MESSAGE_ROLE}"] = _role(part)
        content[f"{prefix}.{MessageAttributes.MESSAGE_CONTENT}"] = _text(part.get("content", ""))
    for answer in answers:
        content |= _answer(answer)
    return content


def _answer(answer: Said) -> dict[str, str]:
    prefix = f"{SpanAttributes.LLM_OUTPUT_MESSAGES}.0"
    content = {f"{prefix}.{MessageAttributes.MESSAGE_ROLE}": "assistant"}
    if "parts" not in answer.message:
        return content | {f"{prefix}.{MessageAttributes.MESSAGE_CONTENT}": _text(answer.message)}
    texts = [_text(part.get("content", "")) for part in _parts(answer) if part["part_kind"] == "text"]
    if texts:
        content[f"{prefix}.{MessageAttributes.MESSAGE_CONTENT}"] = "\n".join(texts)
    calls = [part for part in _parts(answer) if part["part_kind"] == _TOOL_CALL]
    for number, part in enumerate(calls):
        call = f"{prefix}.{MessageAttributes.MESSAGE_TOOL_CALLS}.{number}"
        content[f"{call}.{ToolCallAttributes.TOOL_CALL_ID}"] = part["tool_call_id"]
        content[f"{call}.{ToolCallAttributes.TOOL_CALL_FUNCTION_NAME}"] = part["tool_name"]
        content[f"{call}.{ToolCallAttributes.TOOL_CALL_FUNCTION_ARGUMENTS_JSON}"] = _text(part.get("args") or "{}")
    return content


def _call(conversation: Sequence[Said], call_id: str) -> dict[str, str]:
    """A tool's arguments and its result."""
    content: dict[str, str] = {}
    for said in conversation:
        for part in _parts(said):
            if part.get("tool_call_id") == call_id:
                is_call = part["part_kind"] == _TOOL_CALL
                key = SpanAttributes.INPUT_VALUE if is_call else SpanAttributes.OUTPUT_VALUE
                content[key] = _text(part.get("args") if is_call else part.get("content"))
                if is_call:
                    content[SpanAttributes.TOOL_PARAMETERS] = content[key]
    return content


def _parts(said: Said) -> Iterator[dict[str, Any]]:
    yield from said.message.get("parts", [])


def _role(part: dict[str, Any]) -> str:
    kind = part["part_kind"]
    if kind == "system-prompt":
        return "system"
    return "tool" if part.get("tool_call_id") else "user"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
