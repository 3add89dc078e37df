"""The agent loop through the LLM proxy to a provider that misbehaves, with real PostgreSQL, NATS and SDK.

Only the transport between agent and proxy is short: `ask` calls `LLMProxy.handle` directly.
"""

import json
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from coatcheck.agents.author import ModelAuthor
from coatcheck.agents.desk import Stores
from coatcheck.agents.loop import StageRunner, Task
from coatcheck.errors import AgentLimitError, AgentOutputError, TurnRefusedError
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.artifacts import ArtifactStore
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.storage.database import Pool, open_pool
from coatcheck.workspace.checks import CheckRunner
from coatcheck.workspace.folder import WorkspaceFolder
from coatcheck.workspace.sandbox import Sandbox
from schemas import errors
from schemas.activities import StageInputRef, StageOrder
from schemas.config import CheckLimits
from schemas.deliverable import DeliverableRef
from schemas.events import AgentEvent
from schemas.notice import Notice
from schemas.roles import DEFAULT_ROLES, Role
from tests.integration.nats_clients import client_as
from tests.providers.bill import calls, paid_twice
from tests.providers.gateway import Gateway, open_gateway, record_task
from tests.providers.openai_server import OpenAIServer
from tests.providers.script import Step, wrong_key

BRIEF = "Find customers by name, also with a typo. [[deliverable:research:agog_features_research:1]]"


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[Pool]:
    """A pool that may also record a run."""
    async with open_pool(postgres_dsn) as pool:
        yield pool


@pytest.fixture
async def gateway(
    pool: Pool, nats_server: NatsStatus, core: NatsClient, provider: OpenAIServer
) -> AsyncIterator[Gateway]:
    """One gateway in front of the provider."""
    assert core
    async with (
        client_as(nats_server, "gateway") as nats,
        open_gateway(pool, nats, provider.base_url) as gateway,
    ):
        yield gateway


@dataclass
class Team:
    """Agents of one run, which share a gateway."""

    gateway: Gateway
    clients: dict[str, NatsClient]
    run_key: str
    folder: Path
    events: list[AgentEvent] = field(default_factory=list)
    """What the agents told."""

    async def run(self, agent: str, *, attempt: int = 1, role: Role | None = None, **order: Any) -> Notice:
        """One attempt at the first round of that agent's stage, by a worker that has just started."""
        role = role or DEFAULT_ROLES[agent]
        author = ModelAuthor(role, ask=partial(self.gateway.proxy.handle, agent), stopping=lambda: False)
        runner = StageRunner(
            role,
            author=author,
            stores=self._stores(agent),
            workspaces=WorkspaceFolder(self.folder),
            send_events=self._hear,
        )
        stage = role.task_type
        stage_order = StageOrder(run_key=self.run_key, feature="search", stage=stage, round=1, **order)
        return await runner.run(Task(stage_order, task_key=f"{self.run_key}/{stage}-1", attempt=attempt))

    async def _hear(self, events: Sequence[AgentEvent]) -> None:
        self.events += events

    def _stores(self, agent: str) -> Stores:
        client = self.clients[agent]
        return Stores(
            deliverables=DeliverableService(client),
            artifacts=ArtifactStore(client),
            checks=CheckRunner(Sandbox(CheckLimits()), self.folder),
        )

    async def content(self, notice: Notice) -> str:
        """The deliverable that a notice names."""
        stored = await DeliverableService(self.clients["roy"]).fetch(ticket(notice))
        return stored.deliverable.content


@pytest.fixture
async def team(gateway: Gateway, pool: Pool, cynthia: NatsClient, roy: NatsClient, tmp_path: Path) -> Team:
    """Cynthia and Roy in a run of the test's own, whose brief and tasks are recorded."""
    run_key = f"feature/search/{uuid.uuid4()}"
    for agent in ("cynthia", "roy"):
        await record_task(pool, agent=agent, stage=DEFAULT_ROLES[agent].task_type, run_key=run_key, brief=BRIEF)
    return Team(gateway, {"cynthia": cynthia, "roy": roy}, run_key, tmp_path)


def ticket(notice: Notice) -> DeliverableRef:
    """The reference in a notice."""
    return DeliverableRef.model_validate(notice.metadata.model_dump())


