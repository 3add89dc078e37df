"""`ToolServer`: one MCP server as this gateway has it: started when it is first needed, and again when it has ended.

Owns the session, the list of tools with its changes and the share of the rate limit. The session lives in
a task of its own, since the SDK's contexts must be left by the task that entered them.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Literal, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from mcp import Client, MCPError
from mcp.client.subscriptions import ListenNotSupportedError
from mcp_types import CallToolResult, Implementation, TextContent, Tool, ToolListChangedNotification

from coatcheck.errors import ToolServerError
from coatcheck.gateway.breaker_board import BreakerBoard
from coatcheck.gateway.limits import TokenBucket
from coatcheck.gateway.tools import transports
from coatcheck.gateway.tools.transports import Trouble
from coatcheck.messaging.client import NatsClient
from coatcheck.redaction import redacted
from schemas import errors
from schemas.agent_state import SERVER_PREFIX
from schemas.config import ProviderLimits
from schemas.mcp import McpServer, ServerHealth, ToolOffer, offered_name

WIRE_FACTOR: Final = 2
"""A result's text grows when it is written as JSON; one that more than doubles is refused though it would fit."""
MAX_PAGES: Final = 50
"""Of a list of tools; a server that never ends its list would keep us for ever."""
MAX_REASON: Final = 500
_ANSWERS: Final = frozenset({errors.TOOL_RESULT_TOO_LARGE, errors.TOOL_FAILED})
"""Errors that only a server which is well can cause."""
_CLIENT: Final = Implementation(name="coatcheck", version="1")

_log = logging.getLogger(__name__)


