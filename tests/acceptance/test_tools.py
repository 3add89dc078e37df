"""Tools of MCP servers on the command line, and Coatcheck as an MCP server, on a whole stack."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from coatcheck.localstack import LocalStack
from tests.acceptance.program import COATCHECK, Outcome, coatcheck, environment
from tests.tools import counting

Cli = Callable[..., Outcome]

CONFIG = f"""
[mcp.time]
command = ["{sys.executable}", "-m", "mcp_server_time"]
agents = ["cynthia"]
tools = ["get_current_time"]

[mcp.count]
command = ["{sys.executable}", "{counting.__file__}", "ledger"]
agents = ["roy"]
tools = ["*"]
env = ["FORGE_TOKEN"]
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A stack with two MCP servers."""
    folder = tmp_path_factory.mktemp("tools")
    (folder / "coatcheck.toml").write_text(CONFIG)
    env = environment(COATCHECK_SCRIPTED_LATENCY_SECONDS="0.02", FORGE_TOKEN="t0ken")
    with LocalStack(folder / "stack", env=env, config_file=folder / "coatcheck.toml") as running:
        yield running


@pytest.fixture(scope="module")
def cli(stack: LocalStack) -> Cli:
    """Run a command against the stack."""

    def run(*arguments: str, **variables: Any) -> Outcome:
        return coatcheck(*arguments, data_dir=Path(stack.config.data_dir), **variables)

    return run


def test_servers_and_their_tools_are_listed(cli: Cli) -> None:
    """Those that may be called, under which name, by whom, and whether they may be called again."""
    listed = cli("tools", "list")
    assert listed.code == 0, listed.err
    lines = [line.split() for line in listed.out.splitlines()[1:]]
    assert ["time", "up", "get_current_time", "time__get_current_time", "cynthia", "if", "unknown"] in lines
    assert ["count", "up", "count", "count__count", "roy", "never"] in lines
    assert "convert_time" not in listed.out
    found = cli("tools", "list", "--json").json
    assert {health["server"]: health["state"] for health in found["servers"]} == {"time": "up", "count": "up"}


def test_a_tool_is_tried(cli: Cli) -> None:
    """A person calls it; what is wrong is said, with the right exit code."""
    said = cli("tools", "call", "time", "get_current_time", '{"timezone": "Europe/Berlin"}')
    assert (said.code, json.loads(said.out)["timezone"]) == (0, "Europe/Berlin")
    assert json.loads(cli("tools", "call", "count", "secrets").out)["FORGE_TOKEN"] == "t0ken"
    for arguments, code, complaint in (
        (("time", "get_current_time", "{}"), 1, "'timezone' is a required property"),
        (("time", "convert_time", "{}"), 1, "may not call 'convert_time'"),
        (("tme", "get_current_time"), 2, "did you mean 'time'?"),
        (("count", "echo", "[]"), 2, "not a JSON object"),
        (("count", "fail"), 1, "fail failed"),
    ):
        refused = cli("tools", "call", *arguments)
        assert refused.code == code
        assert complaint in refused.err + refused.out


def test_the_doctor_knows_the_tools_and_the_log_is_empty(cli: Cli) -> None:
    """Nobody has called anything in a task; both servers are up, says the status too."""
    findings = {item["check"]: item for item in cli("doctor", "--json").json}
    assert findings["tools"]["verdict"] == "ok"
    assert "time (2 tools)" in findings["tools"]["detail"]
    assert findings["streams"]["verdict"] == "ok"
    assert {it["server"]: it["state"] for it in cli("status", "--json").json["tools"]} == {"time": "up", "count": "up"}
    log = cli("tools", "log", "--json")
    assert (log.code, log.json) == (0, [])


async def test_an_assistant_hands_a_feature_over_and_collects_the_result(stack: LocalStack) -> None:
    """Over stdio: start, follow, decide at a gate, list and read what was delivered."""
    variables = environment(COATCHECK_DATA_DIR=str(stack.config.data_dir))
    server = StdioServerParameters(command=str(COATCHECK), args=["mcp"], env=variables)
    async with Client(server) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {"start_run", "progress", "runs", "deliverables", "fetch", "decide"}
        assert tools["fetch"].annotations is not None
        assert tools["fetch"].annotations.read_only_hint
        request = {"feature": "price-alerts", "brief": "Tell me when a price falls.", "gates": ["backend"]}
        started = await _call(client, "start_run", request)
        assert started["workflow_id"] == "feature/price-alerts"
        again = await client.call_tool("start_run", request)
        assert again.is_error
        assert "already running" in again.content[0].text  # type: ignore[union-attr]
        waiting = await _until(client, "waiting")
        [question] = waiting["waiting"]
        wrong = {"run": "price-alerts", "stage": "backend", "action": "approve", "sha256": "0" * 64, "by": "ada"}
        assert (await client.call_tool("decide", wrong)).is_error
        assert not (await client.call_tool("decide", {**wrong, "sha256": question["sha256"]})).is_error
        [question] = (await _until(client, "waiting", round_=2))["waiting"]  # QA has sent the first round back
        assert not (await client.call_tool("decide", {**wrong, "sha256": question["sha256"]})).is_error
        await _until(client, "completed")
        rows = await _call(client, "deliverables", {"run": "price-alerts"})
        subjects = {row["stage"]: row["subject"] for row in rows["result"]}
        text = (await client.call_tool("fetch", {"subject": subjects["backend"]})).content[0]
        resource = (await client.read_resource(f"coatcheck://deliverables/{subjects['backend']}")).contents[0]
        assert text.text == resource.text  # type: ignore[union-attr]
        of_run = (await client.read_resource("coatcheck://runs/feature/price-alerts")).contents[0]
        assert len(json.loads(of_run.text)) == len(rows["result"])  # type: ignore[union-attr]


async def test_over_http_the_token_says_what_one_may(stack: LocalStack) -> None:
    """Without a known token nothing; with the reading one no tool that changes anything is even offered."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = environment(
        COATCHECK_DATA_DIR=str(stack.config.data_dir), COATCHECK_MCP_TOKEN="all", COATCHECK_MCP_READ_TOKEN="read"
    )
    process = subprocess.Popen(  # noqa: ASYNC220  as a person starts it
        [COATCHECK, "mcp", "--port", str(port)], env=variables, stderr=subprocess.PIPE
    )
    try:
        url = f"http://127.0.0.1:{port}/mcp"
        await _answers(url)
        assert (await _tools_with(url, "read")) & {"start_run", "decide"} == set()
        assert {"start_run", "decide", "progress"} <= await _tools_with(url, "all")
    finally:
        process.send_signal(2)
        assert process.wait(timeout=60) in (0, 130)
        assert process.stderr is not None
        process.stderr.close()


