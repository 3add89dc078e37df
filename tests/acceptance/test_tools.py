"""Tools of MCP servers on the command line, and Coatcheck as an MCP server, on a whole stack."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from coatcheck.localstack import LocalStack
from schemas.tracing import trace_id
from tests.acceptance.program import COATCHECK, Outcome, coatcheck, environment
from tests.providers.script import Step
from tests.telemetry.collector import Collector
from tests.telemetry.tree import attribute
from tests.tools import counting

ROOT = Path(__file__).parents[2]
Cli = Callable[..., Outcome]

CONFIG = f"""
[mcp.time]
command = ["{sys.executable}", "-m", "mcp_server_time"]
agents = ["cynthia"]
tools = ["get_current_time"]
cost_usd = 0.25

[mcp.count]
command = ["{sys.executable}", "{counting.__file__}", "ledger"]
agents = ["roy"]
tools = ["*"]
env = ["FORGE_TOKEN"]

[roles.cynthia]
models = ["openai:gpt-test"]

[prices."openai:gpt-test"]
input_usd = 0
output_usd = 0
as_of = 2026-11-21
source = "the test"
"""
BERLIN = {"timezone": "Europe/Berlin"}
STEPS = [
    Step(do="call", tool="time__get_current_time", arguments=BERLIN, stage="research", turn=1),
    Step(do="call", tool="time__get_current_time", arguments={"timezone": "Mars/Olympus"}, stage="research", turn=2),
]
"""What the researcher asks of tools before it hands in; all others are scripted."""


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a provider whose model calls tools."""
    folder = tmp_path_factory.mktemp("provider")
    script = folder / "script.json"
    script.write_text(json.dumps([step.model_dump() for step in STEPS]))
    command = [sys.executable, "-m", "tests.providers.openai_server", "--bill", str(folder / "bill.jsonl")]
    with subprocess.Popen([*command, "--script", str(script)], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["base_url"]
        process.terminate()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Where spans go."""
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, provider: str, collector: Collector) -> Iterator[LocalStack]:
    """A stack with two MCP servers."""
    folder = tmp_path_factory.mktemp("tools")
    (folder / "coatcheck.toml").write_text(CONFIG)
    env = environment(
        COATCHECK_SCRIPTED_LATENCY_SECONDS="0.02",
        COATCHECK_MODEL="scripted",
        FORGE_TOKEN="t0ken",
        OPENAI_API_KEY="sk-test",
        OPENAI_BASE_URL=provider,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
    )
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


def test_what_a_run_called_is_in_its_log_its_costs_its_events_and_its_trace(cli: Cli, collector: Collector) -> None:
    """Of the run of before: the researcher called a tool twice, the second time in vain, and paid for both."""
    run = cli("progress", "price-alerts", "--json").json["run_key"]
    log = cli("tools", "log", "price-alerts", "--json").json
    said = [(row["agent"], row["server"], row["tool"], row["status"], row["calls"], row["error_code"]) for row in log]
    assert said == [
        ("cynthia", "time", "get_current_time", "result", 1, None),
        ("cynthia", "time", "get_current_time", "error", 1, "tool.failed"),
    ]
    spent = {
        row["label"]["model"]: row["cost_usd"]
        for row in cli("cost", "--run", run, "--by", "model", "--json").json["rows"]
    }
    assert Decimal(spent["tool:time"]) == Decimal("0.50")
    for stages in (cli("why", run, "--json").json["stages"], cli("progress", run, "--json").json["stages"]):
        assert {row["stage"]: Decimal(row["cost_usd"]) for row in stages}["research"] == Decimal("0.50")
    lines = cli("events", run, "--type", "tool.completed", "--json").out.splitlines()
    told = [json.loads(line)["payload"] for line in lines]
    mine = {item["tool_call_id"]: item["outcome"] for item in told if item["tool"] == "time__get_current_time"}
    assert mine == {row["tool_call_id"]: "ok" if row["status"] == "result" else "error" for row in log}
    _wait(lambda: any(span.name == "pipeline" for span in collector.spans()))
    spans = {span.span_id: span for span in collector.spans() if span.trace_id.hex() == trace_id(run)}
    tools = [span for span in spans.values() if attribute(span, "tool.name") == "time__get_current_time"]
    assert {str(attribute(span, "tool.id")) for span in tools} == set(mine)
    for span in tools:
        agent = spans[span.parent_span_id]
        assert (attribute(span, "openinference.span.kind"), span.name) == ("TOOL", "time__get_current_time")
        assert (attribute(agent, "openinference.span.kind"), attribute(agent, "agent.name")) == ("AGENT", "cynthia")
        is_ok = mine[str(attribute(span, "tool.id"))] == "ok"
        assert json.loads(str(attribute(span, "input.value"))) == (BERLIN if is_ok else STEPS[1].arguments)
        assert ("Europe/Berlin" in str(attribute(span, "output.value"))) == is_ok
        assert (span.status.code == Status.STATUS_CODE_ERROR) != is_ok


@pytest.fixture(scope="module")
def url(stack: LocalStack) -> Iterator[str]:
    """Where `coatcheck mcp` serves HTTP, with a token for everything and one for reading."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = environment(
        COATCHECK_DATA_DIR=str(stack.config.data_dir), COATCHECK_MCP_TOKEN="all", COATCHECK_MCP_READ_TOKEN="read"
    )
    with subprocess.Popen([COATCHECK, "mcp", "--port", str(port)], env=variables, stderr=subprocess.PIPE) as process:
        found = f"http://127.0.0.1:{port}/mcp"
        _wait(lambda: _answers(found))
        yield found
        process.send_signal(2)
        assert process.wait(timeout=60) in (0, 130)


