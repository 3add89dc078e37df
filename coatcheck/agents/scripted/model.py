"""`ScriptedModel`: a deterministic author behind the interface of a language model.

The default when no provider key is configured, and one more provider behind the LLM proxy: everything around it
(turns, tools, journal, usage) is real. It reads the expanded prompt, so later texts really depend on earlier ones.
"""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from pydantic_ai.exceptions import ModelRateLimitError, ModelRequestRejectedError
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import RequestUsage

from coatcheck.agents.scripted import backend, critique, frontend, markup, qa, research, statistics
from coatcheck.agents.scripted.draft import Call, Draft
from coatcheck.agents.scripted.padding import padded
from coatcheck.agents.scripted.reading import Assignment, read
from coatcheck.agents.scripted.words import key_terms

BYTES_PER_TOKEN: Final = 4
"""The estimate behind every scripted token count: UTF-8 bytes / 4, rounded up."""
NOT_OURS: Final = (
    "This is Coatcheck's scripted author, not a language model. It only writes the reports of a feature pipeline and "
    "does not understand this prompt. Configure a model (COATCHECK_MODEL and its provider's key) for anything else."
)

_UNDATED: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""The same messages give the same bytes, so an answer has no time of its own."""
_AUTHORS: Final[dict[str, Callable[[Assignment], Draft]]] = {
    "research": research.write,
    "critique": critique.write,
    "backend": backend.write,
    "frontend": frontend.write,
    "qa": qa.write,
    "statistics": statistics.write,
}
_BY_KIND: Final = {"review": critique.write, "test": qa.write, "work": research.write}
"""For stages of other pipelines, whose task types the author does not know."""
_STEPS: Final[dict[str, Callable[[Assignment], list[Call]]]] = {
    "backend": backend.steps,
    "frontend": frontend.steps,
    "qa": qa.steps,
    "statistics": statistics.steps,
}
"""What these do before they write: the tool calls of the next turn, none when the report is due."""
_STEPS_BY_KIND: Final = {"test": qa.steps}


class ScriptedModel(Model):
    """Writes coherent reports for any request; never calls out, never varies."""

    def __init__(self, *, latency_seconds: float = 0.0, report_bytes: int = 0) -> None:
        """Create the author.

        Args:
            latency_seconds: How long each turn pretends to think.
            report_bytes: Reports are padded with worked examples to at least this many bytes of UTF-8.
        """
        super().__init__()
        self._latency_seconds = latency_seconds
        self._report_bytes = report_bytes
        self._refused: Counter[str] = Counter()

    @property
    def model_name(self) -> str:
        """Always `scripted`."""
        return "scripted"

    @property
    def system(self) -> str:
        """The provider's name in telemetry."""
        return "coatcheck"

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Answer with tool calls, or with a text when the prompt is not one of Coatcheck's.

        Raises:
            ModelAPIError: a cue in the brief says so.
        """
        if self._latency_seconds > 0:
            await asyncio.sleep(self._latency_seconds)
        _, parameters = self.prepare_request(model_settings, model_request_parameters)
        parts = self._answer(messages, parameters)
        return ModelResponse(
            parts=parts,
            usage=RequestUsage(
                input_tokens=estimate_tokens(_instructions(messages, parameters), *_texts(messages)),
                output_tokens=estimate_tokens(*map(_text_of, parts)),
            ),
            model_name=self.model_name,
            provider_name=self.system,
            timestamp=_UNDATED,
        )

    def _answer(
        self, messages: list[ModelMessage], parameters: ModelRequestParameters
    ) -> list[TextPart | ToolCallPart]:
        task = read(messages, (tool.name for tool in parameters.function_tools))
        if task is not None:
            self._obey(task)
        output = next((tool for tool in parameters.output_tools if "report" in _properties(tool)), None)
        if task is None or output is None:
            return [TextPart(NOT_OURS)]
        turn = 1 + sum(isinstance(message, ModelResponse) for message in messages)
        steps = _STEPS.get(task.task_type, _STEPS_BY_KIND.get(task.kind, _no_steps))
        calls = steps(task) or [Call(output.name, self._report(task, output))]
        return [
            ToolCallPart(call.tool, _json(call.arguments), _call_id(task, turn, number))
            for number, call in enumerate(calls, 1)
        ]

    def _report(self, task: Assignment, output: ToolDefinition) -> dict[str, Any]:
        """The report's fields that the caller's tool has."""
        wanted = _properties(output)
        said = self._write(task).arguments()
        for cue in task.cues:
            said |= cue.fields
        return {name: value for name, value in said.items() if name in wanted}

    def _obey(self, task: Assignment) -> None:
        """Fail as a provider would, where a cue wants it; how often is counted in this process alone."""
        for cue in task.cues:
            if cue.do == "refuse":
                raise ModelRequestRejectedError(self.model_name, "the brief's cue is to refuse this request")
            if cue.do == "busy" and not task.done:
                key = _call_id(task, 0, 0)
                self._refused[key] = (self._refused[key] + 1) % (cue.times + 1)
                if self._refused[key]:
                    raise ModelRateLimitError(self.model_name, "the brief's cue is to be busy", retry_after=cue.seconds)

    def _write(self, task: Assignment) -> Draft:
        draft = _AUTHORS.get(task.task_type, _BY_KIND.get(task.kind, research.write))(task)
        research_text = draft.report if task.task_type == "research" else task.text("research")
        items = markup.requirements(research_text, task.brief)
        report = padded(draft.report, self._report_bytes, items, key_terms(task.feature, task.brief))
        return Draft(**{**vars(draft), "report": report})


def estimate_tokens(*texts: str) -> int:
    """UTF-8 bytes of all texts / 4, rounded up; the same estimate for input and output."""
    size = sum(len(text.encode("utf-8", "replace")) for text in texts)
    return -(-size // BYTES_PER_TOKEN)


def _no_steps(_: Assignment) -> list[Call]:
    return []


def _properties(tool: ToolDefinition) -> dict[str, Any]:
    properties: dict[str, Any] = tool.parameters_json_schema.get("properties", {})
    return properties


def _call_id(task: Assignment, turn: int, number: int) -> str:
    """The same for the same call of a turn, different for every other one of a conversation and every request."""
    seed = f"{task.feature}/{task.stage}/{task.round}/{task.brief}"
    return f"scripted-{hashlib.sha256(seed.encode('utf-8', 'replace')).hexdigest()[:12]}-{turn}-{number}"


def _json(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _instructions(messages: list[ModelMessage], parameters: ModelRequestParameters) -> str:
    if parameters.instruction_parts:
        return "\n\n".join(part.content for part in parameters.instruction_parts)
    requests = [message for message in messages if isinstance(message, ModelRequest)]
    return (requests[-1].instructions or "") if requests else ""


def _texts(messages: list[ModelMessage]) -> list[str]:
    return [_text_of(part) for message in messages for part in message.parts]


def _text_of(part: object) -> str:
    match part:
        case ToolCallPart():
            return part.tool_name + part.args_as_json_str()
        case ToolReturnPart():
            return part.model_response_str()
        case UserPromptPart():
            return part.content if isinstance(part.content, str) else "".join(map(str, part.content))
    content = getattr(part, "content", "")
    return content if isinstance(content, str) else str(content)
