"""What the provider does instead of answering well: steps, each for one place in a run or for whoever comes next."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

Do = Literal[
    "answer",  # well, with `arguments` laid over the defaults
    "error",  # `status`, `code`, `message`, `headers`
    "hang",  # accept the request and never answer
    "cut",  # close the connection instead of answering
    "cut_body",  # close it in the middle of the answer's body
    "drip",  # send the body so slowly that no single read times out
    "malformed",  # 200 with JSON that ends too early
    "empty_body",  # 200 with no byte
    "no_choices",  # `choices` is empty
    "empty_content",  # a message with neither text nor tool call
    "bad_json",  # the tool call's arguments are not JSON
    "missing_field",  # the last required argument is left out
    "wrong_enum",  # the first argument with a closed set has another value
    "text",  # prose instead of the tool call; `arguments["text"]` if given
    "fetch",  # a call of `fetch_deliverable` with `arguments`
    "write",  # a call of `write_file` with `arguments`
    "call",  # a call of `tool`, or of the first that is offered, with `arguments`
    "refusal",  # stopped by the content filter
]


class Call(BaseModel):
    """Where in a run a request belongs, read from its messages."""

    feature: str = ""
    stage: str = ""
    round: int = 0
    turn: int = 1
    model: str = ""
    """Without the provider."""


class Step(BaseModel):
    """One instruction; fields that are `None` match every call."""

    model_config = ConfigDict(extra="forbid")

    do: Do = "answer"
    feature: str | None = None
    stage: str | None = None
    round: int | None = None
    turn: int | None = None
    model: str | None = None
    while_answering: int | None = None
    """Only while at least so many calls are being answered: a provider that takes so many at a time."""
    first_seconds: float | None = None
    """Only so long after the script's first call."""
    times: int | None = 1
    """How many calls it is for; `None` for ever."""
    latency_seconds: float = 0
    status: int = 500
    code: str | None = None
    type: str = "server_error"
    message: str = "The server had an error while processing your request."
    headers: dict[str, str] = {}
    report_bytes: int | None = None
    """Size of the report; the server's default when absent."""
    arguments: dict[str, Any] = {}
    tool: str | None = None
    usage: bool = True
    """False leaves `usage` out of the answer."""

    def matches(self, call: Call, *, answering: int = 0, seconds: float = 0) -> bool:
        """Whether the step is for that call, when so many are being answered so long after the first one."""
        wanted = {name: getattr(self, name) for name in ("feature", "stage", "round", "turn", "model")}
        here = all(value is None or value == getattr(call, name) for name, value in wanted.items())
        now = self.first_seconds is None or seconds < self.first_seconds
        return here and now and answering >= (self.while_answering or 0) and self.times != 0


def rate_limited(message: str = "Rate limit reached for requests.", **fields: Any) -> Step:
    """OpenAI's 429; add `headers` for a Retry-After."""
    known = {"status": 429, "code": "rate_limit_exceeded", "type": "requests", "message": message}
    return Step(do="error", **(known | fields))


def quota_exhausted(**fields: Any) -> Step:
    """OpenAI's other 429, which no waiting mends."""
    text = "You exceeded your current quota, please check your plan and billing details."
    known = {"status": 429, "code": "insufficient_quota", "type": "insufficient_quota", "message": text}
    return Step(do="error", **(known | fields))


def wrong_key(**fields: Any) -> Step:
    """OpenAI's 401."""
    text = "Incorrect API key provided: sk-test."
    known = {"status": 401, "code": "invalid_api_key", "type": "invalid_request_error", "message": text}
    return Step(do="error", **(known | fields))


def context_too_long(**fields: Any) -> Step:
    """OpenAI's 400 for a prompt that does not fit."""
    text = "This model's maximum context length is 128000 tokens. However, your messages resulted in 190000 tokens."
    known = {"status": 400, "code": "context_length_exceeded", "type": "invalid_request_error", "message": text}
    return Step(do="error", **(known | fields))


def unknown_model(**fields: Any) -> Step:
    """OpenAI's 404."""
    text = "The model `gpt-none` does not exist or you do not have access to it."
    known = {"status": 404, "code": "model_not_found", "type": "invalid_request_error", "message": text}
    return Step(do="error", **(known | fields))


class Script:
    """Steps in order: the first that matches a call and is not used up is taken; after them all is well."""

    def __init__(self, steps: Iterable[Step] = ()) -> None:
        self._steps = list(steps)
        self._began: float | None = None

    @classmethod
    def load(cls, path: Path) -> "Script":
        """Read a JSON list of steps."""
        return cls(TypeAdapter(list[Step]).validate_json(path.read_bytes()))

    def add(self, *steps: Step) -> None:
        """Append steps."""
        self._steps += steps

    def take(self, call: Call, *, answering: int = 0) -> Step:
        """The step for this call, while so many others are being answered; uses it up by one."""
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        for step in self._steps:
            if step.matches(call, answering=answering, seconds=now - self._began):
                if step.times is not None:
                    step.times -= 1
                return step
        return Step()
