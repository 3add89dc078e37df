"""An agent whose money is used up: it is told, hands in what it has in one last small call, and is blocked.

Prices and bill are the provider's own: what was paid is added up from what it answered.
"""

from collections.abc import AsyncIterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.storage import budgets, ledger, state
from coatcheck.storage.database import Pool, open_pool
from schemas.activities import RecordInput
from schemas.budget import Budget
from schemas.config import Price
from schemas.deliverable import Deliverable
from schemas.notice import Notice
from schemas.roles import DEFAULT_ROLES
from tests.integration.nats_clients import client_as
from tests.integration.storage_rows import run_row
from tests.integration.test_llm_loop import Team, ticket
from tests.providers.gateway import MODEL, open_gateway, record_task
from tests.providers.openai_server import OpenAIServer
from tests.providers.script import Step

CAP = Decimal("0.50")
PRICES = {MODEL: Price(input_usd=Decimal(10), output_usd=Decimal(10), as_of=date(2026, 11, 27), source="the test")}
FILE = {"path": "backend/search.py", "content": "print('found')\n" * 700}
"""10 KB: each turn makes the conversation longer by that, and sixty of them would cost $40."""


@pytest.fixture
async def owner(postgres_dsn: str) -> AsyncIterator[Pool]:
    """The core worker's pool; whatever a test did, the books are right after it."""
    async with open_pool(postgres_dsn) as pool:
        yield pool
        assert (await ledger.check(pool)).is_right
        assert await pool.fetchval("SELECT count(*) FROM holds") == 0


@pytest.fixture
async def team(  # noqa: PLR0917
    owner: Pool, nats_server: NatsStatus, core: NatsClient, roy: NatsClient, provider: OpenAIServer, tmp_path: Path
) -> AsyncIterator[Team]:
    """Roy, Sylvia's and Billy's tasks in a run that may spend half a dollar."""
    assert core
    run_key = f"feature/search/{tmp_path.name}"
    for agent in ("roy", "sylvia", "billy"):
        await record_task(owner, agent=agent, stage=DEFAULT_ROLES[agent].task_type, run_key=run_key)
    row = run_row(2, run_key=run_key, budget=Budget(usd=CAP))
    await state.record(owner, RecordInput(run=row))
    async with (
        client_as(nats_server, "gateway") as nats,
        client_as(nats_server, "sylvia") as sylvia,
        client_as(nats_server, "billy") as billy,
        open_gateway(owner, nats, provider.base_url, prices=PRICES) as gateway,
    ):
        yield Team(gateway, {"roy": roy, "sylvia": sylvia, "billy": billy}, run_key, tmp_path)


async def delivered(team: Team, notice: Notice) -> Deliverable:
    """What the notice announces."""
    return (await DeliverableService(team.clients["roy"]).fetch(ticket(notice))).deliverable


async def paid(owner: Pool, team: Team) -> Decimal:
    """By the tokens that the provider has told, in dollars; the same as the run has spent."""
    tokens = await owner.fetchval("SELECT sum(tokens_in + tokens_out) FROM llm_turns")
    cost = Decimal(tokens or 0) * 10 / 1_000_000
    found = await budgets.run_budget(owner, team.run_key)
    assert found is not None
    assert (found.spent, found.held) == (cost * 1_000_000, 0)
    return cost


async def test_half_a_dollar_is_half_a_dollar(team: Team, owner: Pool, provider: OpenAIServer) -> None:
    """A model that would go on for $40 is stopped, and hands in report and file; a second attempt pays nothing."""
    provider.script.add(Step(do="write", arguments=FILE, times=None))
    notice = await team.run("roy")
    assert (notice.status, notice.ready_for_next_stage) == ("blocked", False)
    assert notice.blockers.startswith("budget: the run has $0.")
    made = await delivered(team, notice)
    assert [item.path for item in made.artifacts] == ["search.py"]
    assert made.content.startswith("# backend of search")
    assert Decimal("0.05") < await paid(owner, team) <= CAP
    last, asked = provider.requests[-1], len(provider.requests)
    assert [tool["function"]["name"] for tool in last["tools"]] == ["submit_report"]
    assert "Nothing more may be spent on this task: the run has $0." in last["messages"][-1]["content"]
    again = await team.run("roy", attempt=2)
    assert (ticket(again), again.blockers, len(provider.requests)) == (ticket(notice), notice.blockers, asked)


@pytest.mark.parametrize("last", [{"arguments": {"report": "too short"}}, {"do": "text"}, {"do": "bad_json"}])
async def test_a_last_answer_of_no_use_is_handed_in_all_the_same(
    team: Team, owner: Pool, provider: OpenAIServer, last: dict[str, Any]
) -> None:
    """It is asked for once; then the round hands in what the model had said, and its file."""
    provider.script.add(*[Step(do="write", arguments=FILE, turn=turn) for turn in (1, 2, 3)], Step(turn=4, **last))
    notice = await team.run("roy")
    made = await delivered(team, notice)
    assert notice.blockers.startswith("budget: ")
    assert made.content.startswith("# Partial work")
    assert [item.path for item in made.artifacts] == ["search.py"]
    assert await paid(owner, team) <= CAP
    assert len(provider.requests) == 4


@pytest.mark.parametrize(("agent", "verdict"), [("sylvia", "revise"), ("billy", "fail"), ("roy", None)])
async def test_with_nothing_at_all_left_no_call_is_made(
    team: Team, owner: Pool, provider: OpenAIServer, agent: str, verdict: str | None
) -> None:
    """A stage that begins when the money is gone says so in the form of its kind."""
    row = run_row(9, run_key=team.run_key, budget=Budget(usd=Decimal("0.001")))
    await state.record(owner, RecordInput(run=row))
    notice = await team.run(agent)
    assert (notice.status, notice.metadata.verdict) == ("blocked", verdict)
    assert notice.blockers.startswith("budget: the run has $0.001 left")
    assert "begins with this text" in (await delivered(team, notice)).content
    assert provider.requests == []
