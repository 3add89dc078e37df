"""Calls of tools through the gateway, on real NATS and PostgreSQL, in front of a real process."""

import asyncio
import sys
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from coatcheck.agents.author import ModelAuthor
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.client import NatsClient
from coatcheck.storage import ledger, state
from coatcheck.storage.database import Pool
from coatcheck.storage.tool_calls import tool_call_rows
from schemas import errors
from schemas.activities import RecordInput
from schemas.budget import Budget
from schemas.events import ToolCompleted
from schemas.mcp import McpServer
from schemas.roles import DEFAULT_ROLES
from schemas.workflow_ids import run_key_of
from tests.integration.round_lab import PreparedTurns, RoundLab, submits
from tests.integration.storage_rows import run_row
from tests.integration.tool_lab import ToolLab, http_server, open_lab
from tests.providers.gateway import record_task


@pytest.fixture
async def lab(  # noqa: PLR0917  fixtures
    nats_server: NatsStatus, core: NatsClient, nats: NatsClient, owner: Pool, pool: Pool, tmp_path: Path
) -> AsyncIterator[ToolLab]:
    """Everything but a gateway."""
    async with open_lab(nats_server, core, nats, owner=owner, pool=pool, folder=tmp_path) as lab:
        yield lab


async def test_a_call_is_made_once_and_told_as_often_as_it_is_asked_for(lab: ToolLab) -> None:
    """The same key gives the same outcome, at once and later, and the record says what it was."""
    async with lab.gateway():
        wanted = lab.call("count", key="a")
        answers = await asyncio.gather(*(lab.roy.ask(wanted) for _ in range(5)))
        assert {answer.text for answer in [*answers, await lab.roy.ask(wanted)]} == {"counted a"}
    assert lab.counted() == {"a": 1}
    [row] = await tool_call_rows(lab.pool, agent="roy")
    assert (row.task_key, row.status, row.calls, row.repeatable) == (lab.task_key, "result", 1, False)


async def test_a_call_that_does_not_fit_into_the_budget_is_not_made(lab: ToolLab) -> None:
    """The agent is told what is left, nothing is recorded, and what was made is paid for from the run's account."""
    run_key = run_key_of(lab.task_key)
    row = run_row(10, run_key=run_key, budget=Budget(usd=Decimal("0.03")))
    await state.record(lab.owner, RecordInput(run=row))
    async with lab.gateway(cost_usd="0.02"):
        assert (await lab.roy.ask(lab.call("count", key="a"))).text == "counted a"
        refused = await lab.roy.ask(lab.call("count", key="b"))
    assert (refused.status, refused.code) == ("error", errors.BUDGET_SPENT)
    assert "The tool was not called: the run has $0.01 left" in refused.text
    assert lab.counted() == {"a": 1}
    assert len(await tool_call_rows(lab.pool, agent="roy")) == 1
    assert (await ledger.balance(lab.owner, f"run/{run_key}")).free == 10_000


async def test_an_agents_turn_uses_servers_that_nobody_here_wrote(lab: ToolLab, tmp_path: Path) -> None:
    """The loop of a real round: tools are offered under their server's name, called, told as events, paid."""
    repository = await _repository(tmp_path / "repository")
    here = (sys.executable, "-m")
    common: dict[str, Any] = {"agents": ("roy",), "timeout_seconds": 60}
    others = {
        "time": McpServer(command=(*here, "mcp_server_time"), tools=("get_current_time",), cost_usd="0.01", **common),
        "git": McpServer(command=(*here, "mcp_server_git", "--repository", str(repository)), tools=("*",), **common),
        "files": McpServer(command=(*here, "filesystem_mcp", str(repository)), tools=("write_file",), **common),
    }
    round_lab = RoundLab(lab.server, tmp_path / "rounds", lambda _: lab.roy.nats)
    task = round_lab.task("backend")
    await record_task(lab.owner, agent="roy", stage="backend", run_key=round_lab.run_key)
    model = PreparedTurns(
        [
            [("time__get_current_time", {"timezone": "Europe/Berlin"})],
            [("git__git_log", {"repo_path": str(repository), "max_count": 1}), ("time__convert_time", {})],
            [("files__write_file", {"path": str(repository / "b.txt"), "content": "b"})],
            [("git__git_status", {"repo_path": str(repository)})],
            [("files__write_file", {"path": str(tmp_path / "outside.txt"), "content": "b"})],
            submits(),
        ]
    )
    role = DEFAULT_ROLES["roy"]
    author = ModelAuthor(role, ask=model.ask, stopping=lambda: False, ask_tools=lab.roy.request)
    async with lab.gateway(others=others):
        notice = await round_lab.perform(role, author, task)
    assert "Europe/Berlin" in model.told(2)[0]
    assert "Because it is the first" in model.told(3)[0]
    assert "Unknown tool name: 'time__convert_time'" in model.told(3)[1]  # not on the list
    assert "b.txt" in model.told(5)[0]  # git's server sees what the other one has written
    assert not (tmp_path / "outside.txt").exists()
    offered = {tool["name"] for tool in model.requests[0].parameters["function_tools"]}
    assert {"git__git_log", "git__git_commit", "time__get_current_time", "read_tool_result"} <= offered
    told = [event.payload for event in round_lab.events if isinstance(event, ToolCompleted)]
    assert [(it.tool, it.outcome) for it in told] == [
        ("time__get_current_time", "ok"),
        ("git__git_log", "ok"),
        ("files__write_file", "ok"),
        ("git__git_status", "ok"),
        ("files__write_file", "error"),
    ]
    assert notice.metadata.cost_usd == Decimal("0.01")


async def _repository(folder: Path) -> Path:
    """A git repository with one commit."""
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    identity = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "Because it is the first")):
        process = await asyncio.create_subprocess_exec("git", "-C", str(folder), *command)
        assert await process.wait() == 0
    return folder


async def test_a_server_speaks_streamable_http(lab: ToolLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its secret in a header; a body that is too long is cut off, and the next call is answered."""
    monkeypatch.setenv("HTTP_AUTH", "Bearer t0ken")
    async with http_server() as url:
        common: dict[str, Any] = {"agents": ("roy",), "tools": ("*",), "timeout_seconds": 20}
        others = {
            "http": McpServer(url=url, headers={"Authorization": "HTTP_AUTH"}, max_result_bytes=100_000, **common),
            "no-token": McpServer(url=url, **common),
        }
        async with lab.gateway(others=others):
            assert (await lab.roy.ask(lab.call("repeat", server="http", text="ab", times=2))).text == "abab"
            flood = lab.call("repeat", server="http", text="x", times=2_000_000)
            cut = await lab.roy.ask(flood)
            assert cut.code == errors.TOOL_RESULT_TOO_LARGE
            assert "more than 100,000" in cut.text  # it was never read to its end
            assert (await lab.roy.ask(lab.call("repeat", server="http", text="ab", times=1))).text == "ab"
            refused = await lab.roy.ask(lab.call("repeat", server="no-token", text="x", times=1))
            assert (refused.kind, refused.code) == ("refused", errors.TOOL_UNAVAILABLE)
