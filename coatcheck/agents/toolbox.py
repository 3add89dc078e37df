"""`Toolbox`: the tools of MCP servers as the agent's own, each call of which goes through the gateway.

A call's key is the task and the model's id of the call, which is journalled with the model's answer: so an attempt that
comes after a death asks for the same call and is told how it ended.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from pydantic_ai import ModelRetry, RunContext, ToolDefinition, ToolFailed
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool
from pydantic_core import SchemaValidator, core_schema

from coatcheck.agents.desk import Desk
from coatcheck.agents.prompt import spell_no_marker
from coatcheck.errors import MessagingUnavailableError, TurnRefusedError, WorkerStoppingError
from schemas import errors
from schemas.mcp import (
    CallTool,
    ListTools,
    ReadResult,
    ToolOffer,
    ToolOffers,
    ToolOutcome,
    ToolPending,
    ToolRefused,
    ToolReply,
    ToolsReply,
    ToolText,
)

AskGateway = Callable[[bytes], Awaitable[bytes]]
"""Sends an encoded `ToolsRequest` on the agent's own subject and returns the encoded `ToolsReply`.

Raises `MessagingUnavailableError` when no gateway answers.
"""

GATEWAY_AWAY_SECONDS: Final = 60.0
"""How long one attempt waits for a gateway to come back; a restart takes about 2 s."""
READ_TOOL_RESULT: Final = "read_tool_result"
_ANY: Final = SchemaValidator(core_schema.any_schema())  # the gateway holds the arguments against the server's schema
_MODELS_FAULT: Final = frozenset({errors.TOOL_ARGUMENTS_INVALID, errors.TOOL_NOT_ALLOWED, errors.TOOL_KEY_CONFLICT})
_SERVERS_FAULT: Final = frozenset(
    {errors.TOOL_UNAVAILABLE, errors.TOOL_TIMED_OUT, errors.TOOL_PROTOCOL, errors.TOOL_FAILED}
)
_READ: Final = ToolDefinition(
    name=READ_TOOL_RESULT,
    description="Read on in a tool's result that was too long to be shown whole.",
    parameters_json_schema={
        "type": "object",
        "properties": {
            "reference": {"type": "string", "description": "As the cut result names it."},
            "offset": {"type": "integer", "minimum": 0, "description": "First character to show."},
        },
        "required": ["reference"],
        "additionalProperties": False,
    },
)


@dataclass
class Toolbox(AbstractToolset[Desk]):
    """The tools that one task of one agent may call."""

    ask: AskGateway
    task_key: str
    stopping: Callable[[], bool]
    cost_usd: Decimal = Decimal(0)
    """Of the calls so far, those of earlier attempts included."""
    _offers: dict[str, ToolOffer] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """One of these per agent."""
        return "mcp"

    async def get_tools(self, ctx: RunContext[Desk]) -> dict[str, ToolsetTool[Desk]]:
        """What the gateway offers now; asked before every turn, since servers come, go and change.

        Raises:
            TurnRefusedError: no gateway answers, or it refuses.
        """
        reply = await self._answer(ListTools())
        if not isinstance(reply, ToolOffers):
            raise _refusal(reply)
        self._offers = {offer.name: offer for offer in reply.tools}
        definitions = [
            ToolDefinition(name=it.name, description=it.description, parameters_json_schema=it.parameters)
            for it in reply.tools
        ]
        if definitions:
            definitions.append(_READ)
        return {
            it.name: ToolsetTool(toolset=self, tool_def=it, max_retries=ctx.max_retries, args_validator=_ANY)
            for it in definitions
        }

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Desk], tool: ToolsetTool[Desk]
    ) -> str:
        """Have a tool called and tell it as an event of the round.

        Raises:
            ModelRetry: the model has to call it in another way.
            ToolFailed: the tool failed.
            TurnRefusedError: no gateway answers; the attempt ends, and the next one asks for the same call.
        """
        del tool
        call_id = str(ctx.tool_call_id)
        with ctx.deps.events.tool(name, call_id) as run:
            if name == READ_TOOL_RESULT:
                text = await self._read(tool_args)
            else:
                offer = self._offers[name]
                reply = await self._answer(
                    CallTool(
                        task_key=self.task_key,
                        tool_call_id=call_id,
                        server=offer.server,
                        tool=offer.tool,
                        arguments=tool_args,
                    )
                )
                run.is_unknown = isinstance(reply, ToolOutcome) and reply.status == "outcome_unknown"
                text = self._said(reply)
            run.result_bytes = len(text.encode("utf-8", "replace"))
        return text

    def _said(self, reply: ToolReply) -> str:
        if isinstance(reply, ToolRefused) and reply.code in _MODELS_FAULT:
            raise ModelRetry(reply.message)
        if isinstance(reply, ToolRefused) and reply.code in _SERVERS_FAULT:
            raise ToolFailed(f"The tool was not called: {reply.message}.")
        if not isinstance(reply, ToolOutcome):
            raise _refusal(reply)
        self.cost_usd += reply.cost_usd
        text = spell_no_marker(reply.text)
        if reply.reference is not None:
            text += (
                f"\n[Cut: {reply.result_bytes:,} bytes in all. {READ_TOOL_RESULT}(reference={reply.reference!r}, "
                f"offset={len(reply.text)}) reads on.]"
            )
        if reply.status == "error":
            raise ToolFailed(text)
        return text

    async def _read(self, arguments: dict[str, Any]) -> str:
        offset = arguments.get("offset") or 0
        request = ReadResult(task_key=self.task_key, reference=str(arguments.get("reference")), offset=offset)
        reply = await self._answer(request)
        if isinstance(reply, ToolRefused):
            raise ModelRetry(reply.message)
        if not isinstance(reply, ToolText):
            raise _refusal(reply)
        text, end = spell_no_marker(reply.text), offset + len(reply.text)
        return text if end >= reply.characters else f"{text}\n[Cut: read on with offset={end} of {reply.characters:,}.]"

    async def _answer(self, request: ListTools | CallTool | ReadResult) -> ToolReply:
        """Ask until it is settled; asking again for a call that is under way waits for it."""
        payload = request.model_dump_json().encode()
        clock = asyncio.get_running_loop().time
        last_heard, pause = clock(), 0.1
        while True:
            if self.stopping():
                raise WorkerStoppingError(
                    "the worker is stopping; the call goes on, and the next attempt is told of it"
                )
            try:
                reply = ToolsReply.model_validate_json(await self.ask(payload)).root
            except MessagingUnavailableError as error:
                if clock() - last_heard > GATEWAY_AWAY_SECONDS:
                    text = f"no gateway has answered for {GATEWAY_AWAY_SECONDS:.0f} s: is the gateway worker running?"
                    raise TurnRefusedError(text, code=error.code, retryable=True) from error
            else:
                if isinstance(reply, ToolPending):
                    last_heard, pause = clock(), 0.1
                    continue
                if not (isinstance(reply, ToolRefused) and reply.retryable):
                    return reply
                if clock() - last_heard > GATEWAY_AWAY_SECONDS:
                    raise _refusal(reply)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)


def _refusal(reply: ToolReply) -> TurnRefusedError:
    if isinstance(reply, ToolRefused):
        return TurnRefusedError(reply.message, code=reply.code, retryable=reply.retryable)
    return TurnRefusedError(f"the gateway answered with {reply.kind}", code=errors.TOOL_PROTOCOL, retryable=False)