async def journal(pool: Pool) -> list[dict[str, Any]]:
    """Every journalled message, decoded, in order."""
    rows = await pool.fetch("SELECT content FROM agent_playground_messages ORDER BY message_id")
    return [json.loads(row["content"]) for row in rows]


async def test_a_round_and_its_replay(team: Team, provider: OpenAIServer, pool: Pool) -> None:
    """A second attempt walks through the journal: no call, the same messages, the same deliverable and figures."""
    first = await team.run("cynthia")
    messages = await journal(pool)
    second = await team.run("cynthia", attempt=2)
    assert first.status == "complete"
    assert ticket(second) == ticket(first)
    assert second.metadata.tokens_out == first.metadata.tokens_out > 500
    assert first.metadata.cost_usd is second.metadata.cost_usd is None
    assert await journal(pool) == messages
    assert [message["kind"] for message in messages] == ["request", "response"]
    assert len(calls(provider.bill)) == 1
    assert len(await team.content(first)) == 2048


async def test_the_provider_sees_instructions_and_bodies(team: Team, provider: OpenAIServer, pool: Pool) -> None:
    """Claims are redeemed in every turn's request and never journalled; a marker in the brief stays text."""
    research = ticket(await team.run("cynthia"))
    body = await team.content(await team.run("cynthia"))
    provider.script.add(Step(do="fetch", stage="backend", turn=1, arguments={"stage": "research"}))
    handed = [StageInputRef(stage="research", ref=research)]
    await team.run("roy", inputs=handed)
    first, second = (request["messages"] for request in provider.requests[-2:])
    for messages in (first, second):
        assert messages[0]["role"] == "system"
        assert len(messages[0]["content"]) > 200
        assert BRIEF in messages[1]["content"]
        assert body in messages[1]["content"]
    assert [message["role"] for message in second] == ["system", "user", "assistant", "tool"]
    assert body in second[-1]["content"]
    rows = await pool.fetch(
        "SELECT content FROM agent_playground_messages WHERE agent_id = 'roy' AND role <> 'assistant'"
    )
    assert len(rows) == 2
    for row in rows:
        assert "[[deliverable:research:" in row["content"]
        assert body[:100] not in row["content"]
        assert "customers by name" not in row["content"]


async def test_a_conversation_of_two_turns_is_replayed(team: Team, provider: OpenAIServer, pool: Pool) -> None:
    """Tool calls included: no call is made again, and the usage of both turns is in the notice."""
    research = ticket(await team.run("cynthia"))
    provider.script.add(Step(do="fetch", stage="backend", turn=1, arguments={"stage": "research"}))
    tickets = [StageInputRef(stage="research", ref=research)]
    first = await team.run("roy", inputs=tickets)
    messages = await journal(pool)
    second = await team.run("roy", attempt=2, inputs=tickets)
    assert await journal(pool) == messages
    assert (second.metadata.tokens_in, ticket(second)) == (first.metadata.tokens_in, ticket(first))
    assert len(calls(provider.bill, stage="backend")) == 2
    assert paid_twice(provider.bill) == {}


@pytest.mark.parametrize(
    ("do", "role", "asked_as", "words"),
    [
        ("bad_json", "tool", "tool", "Invalid JSON"),
        ("missing_field", "tool", "tool", "Field required"),
        ("wrong_enum", "tool", "tool", "Input should be"),
        ("text", "system", "user", "<system>Please include your response in a tool call.</system>"),
        ("empty_content", "system", "user", "<system>Please include your response in a tool call.</system>"),
    ],
)
async def test_a_wrong_report_is_asked_for_again(  # noqa: PLR0917
    team: Team, provider: OpenAIServer, pool: Pool, do: Any, role: str, asked_as: str, words: str
) -> None:
    """The model is told what is wrong and gets it right; the journal has it as an error, and replays both turns."""
    provider.script.add(Step(do=do))
    notice = await team.run("cynthia")
    assert notice.status == "complete"
    asked = provider.requests[1]["messages"][-1]
    assert asked["role"] == asked_as
    assert words in asked["content"]
    rows = await pool.fetch("SELECT role, is_error FROM agent_playground_messages ORDER BY message_id")
    journalled = [("user", False), ("assistant", False), (role, True), ("assistant", False)]
    assert [tuple(row) for row in rows] == journalled
    assert ticket(await team.run("cynthia", attempt=2)) == ticket(notice)
    assert len(calls(provider.bill)) == 2


