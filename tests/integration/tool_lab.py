"""MCP gateways as the gateway worker composes them, on real servers, in front of a server that counts."""

import asyncio
import itertools
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import uvicorn
from mcp.server import MCPServer
from pydantic import SecretStr

from coatcheck.cli.assistance import ByToken
from coatcheck.errors import MessagingUnavailableError
from coatcheck.events.dead_letters import DeadLetter, read_dead_letters
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.streams import ensure_streams
from coatcheck.storage.database import Pool
from coatcheck.storage.journal import LEASE, TurnJournal
from coatcheck.storage.tool_calls import Granted, ToolCallRow, ToolJournal, tool_call_rows
from schemas.config import Config
from schemas.mcp import (
    CallTool,
    ListTools,
    McpServer,
    QueuedCall,
    ReadResult,
    ToolPending,
    ToolReply,
    ToolsReply,
    call_token,
)
from schemas.streams import MCP_REQUESTS, TOOL_STREAMS
from schemas.subjects import tool_request_subject, tools_subject
from tests.integration.nats_clients import client_as
from tests.providers.gateway import record_task
from tests.tools import counting
from workers.core import ensure_tool_queues
from workers.gateway import tools

_numbers = itertools.count(1)


def counting_server(ledger: Path, *hints: str, **options: Any) -> McpServer:
    """The server that counts, for roy."""
    command = (sys.executable, counting.__file__, str(ledger), *hints)
    return McpServer(**{"command": command, "agents": ("roy",), "tools": ("*",), "timeout_seconds": 5, **options})


def counted(ledger: Path) -> Counter[str]:
    """Key → how often it was counted."""
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    return Counter(line.split()[0] for line in lines)


@dataclass
class Agent:
    """An agent's worker, as far as tools are concerned."""

    nats: NatsClient
    name: str

    async def request(self, payload: bytes) -> bytes:
        """One request as it travels."""
        return await self.nats.request(tools_subject(self.name), payload, timeout=8)

    async def ask_once(self, request: CallTool | ListTools | ReadResult) -> ToolReply:
        """One request."""
        return ToolsReply.model_validate_json(await self.request(request.model_dump_json().encode())).root

    async def ask_patiently(self, request: CallTool) -> Any:
        """Ask until it is settled, also while no gateway answers."""
        while True:
            try:
                return await self.ask(request)
            except MessagingUnavailableError:
                await asyncio.sleep(0.05)

    async def ask(self, request: CallTool | ListTools | ReadResult) -> Any:
        """Ask until it is settled."""
        while isinstance(reply := await self.ask_once(request), ToolPending):
            pass
        return reply


@asynccontextmanager
async def open_tools(
    config: Mapping[str, McpServer], *, pool: Pool, nats: NatsClient, lease: timedelta = LEASE
) -> AsyncIterator[TurnJournal]:
    """A gateway's part for tools, which shows that it lives until the block ends."""
    journal = TurnJournal(pool, f"gateway-{uuid.uuid4()}", lease=lease)
    await journal.beat()

    async def beat() -> None:
        while True:
            await asyncio.sleep(lease.total_seconds() / 5)
            await journal.beat()

    beating = asyncio.create_task(beat())
    try:
        async with tools(Config(mcp=dict(config)), journal, pool=pool, nats=nats):
            yield journal
    finally:
        beating.cancel()


async def make_queues(core: NatsClient, config: Mapping[str, McpServer]) -> None:
    """What the core worker makes at its start."""
    await ensure_streams(core, TOOL_STREAMS)
    await ensure_tool_queues(core, Config(mcp=dict(config)))