async def test_over_http_the_token_says_what_one_may(url: str, cli: Cli) -> None:
    """With the reading one no tool that changes anything is offered, nor carried out when it is named all the same."""
    assert {"start_run", "decide", "progress"} <= await _tools_with(url, "all")
    assert (await _tools_with(url, "read")) & {"start_run", "decide"} == set()
    before = cli("runs", "--json").json
    async with _client(url, "read") as client:
        for tool in ("start_run", "decide"):
            refused = await client.call_tool(tool, {"feature": "forged", "brief": "x"})
            assert refused.is_error
            assert "Unknown tool" in refused.content[0].text  # type: ignore[union-attr]
    async with _client(url, "all") as client:
        for tool, arguments in (
            ("start_run", {"feature": "../../etc", "brief": "x"}),
            ("start_run", {"feature": "x", "brief": "x" * 2_000_000}),
            ("start_run", {"feature": "x", "brief": "x", "gates": ["no-such-stage"]}),
            ("start_run", {"feature": "x", "brief": "x", "pipeline": "no-such-pipeline"}),
            ("decide", {"run": "price-alerts", "stage": "qa", "action": "explode", "sha256": "0", "by": "ada"}),
            ("progress", {"run": "' OR 1=1 --"}),
            ("fetch", {"subject": "agog.deliverables.>"}),
            ("fetch", {"subject": "$JS.API.STREAM.DELETE.roy"}),
            ("runs", {"limit": -1}),
        ):
            assert (await client.call_tool(tool, arguments)).is_error, (tool, arguments)
    assert cli("runs", "--json").json == before


async def test_over_http_nonsense_is_refused_and_harms_nobody(url: str) -> None:
    """Without a known token nothing; from another site's page nothing; what is no request is told so."""
    may = {"Authorization": "Bearer all", "Accept": "application/json, text/event-stream"}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    place = urlsplit(url)
    async with AsyncExitStack() as stack:
        for _ in range(30):
            idle = stack.enter_context(socket.create_connection((place.hostname, place.port)))
            idle.send(b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1")  # and never anything more
        http = await stack.enter_async_context(httpx2.AsyncClient(timeout=20))
        for said in ("", "all", "Bearer", "Bearer wrong", "Basic all", "Bearer al", "Bearer allall", "Bearer ä"):
            answer = await http.post(url, headers=[(b"Authorization", said.encode())], json=call)
            assert answer.status_code == 401, said
        assert (await http.post(f"{url}?token=all", json=call)).status_code == 401
        for headers, body, status in (
            ({"Host": "evil.example"}, json.dumps(call), 421),
            ({"Origin": "http://evil.example"}, json.dumps(call), 403),
            ({"Content-Type": "text/plain"}, json.dumps(call), 400),
            ({}, "this is no JSON", 400),
            ({}, "[" * 100_000, 400),
            ({}, '{"jsonrpc": "2.0", "id": 1}', 400),
            ({}, "x" * 5_000_000, 413),
            ({"Mcp-Session-Id": "none-of-yours"}, json.dumps(call), 404),
        ):
            answer = await http.post(url, headers={"Content-Type": "application/json"} | may | headers, content=body)
            assert answer.status_code == status, (headers, body[:80], answer.text[:200])
        assert (await http.get(url.removesuffix("mcp"), headers=may)).status_code == 404
        assert "progress" in await _tools_with(url, "read")


def test_what_is_not_well_is_said(stack: LocalStack, cli: Cli) -> None:
    """A server that has died, until it is needed again; then a gateway that is not there: neither hangs."""
    assert cli("tools", "call", "count", "die").code == 1
    [health] = [it for it in cli("status", "--json").json["tools"] if it["server"] == "count"]
    assert (health["state"], "ended" in health["reason"]) == ("failed", True)
    assert _finding(cli, "tools")["verdict"] == "ok"  # it asked for its tools, so it was started again
    stack.stop_member("gateway")
    try:
        assert {it["reason"] for it in cli("status", "--json").json["tools"]} == {"no gateway serves tools"}
        found = _finding(cli, "tools")
        assert (found["verdict"], "coatcheck worker gateway" in found["remedy"]) == ("down", True)
        refused = cli("tools", "call", "count", "echo", '{"text": "x"}')
        assert (refused.code, "no gateway serves tools" in refused.err) == (3, True)
    finally:
        stack.start_member("gateway")


def _finding(cli: Cli, check: str) -> dict[str, Any]:
    return next(item for item in cli("doctor", "--json").json if item["check"] == check)


def test_without_a_token_nothing_is_served(cli: Cli) -> None:
    """Misuse, with the remedy."""
    for variables in ({}, {"COATCHECK_MCP_TOKEN": ""}):  # an empty one would be everybody's
        refused = cli("mcp", "--port", "8765", **variables)
        assert refused.code == 2
        assert "COATCHECK_MCP_TOKEN" in refused.err


def _wait(is_so: Callable[[], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@asynccontextmanager
async def _client(url: str, token: str) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client


async def _tools_with(url: str, token: str) -> set[str]:
    async with _client(url, token) as client:
        return {tool.name for tool in (await client.list_tools()).tools}


def _answers(url: str) -> bool:
    try:
        return httpx2.post(url, json={}).status_code == 401
    except httpx2.TransportError:
        return False


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
