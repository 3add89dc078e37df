"""A conversation that one provider began and another one goes on with."""

import json
from typing import Any

import httpx2 as httpx
from anthropic import AsyncAnthropic
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.tools import ToolDefinition

from coatcheck.gateway.conversation import for_provider

STRANGE_ID = "functions.fetch:0|" + "x" * 60


def conversation() -> list[ModelMessage]:
    """A prompt, an answer of an OpenAI-like server with everything of its own, and the tool's result."""
    answer = ModelResponse(
        parts=[
            ThinkingPart("Let me see.", id="rs_1", signature="secret", provider_name="openai"),
            TextPart("I look it up.", id="msg_1", provider_name="openai", provider_details={"phase": "x"}),
            ToolCallPart("fetch", '{"stage": "research"}', STRANGE_ID, id="fc_1", provider_name="openai"),
        ],
        provider_name="openai",
        model_name="gpt-test",
        provider_details={"finish_reason": "tool_calls"},
        provider_response_id="resp_1",
    )
    return [
        ModelRequest(parts=[UserPromptPart("Review it.")]),
        answer,
        ModelRequest(parts=[ToolReturnPart("fetch", "The report.", STRANGE_ID)]),
    ]


def test_the_own_provider_gets_everything_back() -> None:
    """But for an id that it would refuse."""
    _, answer, result = for_provider(conversation(), "openai")
    thinking, text, call = answer.parts
    assert (thinking, text) == tuple(conversation()[1].parts[:2])
    assert isinstance(call, ToolCallPart)
    assert call.id == "fc_1"
    assert call.tool_call_id == result.parts[0].tool_call_id != STRANGE_ID  # type: ignore[union-attr]


def test_another_provider_gets_what_was_said_and_called() -> None:
    """No thinking, no ids, no details; the call and its result are still a pair; always the same."""
    journalled = conversation()
    messages = for_provider(journalled, "anthropic")
    assert messages == for_provider(journalled, "anthropic")
    answer = messages[1]
    assert isinstance(answer, ModelResponse)
    text, call = answer.parts
    assert text == TextPart("I look it up.")
    assert call == ToolCallPart("fetch", '{"stage": "research"}', messages[2].parts[0].tool_call_id)  # type: ignore[union-attr]
    assert (answer.provider_name, answer.provider_details, answer.provider_response_id) == (None, None, None)


def test_an_answer_of_thinking_alone_is_not_empty() -> None:
    """Providers refuse an empty message."""
    only = ModelResponse(parts=[ThinkingPart("Hm.", signature="x", provider_name="openai")], provider_name="openai")
    [message] = for_provider([only], "anthropic")
    assert message.parts == [TextPart("(no text)")]


async def test_anthropic_is_sent_what_it_takes() -> None:
    """By pydantic-ai's own adapter: text, a tool_use whose id it allows, and the tool_result of that id."""
    sent: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        body = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-test",
            "stop_reason": "end_turn",
        }
        usage = {"input_tokens": 1, "output_tokens": 1}
        return httpx.Response(200, json={**body, "content": [{"type": "text", "text": "Good."}], "usage": usage})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        client = AsyncAnthropic(api_key="test", http_client=http, max_retries=0)
        model = AnthropicModel("claude-test", provider=AnthropicProvider(anthropic_client=client))
        parameters = ModelRequestParameters(function_tools=[ToolDefinition(name="fetch")])
        await model.request(for_provider(conversation(), model.system), None, parameters)
    [body] = sent
    _, said, result = body["messages"]
    text, call = said["content"]
    assert text == {"type": "text", "text": "I look it up."}
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "fetch", {"stage": "research"})
    assert call["id"].replace("_", "").isalnum()
    [answered] = result["content"]
    assert (answered["type"], answered["tool_use_id"]) == ("tool_result", call["id"])