@dataclass
class ToolLab:
    """A server that counts under a name of its own, and roy, who may call it in a task that runs."""

    server: NatsStatus
    core: NatsClient
    nats: NatsClient
    owner: Pool
    pool: Pool
    roy: Agent
    task_key: str
    ledger: Path
    name: str = field(default_factory=lambda: f"count-{next(_numbers)}")

    @asynccontextmanager
    async def gateway(
        self,
        *hints: str,
        others: Mapping[str, McpServer] | None = None,
        lease: timedelta = LEASE,
        **options: Any,
    ) -> AsyncIterator[TurnJournal]:
        """One gateway, with the counting server and others; any number of them may be open."""
        config = {self.name: counting_server(self.ledger, *hints, **options), **(others or {})}
        await make_queues(self.core, config)
        async with open_tools(config, pool=self.pool, nats=self.nats, lease=lease) as journal:
            yield journal

    def other_server(self) -> McpServer:
        """A second process of the same program, under a name of its own."""
        return counting_server(self.ledger.with_name("other"))

    def call(self, tool: str, *, call_id: str = "", server: str | None = None, **arguments: Any) -> CallTool:
        """A call with an id of its own."""
        return CallTool(
            task_key=self.task_key,
            tool_call_id=call_id or f"call-{next(_numbers)}",
            server=server or self.name,
            tool=tool,
            arguments=arguments,
        )

    def counted(self) -> Counter[str]:
        """Key → how often it was counted."""
        return counted(self.ledger)

    async def until(self, reached: Callable[[list[ToolCallRow]], bool]) -> None:
        """Wait until the record is so."""
        async with asyncio.timeout(20):
            while not reached(await tool_call_rows(self.pool)):
                await asyncio.sleep(0.02)

    async def makers(self) -> list[Any]:
        """How many calls each gateway has made."""
        return await self.pool.fetch("SELECT gateway_id, count(*) AS made FROM tool_calls GROUP BY gateway_id")

    async def most_at_once(self) -> int:
        """Calls under way at the same time, as the record has it."""
        rows = await self.pool.fetch("SELECT started_at, completed_at FROM tool_calls")
        return max(sum(it["started_at"] <= row["started_at"] < it["completed_at"] for it in rows) for row in rows)

    async def begun_by_the_dead(self, call: CallTool, *, repeatable: bool) -> None:
        """What a gateway leaves that died in a call: the intent, and no sign of life."""
        dead = ToolJournal(self.pool, "dead", may_take_over=lambda: False)
        assert isinstance(await dead.claim(call, agent="roy", repeatable=repeatable), Granted)

    async def asked_anew(self, call: CallTool) -> Any:
        """The job comes again, as JetStream would bring it, and the agent asks for its outcome."""
        queued = QueuedCall(agent="roy", call=call, asked_at=datetime.now(UTC))
        await self.nats.publish(
            tool_request_subject(call.server, "roy"),
            queued.model_dump_json().encode(),
            message_id=call_token(call.task_key, call.tool_call_id),
            stream=MCP_REQUESTS.name,
        )
        return await self.roy.ask(call)

    async def dead_letters(self) -> list[DeadLetter]:
        """What was buried."""
        return await read_dead_letters(self.core, latest=100)


@asynccontextmanager
async def open_lab(
    server: NatsStatus, core: NatsClient, nats: NatsClient, *, owner: Pool, pool: Pool, folder: Path
) -> AsyncIterator[ToolLab]:
    """A running task of roy's, and everything but a gateway."""
    task_key = await record_task(owner, agent="roy", stage="backend")
    async with agent_as(server, "roy") as roy:
        yield ToolLab(server, core, nats, owner, pool, roy, task_key, folder / "ledger")


@asynccontextmanager
async def agent_as(server: NatsStatus, name: str) -> AsyncIterator[Agent]:
    """An agent with its own identity."""
    async with client_as(server, name) as client:
        yield Agent(client, name)


@asynccontextmanager
async def http_server(*, port: int = 0, token: str | None = "t0ken") -> AsyncIterator[str]:
    """The URL of a server made with the SDK, behind a token when there is one."""
    server: MCPServer[Any] = MCPServer("http", log_level="WARNING")

    @server.tool()
    def repeat(text: str, times: int) -> str:
        """Say it so often."""
        return text * times

    app = server.streamable_http_app(json_response=True)
    guarded = app if token is None else ByToken({SecretStr(token): app})
    web = uvicorn.Server(uvicorn.Config(guarded, port=port, lifespan="off", log_level="error"))
    async with app.router.lifespan_context(app):
        serving = asyncio.create_task(web.serve())
        while not web.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{web.servers[0].sockets[0].getsockname()[1]}/mcp"
        web.should_exit = True
        await serving
