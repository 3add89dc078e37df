"""A competent model: completions in OpenAI's format whose tool calls are valid for the offered JSON schema."""

import json
import re
import time
from typing import Any

from tests.providers.script import Call, Step

OUTPUT_TOOL = "submit_report"
CHECK = {"name": "works", "command": ["true"]}
"""What the backend declares, since no test passes without evidence."""
GOOD_WORDS = ("approve", "pass", "Medium")
_REQUEST_TAG = re.compile(r"<request((?: \w+=(?:\"[^\"]*\"|'[^']*'))*)>")
_ATTRIBUTE = re.compile(r"(\w+)=[\"']([^\"']*)[\"']")


def place(messages: list[dict[str, Any]]) -> Call:
    """Where the request belongs: from the `<request …>` tag of the first prompt that has one."""
    turn = 1 + sum(message["role"] == "assistant" for message in messages)
    for message in messages:
        tag = _REQUEST_TAG.search(_text(message)) if message["role"] == "user" else None
        if tag:
            found = dict(_ATTRIBUTE.findall(tag[1]))
            known = {name: found[name] for name in ("feature", "stage", "round") if name in found}
            return Call.model_validate({**known, "turn": turn})
    return Call(turn=turn)


def completion(call_id: str, request: dict[str, Any], step: Step, *, report_bytes: int) -> dict[str, Any]:
    """The whole response body for a step that answers."""
    call = place(request["messages"])
    message = _message(call_id, request, step, call, step.report_bytes or report_bytes)
    finish = "tool_calls" if "tool_calls" in message else "stop"
    if step.do == "refusal":
        finish = "content_filter"
    body: dict[str, Any] = {
        "id": f"chatcmpl-{call_id}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request["model"],
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
    }
    if step.do == "no_choices":
        body["choices"] = []
    if step.usage:
        body["usage"] = _usage(request["messages"], message)
    return body


def _message(call_id: str, request: dict[str, Any], step: Step, call: Call, report_bytes: int) -> dict[str, Any]:
    tools = {tool["function"]["name"]: tool["function"]["parameters"] for tool in request.get("tools", [])}
    if step.do in {"empty_content", "refusal"}:
        return {"role": "assistant", "content": None if step.do == "refusal" else ""}
    if step.do == "call":
        return _tool_call(call_id, step.tool or next(iter(tools)), json.dumps(step.arguments))
    if step.do == "text" or OUTPUT_TOOL not in tools:
        said = step.arguments.get("text", f"I have finished the {call.stage} of {call.feature}.")
        return {"role": "assistant", "content": said}
    if step.do == "fetch":
        return _tool_call(call_id, "fetch_deliverable", json.dumps(step.arguments))
    if step.do == "write":
        if "write_file" in tools:
            return _tool_call(call_id, "write_file", json.dumps(step.arguments))
        step = Step()  # nobody calls what is not offered
    arguments = report_arguments(tools[OUTPUT_TOOL], call, report_bytes) | step.arguments
    if step.do == "missing_field":
        arguments.pop(tools[OUTPUT_TOOL]["required"][-1])
    if step.do == "wrong_enum":
        arguments[_closed_set(tools[OUTPUT_TOOL])] = "perhaps"
    text = json.dumps(arguments, ensure_ascii=False)
    return _tool_call(call_id, OUTPUT_TOOL, text[:-1] if step.do == "bad_json" else text)


def _tool_call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    call = {"id": f"call_{call_id}", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def report_arguments(schema: dict[str, Any], call: Call, report_bytes: int) -> dict[str, Any]:
    """Valid arguments for the output tool: every required property, in a favourable sense."""
    values = {name: _value(schema["properties"][name], schema) for name in schema["required"]}
    known: dict[str, Any] = {
        "summary": f"The {call.stage} of {call.feature} is done.",
        "report": report(call, report_bytes),
        "checks": [CHECK] if call.stage == "backend" else [],
    }
    return values | {name: value for name, value in known.items() if name in schema["properties"] and value}


def report(call: Call, size: int) -> str:
    """Markdown of exactly `size` bytes (200 at least) that names the call's stage and feature."""
    head = f"# {call.stage} of {call.feature}, round {call.round}\n\n"
    line = f"The {call.stage} stage looked at {call.feature} and wrote down what it found.\n"
    return (head + line * (max(size, 200) // len(line) + 1))[: max(size, 200)]


def _value(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """Some value that is valid for a JSON schema."""
    if "$ref" in schema:
        return _value(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema:
        return _value(schema["anyOf"][0], root)
    if choices := schema.get("enum") or ([schema["const"]] if "const" in schema else None):
        return next((word for word in GOOD_WORDS if word in choices), choices[0])
    if schema.get("type") == "object":
        return {name: _value(schema["properties"][name], root) for name in schema.get("required", [])}
    if schema.get("type") == "array":
        return [_value(schema["items"], root)] * schema.get("minItems", 0)
    plain = {"string": "x" * max(schema.get("minLength", 0), 1), "boolean": True}
    return plain.get(schema["type"], schema.get("minimum", 0))


def _closed_set(schema: dict[str, Any]) -> str:
    return next(str(name) for name, item in schema["properties"].items() if "enum" in item)


def _usage(messages: list[dict[str, Any]], message: dict[str, Any]) -> dict[str, Any]:
    """Four bytes to the token, as usual for English."""
    asked, answered = (len(json.dumps(part)) // 4 for part in (messages, message))
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content)
