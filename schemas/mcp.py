"""Tools of MCP servers: the servers as data, and what agents and gateways say to each other about calls.

A call's key is (task key, tool call id). Whoever asks again with the same key gets the same outcome; the tool is called
again only when it may be (`repeatable`) and nobody knows how the first call ended.
"""

import hashlib
import json
import re
from collections.abc import Collection
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from schemas.subjects import Slug

VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""A variable of the gateway worker's environment; its value never stands in a file."""

ANY: Final = "*"
"""In lists of tools: all of them."""
MAX_CALL_ID_LENGTH: Final = 255
MAX_NAME_LENGTH: Final = 64
"""Of a tool as a model sees it; what providers take."""
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_-]")


class McpServer(BaseModel):
    """One MCP server: how to reach it, who may call which of its tools, and within what bounds."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    command: tuple[str, ...] = ()
    """Program and arguments of a server that speaks over standard input and output."""
    url: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    """Address of a server that speaks streamable HTTP."""
    env: tuple[VariableName, ...] = ()
    """For `command`: names of the gateway's variables that the server may see, besides PATH, HOME, LANG and TERM."""
    headers: dict[str, VariableName] = {}
    """For `url`: header → name of the gateway's variable that holds its value."""

    agents: tuple[Slug, ...] = ()
    """Who may call it; nobody when empty."""
    tools: tuple[str, ...] = ()
    """Which tools may be called; none when empty, `*` for all that the server has."""
    idempotent: tuple[str, ...] = ()
    """Tools that may be called again when nobody knows how a call ended, whatever the server says; `*` for all."""
    once: tuple[str, ...] = ()
    """Tools that are never called again, whatever the server or `idempotent` says; `*` for all."""

    max_concurrent: Annotated[int, Field(ge=1, le=1000)] = 4
    """Calls at once, over all gateways."""
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Calls per minute, over all gateways."""
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 60
    """For one call, and for starting the server."""
    queue_seconds: Annotated[float, Field(gt=0, le=86_400)] = 600
    """How long a call may wait for its turn before it is given up without having been made."""
    failures_to_open: Annotated[int, Field(ge=1)] = 5
    """Calls in a row without an answer after which the breaker opens and calls fail at once."""
    open_seconds: Annotated[float, Field(gt=0, le=86_400)] = 30
    """How long it stays open before one call tries again."""
    max_argument_bytes: Annotated[int, Field(ge=1, le=1024**2)] = 256 * 1024
    max_result_bytes: Annotated[int, Field(ge=1024, le=8 * 1024**2)] = 4 * 1024**2
    """A longer result is an error; the server's connection is cut before the rest is read."""
    inline_bytes: Annotated[int, Field(ge=256, le=256 * 1024)] = 20_000
    """What a prompt may hold of a result; of a longer one it gets the beginning and a reference."""
    cost_usd: Annotated[Decimal, Field(ge=0)] = Decimal(0)
    """Of one call, in US dollars, however it ends; one that did not reach the server costs nothing."""

    @model_validator(mode="after")
    def _is_reachable_in_one_way(self) -> Self:
        if bool(self.command) == bool(self.url):
            raise ValueError("a server has either a command or a url")
        if self.headers and not self.url:
            raise ValueError("headers are for a server with a url")
        if self.env and not self.command:
            raise ValueError("env is for a server with a command")
        return self

    @property
    def variables(self) -> frozenset[str]:
        """Names of the variables with its secrets."""
        return frozenset((*self.env, *self.headers.values()))

    def allows(self, tool: str) -> bool:
        """Whether anybody may call that tool."""
        return _named(tool, self.tools)

    def repeatable(self, tool: str, *, hinted: bool) -> bool:
        """Whether a call may be made again when nobody knows how the first one ended.

        Args:
            tool: Its name at the server.
            hinted: Whether the server declares it read-only or idempotent; a claim that the file can overrule.
        """
        return not _named(tool, self.once) and (hinted or _named(tool, self.idempotent))


def _named(tool: str, names: Collection[str]) -> bool:
    return tool in names or ANY in names