class ToolServer:
    """One server, for one process.

    Args:
        name: Its name in `coatcheck.toml`.
        config: How to reach it.
        environment: Of this process; the server sees what its `env` and `headers` name.
        breakers: Where its breaker is, under its name.
    """

    def __init__(self, name: str, config: McpServer, *, environment: Mapping[str, str], breakers: BreakerBoard) -> None:
        self.name = name
        self.config = config
        self._environment = environment
        self._breakers = breakers
        self._lock = asyncio.Lock()
        self._session: asyncio.Task[None] | None = None
        self._client: Client | None = None
        self._closing = asyncio.Event()
        self._trouble = Trouble()
        self._tools: dict[str, Tool] | None = None
        self._in_flight = 0
        self._last_error = ""
        per_minute = config.requests_per_minute
        self._bucket = TokenBucket(per_minute, now=time.monotonic()) if per_minute else None

    # --- what it has ------------------------------------------------------------------------------------------------

    async def tools(self) -> Mapping[str, Tool]:
        """Its tools by name, as of its latest notice of a change; the server is started when need be.

        Raises:
            ToolServerError: it cannot be started, does not tell, or is not asked while its breaker is open.
        """
        if self._tools is None:
            async with self._asking():
                self._tools = await self._listed()
        return self._tools

    async def _listed(self) -> dict[str, Tool]:
        client = await self._connected()
        found: dict[str, Tool] = {}
        cursor: str | None = None
        with self._answering(reached=False):
            async with asyncio.timeout(self.config.timeout_seconds):
                for _ in range(MAX_PAGES):
                    page = await client.list_tools(cursor=cursor)
                    found |= {tool.name: tool for tool in page.tools}
                    if (cursor := page.next_cursor) is None:
                        break
        return found

    async def offers(self, *, only_if_up: bool = False) -> list[ToolOffer]:
        """The tools that may be called, in the order of their names; raises as `tools` does.

        Args:
            only_if_up: Start a server that has ended, where its last list would do for agents.
        """
        if only_if_up and self._client is None:
            self._tools = None
        found = await self.tools()
        return [
            ToolOffer(
                name=offered_name(self.name, name),
                server=self.name,
                tool=name,
                description=found[name].description or "",
                parameters=found[name].input_schema,
                repeatable=self.repeatable(found[name]),
            )
            for name in sorted(found)
            if self.config.allows(name)
        ]

    def repeatable(self, tool: Tool) -> bool:
        """Whether the tool may be called again when nobody knows how a call ended."""
        hints = tool.annotations
        hinted = hints is not None and bool(hints.read_only_hint or hints.idempotent_hint)
        return self.config.repeatable(tool.name, hinted=hinted)

    async def check(self, tool: str, arguments: Mapping[str, Any]) -> Tool:
        """Hold a call against what the server has.

        Returns:
            The tool.

        Raises:
            ToolServerError: there is no such tool, the arguments break its schema, or the server does not tell.
        """
        known = await self.tools()
        if tool not in known:
            message = f"{self.name} has no tool {tool!r}; it has {', '.join(sorted(known))}"
            raise ToolServerError(message[:MAX_REASON], code=errors.TOOL_NOT_ALLOWED, reached=False)
        try:
            broken = next(Draft202012Validator(known[tool].input_schema).iter_errors(dict(arguments)), None)
        except (SchemaError, RecursionError) as error:
            message = f"the schema of {self.name}'s tool {tool!r} is broken: {type(error).__name__}"
            raise ToolServerError(message, code=errors.TOOL_PROTOCOL, reached=False) from error
        if broken is not None:
            place = "".join(f"[{part!r}]" for part in broken.absolute_path)
            message = f"the arguments{place} do not fit {self.name}'s tool {tool!r}: {broken.message}"
            raise ToolServerError(message[:MAX_REASON], code=errors.TOOL_ARGUMENTS_INVALID, reached=False)
        return known[tool]

    def health(self) -> ServerHealth:
        """How it is."""
        state: Literal["idle", "up", "failed", "open"] = "idle"
        breaker = self._breakers.state(self.name)
        if not breaker.closed():
            state = "open"
        elif self._client is not None:
            state = "up"
        elif self._last_error:
            state = "failed"
        reason = "" if state in ("idle", "up") else breaker.reason or self._last_error
        return ServerHealth(
            server=self.name, state=state, reason=reason, tools=len(self._tools or ()), in_flight=self._in_flight
        )

    # --- calls ------------------------------------------------------------------------------------------------------

    async def wait_turn(self, gateways: int) -> None:
        """Wait until the rate limit has room, of which this gateway has its share."""
        if self._bucket is None or self.config.requests_per_minute is None:
            return
        self._bucket.set_rate(self.config.requests_per_minute / max(gateways, 1), now=time.monotonic())
        while (seconds := self._bucket.wait_seconds(1, now=time.monotonic())) > 0:  # noqa: ASYNC110  others take, too
            await asyncio.sleep(seconds)
        self._bucket.take(1, now=time.monotonic())

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> CallToolResult:
        """Call a tool once.

        Raises:
            ToolServerError: no usable answer; it says whether the server may have been given the call.
        """
        async with self._asking():
            client = await self._connected()
            with self._answering(reached=True):
                async with asyncio.timeout(self.config.timeout_seconds):
                    return await client.call_tool(tool, dict(arguments))

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        """Tell the breaker how it ended; raises when it is open."""
        began = await self._begin()
        self._in_flight += 1
        try:
            yield
        except ToolServerError as error:
            if error.tool_code in _ANSWERS:
                await self._breakers.succeed(self.name, began=began)
            else:
                await self._breakers.fail(self.name, began=began, reason=str(error))
            raise
        finally:
            self._in_flight -= 1
        await self._breakers.succeed(self.name, began=began)

    async def _begin(self) -> float:
        """When it begins, by the breakers' clock; while the breaker is open, one call may try again."""
        if self._breakers.state(self.name).closed():
            return self._breakers.now()
        taken = await self._breakers.take_probe(self.name)
        if taken is None:
            reason = self._breakers.state(self.name).reason
            message = f"{self.name} is not asked for now, since its last calls failed: {reason}"
            raise ToolServerError(message, code=errors.TOOL_UNAVAILABLE, reached=False)
        return taken

    # --- the session ------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """End the session, and a server that we have started."""
        if self._session is not None:
            self._closing.set()
            await asyncio.wait({self._session})

    async def _connected(self) -> Client:
        async with self._lock:
            if self._client is None:
                await self.close()  # what is left of the last one
                self._closing, self._trouble, self._tools = asyncio.Event(), Trouble(), None
                ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
                self._session = asyncio.create_task(self._hold(ready), name=f"mcp-{self.name}")
                try:
                    async with asyncio.timeout(self.config.timeout_seconds):
                        self._client = await asyncio.shield(ready)
                except TimeoutError:
                    self._session.cancel()
                    raise self._unavailable("it did not answer in time") from None
                self._last_error = ""
            return self._client

    async def _hold(self, ready: "asyncio.Future[Client]") -> None:
        """Be connected until the session is closed or broken."""
        try:
            async with Client(self._transport(), message_handler=self._hear, client_info=_CLIENT, cache=None) as client:
                ready.set_result(client)
                listening = asyncio.create_task(self._listen(client))
                await self._closing.wait()
                listening.cancel()
        except Exception as error:  # noqa: BLE001  whatever a foreign program makes of a connection
            if not ready.done():
                ready.set_exception(self._unavailable(_deepest(error)))
                ready.exception()
        finally:
            self._client = None

    def _transport(self) -> AbstractAsyncContextManager[Any]:
        limit = WIRE_FACTOR * self.config.max_result_bytes
        if self.config.url is not None:
            headers = {header: self._secret(name) for header, name in self.config.headers.items()}
            timeout = self.config.timeout_seconds
            return transports.http(
                self.config.url, headers=headers, timeout_seconds=timeout, max_body_bytes=limit, trouble=self._trouble
            )
        visible = {name: value for name in transports.INHERITED if (value := self._environment.get(name)) is not None}
        environment = visible | {name: self._secret(name) for name in self.config.env}
        return transports.stdio(
            self.config.command, environment=environment, max_line_bytes=limit, trouble=self._trouble
        )

    def _secret(self, name: str) -> str:
        if name not in self._environment:
            raise LookupError(f"the gateway's environment has no {name}")
        return self._environment[name]

    async def _hear(self, message: object) -> None:
        """A server of the protocol's earlier versions tells that its tools have changed."""
        if isinstance(message, ToolListChangedNotification):
            self._tools = None

    async def _listen(self, client: Client) -> None:
        """The same, of the protocol's present version."""
        with contextlib.suppress(ListenNotSupportedError, MCPError, RuntimeError):
            async with client.listen(tools_list_changed=True) as changes:
                async for _ in changes:
                    self._tools = None

    @contextlib.contextmanager
    def _answering(self, *, reached: bool) -> Any:
        """Turn what the SDK raises into our error; a connection that is of no use any more is ended.

        Args:
            reached: Whether the server may have done something by then.
        """
        try:
            yield
        except TimeoutError:
            text = f"{self.name} did not answer within {self.config.timeout_seconds:g} s"
            raise self._error(self._with_trouble(text), errors.TOOL_TIMED_OUT, reached=reached) from None
        except MCPError as error:
            if self._trouble.reason or "onnection closed" in str(error):
                self._closing.set()
                self._client = None
                if "more than a result" in self._trouble.reason:
                    raise self._error(self._too_large(), errors.TOOL_RESULT_TOO_LARGE, reached=reached) from error
                text = self._with_trouble(f"{self.name} ended the connection")
                raise self._error(text, errors.TOOL_PROTOCOL, reached=reached) from error
            raise self._error(f"{self.name}: {error}", errors.TOOL_FAILED, reached=reached) from error
        except Exception as error:
            text = f"{self.name} answered with what is not the protocol's: {_deepest(error)}"
            raise self._error(text, errors.TOOL_PROTOCOL, reached=reached) from error

    def _error(self, message: str, code: str, *, reached: bool) -> ToolServerError:
        self._last_error = redacted(message)[:MAX_REASON]
        return ToolServerError(self._last_error, code=code, reached=reached)

    def _unavailable(self, reason: str) -> ToolServerError:
        text = self._with_trouble(f"{self.name} cannot be reached: {reason}")
        return self._error(text, errors.TOOL_UNAVAILABLE, reached=False)

    def _with_trouble(self, text: str) -> str:
        return f"{text}; {self._trouble.reason}" if self._trouble.reason else text

    def _too_large(self) -> str:
        return f"{self.name} answered with more than {self.config.max_result_bytes:,} bytes"


