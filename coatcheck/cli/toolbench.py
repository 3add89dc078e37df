"""`tools`: asks a gateway, as the operator whose key is `core`'s, and reads the record of calls."""

import asyncio
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import from_json

from coatcheck.cli.output import columns, cost, emit, emit_json, moment
from coatcheck.cli.request import read_text
from coatcheck.cli.runs import find_record
from coatcheck.cli.session import load_settings, open_database, open_nats
from coatcheck.cli.voice import MisuseError, tell
from coatcheck.config import load_config, nearest
from coatcheck.errors import CoatcheckError, DependencyDownError, MessagingUnavailableError
from coatcheck.messaging.accounts import CORE
from coatcheck.settings import Settings
from coatcheck.storage.tool_calls import ToolCallRow, tool_call_rows
from schemas.mcp import (
    CallTool,
    ListTools,
    ServerHealth,
    ToolOffer,
    ToolOffers,
    ToolOutcome,
    ToolPending,
    ToolRefused,
    ToolReply,
    ToolsReply,
)
from schemas.subjects import tools_subject

REPLY_SECONDS: Final = 8.0
"""A gateway answers or says `pending` within 5 s."""
STDIN: Final = "-"
_OPERATOR: Final = "operator"
"""In place of a task: a person's call belongs to none, and is not recorded."""


class ToolCallError(CoatcheckError):
    """The tool was not called, or failed."""

    code = "tool.call_failed"


async def offers(settings: Settings, *, only_health: bool = False) -> ToolOffers:
    """What a gateway has; waits for servers that are starting.

    Raises:
        DependencyDownError: no gateway answers.
    """
    request = ListTools(only_health=only_health)
    while isinstance(reply := await _ask(settings, request, seconds=REPLY_SECONDS), ToolPending):
        tell("waiting for MCP servers that are starting")
    if isinstance(reply, ToolOffers):
        return reply
    raise _refusal(reply)


async def list_tools(*, as_json: bool, data_dir: Path) -> None:
    """Print servers and tools.

    Raises:
        ToolCallError: a server cannot be reached.
        DependencyDownError: no gateway answers.
    """
    settings = load_settings(data_dir)
    servers = load_config(settings.config_file).mcp
    found = await offers(settings)
    if not servers:
        tell("coatcheck.toml has no MCP server")
        tell("hint: docs/how-to/tools.md has an example of [mcp.<name>]")
    if as_json:
        emit_json(found)
    elif found.servers:
        emit(columns(("server", "state", "tool", "name for models", "agents", "called again"), _rows(found, servers)))
    if missing := [health for health in found.servers if health.state != "up"]:
        raise ToolCallError("; ".join(f"{it.server} is {it.state}: {it.reason}" for it in missing))


def _rows(found: ToolOffers, servers: Any) -> list[list[str]]:
    rows = []
    for health in found.servers:
        agents = ", ".join(servers[health.server].agents) if health.server in servers else ""
        mine: Sequence[ToolOffer | None] = [it for it in found.tools if it.server == health.server] or [None]
        rows += [
            [health.server, health.state, it.tool, it.name, agents, "if unknown" if it.repeatable else "never"]
            if it
            else [health.server, health.state, "", "", agents, ""]
            for it in mine
        ]
    return rows


async def call(server: str, tool: str, arguments: str, *, as_json: bool, data_dir: Path) -> None:
    """Call a tool and print what it says.

    Raises:
        MisuseError: the arguments are no JSON object, or there is no such server.
        ToolCallError: the tool was not called, or failed.
        DependencyDownError: no gateway answers.
    """
    given = _object(read_text(STDIN) if arguments == STDIN else arguments)
    settings = load_settings(data_dir)
    servers = load_config(settings.config_file).mcp
    if server not in servers:
        raise MisuseError(f"there is no MCP server {server!r}{nearest(server, list(servers), others=True)}")
    request = CallTool(task_key=_OPERATOR, tool_call_id=str(uuid.uuid4()), server=server, tool=tool, arguments=given)
    seconds = 2 * servers[server].timeout_seconds + REPLY_SECONDS  # it may have to be started
    reply = await _ask(settings, request, seconds=seconds)
    if not isinstance(reply, ToolOutcome):
        raise _refusal(reply)
    if as_json:
        emit_json(reply)
    else:
        emit(reply.text)
    if reply.status != "result":
        raise ToolCallError(f"{tool} failed")


def _object(text: str) -> dict[str, Any]:
    try:
        given = from_json(text)
    except ValueError as error:
        raise MisuseError(f"the arguments are not JSON: {error}", hint="""'{"text": "hello"}'""") from error
    if not isinstance(given, dict):
        raise MisuseError("the arguments are not a JSON object", hint="""'{"text": "hello"}'""")
    return given


async def log(run: str | None, *, agent: str | None, limit: int, as_json: bool, data_dir: Path) -> None:
    """Print the latest calls, oldest first.

    Raises:
        RunNotFoundError: no such run is recorded.
        DependencyDownError: PostgreSQL does not answer.
    """
    async with open_database(load_settings(data_dir)) as pool:
        run_key = (await find_record(pool, run)).run_key if run is not None else None
        rows = await tool_call_rows(pool, run_key=run_key, agent=agent, limit=limit)
    if as_json:
        emit_json(rows)
        return
    header = ("begun", "task", "agent", "server", "tool", "status", "calls", "bytes", "cost", "error")
    emit(columns(header, [_cells(row) for row in rows]))


def _cells(row: ToolCallRow) -> list[str]:
    return [
        moment(row.created_at),
        row.task_key,
        row.agent,
        row.server,
        row.tool,
        row.status,
        str(row.calls),
        f"{row.result_bytes:,}",
        cost(row.cost_usd),
        row.error_code or "",
    ]


def glance(data_dir: Path) -> list[ServerHealth]:
    """How the configured servers are, for a status that goes on without an answer; empty when there are none."""
    names: list[str] = []
    try:
        settings = load_settings(data_dir)
        names = list(load_config(settings.config_file).mcp)
        return asyncio.run(offers(settings, only_health=True)).servers if names else []
    except CoatcheckError as error:
        return [ServerHealth(server=name, state="failed", reason=str(error)) for name in names]


async def _ask(settings: Settings, request: ListTools | CallTool, *, seconds: float) -> ToolReply:
    async with open_nats(settings, identity=CORE) as client:
        payload = request.model_dump_json().encode()
        try:
            data = await client.request(tools_subject(CORE), payload, timeout=seconds)
        except MessagingUnavailableError as error:
            hint = "`coatcheck up` runs the workers; `coatcheck worker gateway` runs one alone"
            raise DependencyDownError("no gateway serves tools", hint=hint) from error
    try:
        return ToolsReply.model_validate_json(data).root
    except ValidationError as error:
        raise ToolCallError("the gateway's answer cannot be read", hint="is it of another version?") from error


def _refusal(reply: ToolReply) -> ToolCallError:
    return ToolCallError(reply.message if isinstance(reply, ToolRefused) else f"the gateway answered {reply.kind}")
