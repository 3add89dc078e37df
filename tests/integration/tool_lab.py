"""MCP gateways as the gateway worker composes them, on real servers, in front of a server that counts."""

import asyncio
import itertools
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.streams import ensure_streams
from coatcheck.storage.database import Pool
from coatcheck.storage.journal import TurnJournal
from schemas.config import Config
from schemas.mcp import CallTool, ListTools, McpServer, ReadResult, ToolPending, ToolReply, ToolsReply
from schemas.streams import TOOL_STREAMS
from schemas.subjects import tools_subject
from tests.integration.nats_clients import client_as
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

    async def ask(self, request: CallTool | ListTools | ReadResult) -> Any:
        """Ask until it is settled."""
        while isinstance(reply := await self.ask_once(request), ToolPending):
            pass
        return reply


@asynccontextmanager
async def open_tools(
    config: Mapping[str, McpServer], *, pool: Pool, nats: NatsClient, lease: timedelta = timedelta(seconds=6)
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
    async def gateway(self, *hints: str, others: Mapping[str, McpServer] | None = None, **options: Any) -> Any:
        """One gateway, with the counting server and others; any number of them may be open."""
        config = {self.name: counting_server(self.ledger, *hints, **options), **(others or {})}
        await make_queues(self.core, config)
        async with open_tools(config, pool=self.pool, nats=self.nats) as journal:
            yield journal

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


@asynccontextmanager
async def agent_as(server: NatsStatus, name: str) -> AsyncIterator[Agent]:
    """An agent with its own identity."""
    async with client_as(server, name) as client:
        yield Agent(client, name)