def test_without_a_token_nothing_is_served(cli: Cli) -> None:
    """Misuse, with the remedy."""
    refused = cli("mcp", "--port", "8765")
    assert refused.code == 2
    assert "COATCHECK_MCP_TOKEN" in refused.err


async def _tools_with(url: str, token: str) -> set[str]:
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        return {tool.name for tool in (await client.list_tools()).tools}


async def _answers(url: str) -> None:
    async with httpx2.AsyncClient() as http, asyncio.timeout(120):
        while True:
            try:
                refused = await http.post(url, headers={"Authorization": "Bearer wrong"}, json={})
            except httpx2.TransportError:
                await asyncio.sleep(0.05)
            else:
                assert refused.status_code == 401
                return


async def _until(client: Client, status: str, *, round_: int = 1) -> dict[str, Any]:
    """Follow the run until it has that status and, when it waits, that round is in question."""
    deadline = time.monotonic() + 90
    while True:
        reply = await client.call_tool("progress", {"run": "price-alerts"})
        found: dict[str, Any] = reply.structured_content or {}
        is_so = found.get("status") == status
        if is_so and all(question["round"] == round_ for question in found["waiting"]):
            return found
        assert time.monotonic() < deadline, reply
        await asyncio.sleep(0.1)


async def _call(client: Client, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    reply = await client.call_tool(tool, arguments)
    assert not reply.is_error, reply
    found: dict[str, Any] = reply.structured_content
    return found