@asynccontextmanager
async def open_servers(
    configured: Mapping[str, McpServer], environment: Mapping[str, str], *, nats: NatsClient | None = None
) -> AsyncIterator[Mapping[str, ToolServer]]:
    """The servers of a configuration; those that were started end with the block.

    Args:
        configured: Name → server.
        environment: Of this process.
        nats: Through which gateways share the breakers of servers with a `url`. One that is a command is a process of
            each gateway's own, and so is its breaker.
    """
    limits = {
        name: ProviderLimits(failures_to_open=it.failures_to_open, open_seconds=it.open_seconds)
        for name, it in configured.items()
    }
    async with (
        BreakerBoard(nats, limits, prefix=SERVER_PREFIX) as shared,
        BreakerBoard(None, limits, prefix=SERVER_PREFIX) as own,
    ):
        servers = {
            name: ToolServer(name, config, environment=environment, breakers=shared if config.url else own)
            for name, config in configured.items()
        }
        await asyncio.gather(*(shared.load(name) for name, config in configured.items() if config.url))
        try:
            yield servers
        finally:
            await asyncio.gather(*(server.close() for server in servers.values()))


def as_text(result: CallToolResult) -> str:
    """A result as a model reads it: its texts; anything else as JSON, so that nothing is lost."""
    parts = [
        block.text if isinstance(block, TextContent) else block.model_dump_json(by_alias=True, exclude_none=True)
        for block in result.content
    ]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    return "\n".join(parts).encode("utf-8", "replace").decode()


def _deepest(error: BaseException) -> str:
    """The reason inside groups of exceptions, which task groups make of each one."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseException", error.exceptions[0])
    return str(error) or type(error).__name__
