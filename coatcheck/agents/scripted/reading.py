"""Reads what the scripted author is given: the expanded prompt of `coatcheck.agents.prompt`, its tools, their answers.

Only the outermost sections count; whatever a body contains, it ends at the closing tag with its own fence.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, ToolCallPart, ToolReturnPart, UserPromptPart

from coatcheck.agents.scripted.draft import Call
from schemas.rehearsal import Cue, split_cues
from schemas.roles import FETCH_DELIVERABLE
from schemas.streams import stream_name

_REQUEST: Final = re.compile(r"<request((?: [a-z_]+=\"[^\"]*\")+)>\n")
_OPEN: Final = re.compile(
    r"^<(brief|deliverable|decision) fence=\"([0-9a-f]+)\"((?: [a-z_]+=\"[^\"]*\")*)>\n", re.MULTILINE
)
_ATTRIBUTE: Final = re.compile(r" ([a-z_]+)=\"([^\"]*)\"")
_TYPE_PREFIX: Final = stream_name("")


@dataclass(frozen=True)
class Section:
    """One deliverable as shown to the author."""

    stage: str
    task_type: str
    """What kind of document it is: the last part of its stream's name, else the stage's name."""
    text: str


@dataclass(frozen=True)
class Done:
    """A tool call of an earlier turn and what came of it."""

    name: str
    arguments: dict[str, Any]
    answer: str
    refused: bool
    """Whether the tool asked for another try instead of answering."""


@dataclass(frozen=True)
class Assignment:
    """What the author is asked to do and everything that it may read."""

    feature: str
    stage: str
    task_type: str
    kind: str
    round: int
    brief: str
    decision: str
    """A person's words, or empty."""
    sections: tuple[Section, ...]
    fetched: tuple[Section, ...]
    """What `fetch_deliverable` returned."""
    tools: frozenset[str] = frozenset()
    """Names of the tools that are offered, besides the output tool."""
    done: tuple[Done, ...] = ()
    """The tool calls of this conversation so far, in order."""
    cues: tuple[Cue, ...] = ()
    """What the brief tells the author to do in this round, as in a rehearsal."""

    def calls(self, tool: str) -> list[Done]:
        """What came of the calls of that tool."""
        return [item for item in self.done if item.name == tool]

    def can(self, tool: str) -> bool:
        """Whether the tool is offered and was not called yet."""
        return tool in self.tools and not self.calls(tool)

    def fetch(self, stage: str) -> list[Call]:
        """The call that fetches a stage's document: once per conversation, and only when it is not at hand."""
        is_missing = self.can(FETCH_DELIVERABLE) and self.find(stage) is None
        return [Call(FETCH_DELIVERABLE, {"stage": stage, "offset": 0})] if is_missing else []

    def find(self, task_type: str) -> Section | None:
        """The newest document of that type, handed or fetched."""
        found = [item for item in (*self.sections, *self.fetched) if item.task_type == task_type]
        return found[-1] if found else None

    def text(self, task_type: str) -> str:
        """The text of that document, or nothing."""
        section = self.find(task_type)
        return section.text if section else ""


def read(messages: list[ModelMessage], tools: Iterable[str] = ()) -> Assignment | None:
    """Understand a conversation, or say with `None` that its first prompt is not one of ours."""
    prompt = next(_prompts(messages), "")
    request = _REQUEST.match(prompt)
    if request is None:
        return None
    head: dict[str, str] = dict(_ATTRIBUTE.findall(request[1]))
    if not {"feature", "stage", "round"} <= head.keys() or not head["round"].isdigit():
        return None
    parts, done = list(_sections(prompt)), tuple(_done(messages))
    brief, cues = split_cues("".join(body for tag, _, body in parts if tag == "brief"))
    return Assignment(
        feature=head["feature"],
        stage=head["stage"],
        task_type=head.get("task_type", head["stage"]),
        kind=head.get("kind", "work"),
        round=int(head["round"]),
        brief=brief,
        decision="".join(body for tag, _, body in parts if tag == "decision"),
        sections=tuple(_deliverable(attributes, body) for tag, attributes, body in parts if tag == "deliverable"),
        fetched=tuple(_fetched(done)),
        tools=frozenset(tools),
        done=done,
        cues=tuple(cue for cue in cues if cue.is_for(head["stage"], int(head["round"]))),
    )


def _prompts(messages: list[ModelMessage]) -> Iterator[str]:
    for message in messages:
        for part in message.parts:
            if isinstance(part, UserPromptPart):
                yield part.content if isinstance(part.content, str) else ""


def _done(messages: list[ModelMessage]) -> Iterator[Done]:
    """Every call that was answered, by its id."""
    answers = {
        part.tool_call_id: part
        for message in messages
        if isinstance(message, ModelRequest)
        for part in message.parts
        if isinstance(part, ToolReturnPart)
    }
    for message in messages:
        for call in message.parts if isinstance(message, ModelResponse) else ():
            if isinstance(call, ToolCallPart) and (part := answers.get(call.tool_call_id)) is not None:
                text = part.content if isinstance(part.content, str) else ""
                yield Done(call.tool_name, call.args_as_dict(), text, refused=part.outcome != "success")


def _fetched(done: Iterable[Done]) -> Iterator[Section]:
    """Sections in tool returns; a return without one is the bare text of the stage that was asked for."""
    for call in done:
        if call.name == FETCH_DELIVERABLE and not call.refused:
            found = [_deliverable(attributes, body) for tag, attributes, body in _sections(call.answer)]
            stage = str(call.arguments.get("stage", ""))
            yield from found or [Section(stage=stage, task_type=stage, text=call.answer)]


def _sections(text: str) -> Iterator[tuple[str, dict[str, str], str]]:
    position = 0
    while (opening := _OPEN.search(text, position)) is not None:
        end = text.find(f'\n</{opening[1]} fence="{opening[2]}">', opening.end())
        if end < 0:
            return
        yield opening[1], dict(_ATTRIBUTE.findall(opening[3])), text[opening.end() : end]
        position = end


def _deliverable(attributes: dict[str, str], body: str) -> Section:
    stage, stream = attributes.get("stage", ""), attributes.get("stream", "")
    task_type = stream.removeprefix(_TYPE_PREFIX) if stream.startswith(_TYPE_PREFIX) else stage
    return Section(stage=stage, task_type=task_type, text=body)