def offered_name(server: str, tool: str) -> str:
    """The tool's name for a model: `<server>__<tool>`, legal for every provider and different for different tools."""
    plain = _NOT_IN_NAMES.sub("_", name := f"{server}__{tool}")
    if plain == name and len(name) <= MAX_NAME_LENGTH:
        return name
    return f"{plain[: MAX_NAME_LENGTH - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def call_token(task_key: str, tool_call_id: str) -> str:
    """One token for a call's key: part of subjects and message ids."""
    return hashlib.sha256(f"{task_key}\n{tool_call_id}".encode()).hexdigest()[:40]


# --- what an agent asks ---------------------------------------------------------------------------------------------


class ListTools(BaseModel):
    """Which tools may I call?"""

    model_config = ConfigDict(frozen=True)

    kind: Literal["list"] = "list"
    only_health: bool = False
    """Tell how the servers are, without tools and without starting any."""


class CallTool(BaseModel):
    """Call a tool, or tell how that call ended."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["call"] = "call"
    task_key: Annotated[str, Field(min_length=1, max_length=255)]
    tool_call_id: Annotated[str, Field(min_length=1, max_length=MAX_CALL_ID_LENGTH)]
    server: str
    tool: str
    arguments: dict[str, Any]

    def digest(self) -> str:
        """What tells a call apart from another one under the same key."""
        said = json.dumps([self.server, self.tool, self.arguments], sort_keys=True)
        return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


class ReadResult(BaseModel):
    """Read on in a result that was too long for a prompt."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["read"] = "read"
    task_key: str
    reference: str
    offset: Annotated[int, Field(ge=0)] = 0
    characters: Annotated[int, Field(ge=1, le=100_000)] = 20_000


class ToolsRequest(RootModel[Annotated[ListTools | CallTool | ReadResult, Field(discriminator="kind")]]):
    """What is asked on `agog.svc.tools.<caller>`; who asks is the subject's last token."""


# --- what a gateway answers -----------------------------------------------------------------------------------------


class ToolOffer(BaseModel):
    """One tool that may be called."""

    model_config = ConfigDict(frozen=True)

    name: str
    """For the model (`offered_name`)."""
    server: str
    tool: str
    """Its name at the server."""
    description: str
    parameters: dict[str, Any]
    """JSON Schema of the arguments."""
    repeatable: bool
    """Whether it may be called again when nobody knows how a call ended."""


class ServerHealth(BaseModel):
    """How one MCP server is, as one gateway sees it."""

    model_config = ConfigDict(frozen=True)

    server: str
    state: Literal["idle", "up", "failed", "open"]
    """Not started yet, connected, failed the last time, or not asked while its breaker is open."""
    reason: str = ""
    tools: int = 0
    in_flight: int = 0


class ToolOffers(BaseModel):
    """The tools that the caller may call; those of a server that is away are missing, and its health says why."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["offers"] = "offers"
    tools: list[ToolOffer]
    servers: list[ServerHealth]


class ToolOutcome(BaseModel):
    """How a call ended, for good; the same whenever it is asked for."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["outcome"] = "outcome"
    status: Literal["result", "error", "outcome_unknown"]
    text: str
    """For the model: the result or its beginning, or what went wrong."""
    code: str = ""
    """Of an error (`schemas.errors`)."""
    reference: str | None = None
    """Ticket of the whole result, when `text` is its beginning only."""
    result_bytes: int = 0
    cost_usd: Decimal = Decimal(0)


class ToolPending(BaseModel):
    """Not ended yet: ask again."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["pending"] = "pending"


class ToolRefused(BaseModel):
    """The call is not made, and nothing is recorded under its key."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["refused"] = "refused"
    code: str
    message: str
    retryable: bool = False


class ToolText(BaseModel):
    """A part of a long result."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["text"] = "text"
    text: str
    characters: int
    """Of the whole result."""


ToolReply = ToolOffers | ToolOutcome | ToolPending | ToolRefused | ToolText


class ToolsReply(RootModel[Annotated[ToolReply, Field(discriminator="kind")]]):
    """The answer on `agog.svc.tools.<caller>`."""


# --- what waits in the queue ----------------------------------------------------------------------------------------


class QueuedCall(BaseModel):
    """A call that was checked: its agent may make it, and the arguments fit the schema."""

    model_config = ConfigDict(frozen=True)

    agent: Slug
    call: CallTool
    asked_at: datetime