async def test_a_tools_refusal_is_journalled_as_an_error(team: Team, provider: OpenAIServer, pool: Pool) -> None:
    """The agent fetches what nobody has delivered, and is told so."""
    provider.script.add(Step(do="fetch", arguments={"stage": "research"}))
    await team.run("roy")
    rows = await pool.fetch("SELECT role, is_error FROM agent_playground_messages ORDER BY message_id")
    assert [tuple(row) for row in rows][2:] == [("tool", True), ("assistant", False)]
    assert "no stage 'research' is behind your work" in provider.requests[1]["messages"][-1]["content"]


@pytest.mark.parametrize("do", ["bad_json", "missing_field", "wrong_enum", "text", "empty_content"])
async def test_wrong_reports_are_bounded(team: Team, provider: OpenAIServer, do: Any) -> None:
    """One answer and two corrections, then the stage fails for good; trying again pays nothing."""
    provider.script.add(Step(do=do, times=None))
    for attempt in (1, 2):
        with pytest.raises(AgentOutputError) as caught:
            await team.run("cynthia", attempt=attempt)
        assert (caught.value.code, caught.value.retryable) == (errors.AGENT_INVALID_OUTPUT, False)
        assert len(calls(provider.bill)) == 3


async def test_a_rejected_report_does_not_come_back_in_the_correction(
    team: Team, provider: OpenAIServer, pool: Pool
) -> None:
    """The model has it in the conversation; repeating megabytes would not fit into a request."""
    provider.script.add(Step(do="missing_field", report_bytes=9_000_000))
    await team.run("cynthia")
    correction = provider.requests[1]["messages"][-1]
    assert correction["role"] == "tool"
    assert "Field required" in correction["content"]
    assert len(correction["content"]) < 2000
    stored = await pool.fetchval("SELECT max(length(content)) FROM agent_playground_messages WHERE role <> 'assistant'")
    assert stored < 5000


async def test_a_refusal_is_final(team: Team, provider: OpenAIServer) -> None:
    """The content filter would stop the same request again."""
    provider.script.add(Step(do="refusal", times=None))
    with pytest.raises(AgentOutputError, match="ontent filter"):
        await team.run("cynthia")
    assert len(calls(provider.bill)) == 1


async def test_an_endless_reader_is_stopped(team: Team, provider: OpenAIServer) -> None:
    """The role's turns are the limit."""
    provider.script.add(Step(do="fetch", stage="backend", times=None, arguments={"stage": "research"}))
    research = ticket(await team.run("cynthia"))
    patient = DEFAULT_ROLES["roy"].model_copy(update={"max_turns": 3})
    with pytest.raises(AgentLimitError) as caught:
        await team.run("roy", role=patient, inputs=[StageInputRef(stage="research", ref=research)])
    assert (caught.value.code, caught.value.retryable) == (errors.AGENT_LIMIT, False)
    assert len(calls(provider.bill, stage="backend")) == 3


async def test_the_proxys_refusal_reaches_the_activity(team: Team, provider: OpenAIServer) -> None:
    """With its code, and whether to try again."""
    provider.script.add(wrong_key())
    with pytest.raises(TurnRefusedError, match="Incorrect API key") as caught:
        await team.run("cynthia")
    assert (caught.value.turn_code, caught.value.turn_retryable) == (errors.PROVIDER_REJECTED, False)


async def test_a_report_of_11_mb_fails_the_stage(team: Team, provider: OpenAIServer) -> None:
    """Clearly and for good, paid once."""
    provider.script.add(Step(report_bytes=11_000_000, times=None))
    for attempt in (1, 2):
        with pytest.raises(TurnRefusedError, match="at most 10,420,224 fit") as caught:
            await team.run("cynthia", attempt=attempt)
        assert (caught.value.turn_code, caught.value.turn_retryable) == (errors.DELIVERABLE_TOO_LARGE, False)
    assert len(calls(provider.bill)) == 1
