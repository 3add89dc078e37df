"""A journalled conversation in the form that one provider takes, whoever wrote its answers.

Models may change in mid-conversation: the chain falls back, and comes back. What belongs to one provider alone
(thinking with its signature, ids of parts, calls of its own tools) is kept in the journal and left out for others.
"""

import hashlib
import re
from dataclasses import replace
from typing import Final, TypeVar

from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    RetryFeedbackPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

_CALL_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,40}")
"""Anthropic takes these characters, OpenAI this length."""
_NOTHING_SAID: Final = "(no text)"
"""In place of an answer that had only thinking in it: no provider takes an empty one."""

_Part = TypeVar("_Part", ToolCallPart, ToolReturnPart)


def for_provider(messages: list[ModelMessage], system: str) -> list[ModelMessage]:
    """The messages as the provider named `system` (pydantic-ai's `Model.system`) takes them; the same for the same."""
    return [
        _answer(message, system) if isinstance(message, ModelResponse) else _request(message) for message in messages
    ]


def _answer(message: ModelResponse, system: str) -> ModelResponse:
    if message.provider_name == system:
        return replace(message, parts=[_own(part) for part in message.parts])
    parts = [portable for part in message.parts if (portable := _portable(part)) is not None]
    return ModelResponse(
        parts=parts or [TextPart(_NOTHING_SAID)], timestamp=message.timestamp, model_name=message.model_name
    )


def _own(part: ModelResponsePart) -> ModelResponsePart:
    return _with_plain_id(part) if isinstance(part, ToolCallPart) else part


def _portable(part: ModelResponsePart) -> ModelResponsePart | None:
    if isinstance(part, TextPart):
        return TextPart(part.content) if part.content else None
    if isinstance(part, ToolCallPart):
        arguments = part.args if isinstance(part.args, str) else part.args_as_json_str()
        return _with_plain_id(ToolCallPart(part.tool_name, arguments, part.tool_call_id))
    return None


def _request(message: ModelRequest) -> ModelRequest:
    return replace(message, parts=[_request_part(part) for part in message.parts])


def _request_part(part: ModelRequestPart) -> ModelRequestPart:
    """Feedback on an unusable answer as a text that every provider takes.

    As pydantic-ai does it for a provider without system messages in mid-conversation; servers differ in that.
    """
    if isinstance(part, ToolReturnPart):
        return _with_plain_id(part)
    if not isinstance(part, RetryFeedbackPart):
        return part
    text = part.model_response()
    return UserPromptPart(f"<system>{text}</system>" if part.retry.cause == "no_output" else text)


def _with_plain_id(part: _Part) -> _Part:
    """An id that every provider takes; a call and its result stay a pair."""
    if _CALL_ID.fullmatch(part.tool_call_id):
        return part
    return replace(part, tool_call_id=f"call_{hashlib.sha256(part.tool_call_id.encode()).hexdigest()[:32]}")
