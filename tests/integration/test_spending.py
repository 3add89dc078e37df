"""What model calls took, added up by PostgreSQL from the journal of turns."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coatcheck.storage.database import Pool, open_pool, query
from coatcheck.storage.spending import Dimension, Spending, spending

START = datetime(2026, 11, 1, 23, 30, tzinfo=UTC)
AGENTS = {"research": "cynthia", "critique": "sylvia", "backend": "roy"}


@dataclass(frozen=True)
class Turn:
    """One row of the journal."""

    run: str = "feature/a/1"
    tenant: str = "acme"
    stage: str = "research"
    number: int = 1
    status: str = "done"
    model: str = "openai:m"
    calls: int = 1
    tokens: tuple[int, int, int] = (100, 10, 40)
    """In, out, cached."""
    cost: Decimal | None = Decimal("0.5")
    minutes: int = 0
    error: str | None = None

    @property
    def task_key(self) -> str:
        """Its round."""
        return f"{self.run}/{self.stage}-1"


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[Pool]:
    """A migrated, empty database."""
    async with open_pool(postgres_dsn) as pool:
        yield pool


async def store(pool: Pool, turns: Sequence[Turn]) -> None:
    """Write the rows that these turns would have left, and no others."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("TRUNCATE llm_turns, task_executions, workflows")
        await connection.executemany(
            "INSERT INTO workflows (workflow_id, name, status, metadata) VALUES ($1, $2, 'running', $3)"
            " ON CONFLICT DO NOTHING",
            [(turn.run, turn.run.split("/")[1], {"tenant": turn.tenant}) for turn in turns],
        )
        await connection.executemany(
            "INSERT INTO task_executions (execution_id, workflow_id, agent_id, task_name, status)"
            " VALUES ($1, $2, $3, $4, 'running') ON CONFLICT DO NOTHING",
            [(turn.task_key, turn.run, AGENTS[turn.stage], turn.stage) for turn in turns],
        )
        await connection.executemany(
            "INSERT INTO llm_turns (task_key, turn, agent_id, status, gateway_id, calls, request_sha256, model,"
            " tokens_in, tokens_out, tokens_cached, cost_usd, error_code, started_at, completed_at)"
            " VALUES ($1, $2, $3, $4, 'g', $5, repeat('a', 64), $6, $7, $8, $9, $10, $11, $12, $12)",
            [
                (
                    turn.task_key,
                    turn.number,
                    AGENTS[turn.stage],
                    turn.status,
                    turn.calls,
                    turn.model,
                    *turn.tokens,
                    turn.cost,
                    turn.error,
                    START + timedelta(minutes=turn.minutes),
                )
                for turn in turns
            ],
        )


HAND_MADE = [
    Turn(),
    Turn(number=2, cost=Decimal("0.25"), calls=3, minutes=1),
    Turn(stage="critique", model="anthropic:c", cost=None, minutes=2),
    Turn(
        stage="backend",
        status="failed",
        model="openai:away",
        tokens=(0, 0, 0),
        cost=None,
        calls=2,
        minutes=3,
        error="provider.rejected",
    ),
    Turn(stage="backend", number=2, status="in_flight", tokens=(0, 0, 0), cost=None, minutes=3),
    Turn(run="feature/b/2", tenant="other", tokens=(7, 1, 0), cost=Decimal(2), minutes=60),
    Turn(run="feature/a/10", tenant="other", cost=Decimal(1), minutes=61),
]
"""Three runs of two tenants over midnight; the first has an unpriced turn, failed calls and one under way."""


def told(row: Spending) -> tuple[object, ...]:
    """The numbers of a row."""
    return (row.calls, row.turns, row.tokens_in, row.tokens_out, row.tokens_cached, row.cost_usd, row.unpriced)


async def by(pool: Pool, dimension: Dimension, **filters: object) -> dict[object, tuple[object, ...]]:
    """Value of the dimension → numbers."""
    report = await spending(pool, dimension, **filters)  # type: ignore[arg-type]
    return {row.label[dimension]: told(row) for row in report.rows}


async def test_a_hand_made_set(pool: Pool) -> None:
    """By every dimension, in the order in which things began; unknown where a part is unknown."""
    await store(pool, HAND_MADE)
    first = (8, 3, 300, 30, 120, None, 1)
    second, third = (1, 1, 7, 1, 0, Decimal(2), 0), (1, 1, 100, 10, 40, Decimal(1), 0)
    assert list((await by(pool, Dimension.RUN)).items()) == [
        ("feature/a/1", first),
        ("feature/b/2", second),
        ("feature/a/10", third),
    ]
    assert await by(pool, Dimension.TENANT) == {"acme": first, "other": (2, 2, 107, 11, 40, Decimal(3), 0)}
    assert await by(pool, Dimension.DAY) == {"2026-11-01": first, "2026-11-02": (2, 2, 107, 11, 40, Decimal(3), 0)}
    stages = {
        "research": (6, 4, 307, 31, 120, Decimal("3.75"), 0),
        "critique": (1, 1, 100, 10, 40, None, 1),
        "backend": (3, 0, 0, 0, 0, Decimal(0), 0),
    }
    assert await by(pool, Dimension.STAGE) == stages
    assert await by(pool, Dimension.AGENT) == {AGENTS[stage]: numbers for stage, numbers in stages.items()}
    assert await by(pool, Dimension.MODEL) == {
        "openai:m": (7, 4, 307, 31, 120, Decimal("3.75"), 0),
        "openai:away": (2, 0, 0, 0, 0, Decimal(0), 0),
        "anthropic:c": (1, 1, 100, 10, 40, None, 1),
    }
    total = (await spending(pool, Dimension.RUN)).total
    assert told(total) == (10, 5, 407, 41, 160, None, 1)
    assert total.priced_usd == Decimal("3.75")
    assert total.models == ["anthropic:c", "openai:m"]
    assert (total.first_at, total.last_at) == (START, START + timedelta(minutes=61))


async def test_calls_are_told_one_by_one(pool: Pool) -> None:
    """With what became of them."""
    await store(pool, HAND_MADE)
    report = await spending(pool, Dimension.CALL, run_key="feature/a/1")
    assert len(report.rows) == 5
    assert report.rows[3].label == {
        "task": "feature/a/1/backend-1",
        "turn": 1,
        "agent": "roy",
        "model": "openai:away",
        "status": "failed",
        "error": "provider.rejected",
    }


async def test_filters_leave_nothing_else(pool: Pool) -> None:
    """A run is not the one whose key begins like its own; the total is of what is shown."""
    await store(pool, HAND_MADE)
    assert list(await by(pool, Dimension.RUN, run_key="feature/a/1")) == ["feature/a/1"]
    assert list(await by(pool, Dimension.RUN, tenant="other")) == ["feature/b/2", "feature/a/10"]
    late = START + timedelta(minutes=61)
    assert list(await by(pool, Dimension.RUN, since=late)) == ["feature/a/10"]
    assert (await spending(pool, Dimension.RUN, since=late)).total.cost_usd == Decimal(1)
    nothing = await spending(pool, Dimension.RUN, tenant="nobody")
    assert nothing.rows == []
    assert told(nothing.total) == (0, 0, 0, 0, 0, Decimal(0), 0)


async def test_turns_whose_task_was_removed_still_count(pool: Pool) -> None:
    """They were paid for."""
    await store(pool, HAND_MADE)
    await pool.execute("TRUNCATE task_executions, workflows")
    assert (await spending(pool, Dimension.RUN)).total.calls == 10


async def test_a_tool_that_costs_something_counts(pool: Pool) -> None:
    """By whatever one asks; a tool that costs nothing is no line."""
    await store(pool, [Turn()])
    await pool.executemany(
        "INSERT INTO tool_calls (task_key, tool_call_id, agent_id, server, tool, status, gateway_id, repeatable,"
        " request_sha256, outcome, cost_usd, started_at) VALUES ($1, $2, 'cynthia', $2, 't', 'result', 'g', true,"
        " repeat('a', 64), '{}', $3, $4)",
        [(Turn().task_key, server, cost, START) for server, cost in (("maps", Decimal("0.25")), ("free", Decimal(0)))],
    )
    report = await spending(pool, Dimension.MODEL)
    assert [(row.label["model"], row.cost_usd) for row in report.rows] == [
        ("openai:m", Decimal("0.5")),
        ("tool:maps", Decimal("0.25")),
    ]
    assert (report.total.cost_usd, report.total.calls, report.total.turns) == (Decimal("0.75"), 1, 1)
    [stage] = (await spending(pool, Dimension.STAGE, run_key="feature/a/1", tenant="acme")).rows
    assert (stage.cost_usd, stage.unpriced, stage.models) == (Decimal("0.75"), 0, ["openai:m", "tool:maps"])


async def test_a_command_agents_round_is_unknown_and_not_free(pool: Pool) -> None:
    """It has no turns; whatever it is part of has no known cost. A finished round with turns counts by them alone."""
    await store(pool, HAND_MADE[-2:])
    await pool.execute("UPDATE task_executions SET status = 'completed', output_data = '{\"metadata\": {}}'")
    assert (await spending(pool, Dimension.RUN)).total.cost_usd == Decimal(3)
    await pool.execute(
        "INSERT INTO task_executions (execution_id, workflow_id, agent_id, task_name, status, output_data, started_at)"
        " SELECT workflow_id || '/patch-1', workflow_id, 'codex', 'patch', 'completed', $1::jsonb, $2 FROM workflows"
        " WHERE workflow_id = 'feature/b/2'",
        {"metadata": {"tokens_in": 0}},
        START,
    )
    command = (0, 0, 0, 0, 0, None, 0)
    assert (await by(pool, Dimension.STAGE))["patch"] == (await by(pool, Dimension.AGENT))["codex"] == command
    assert (await by(pool, Dimension.MODEL))["command"] == command
    assert (await by(pool, Dimension.RUN))["feature/b/2"] == (1, 1, 7, 1, 0, None, 0)
    assert (await by(pool, Dimension.RUN))["feature/a/10"] == (1, 1, 100, 10, 40, Decimal(1), 0)
    report = await spending(pool, Dimension.CALL, run_key="feature/b/2")
    assert (report.rows[0].label["task"], report.rows[0].label["status"]) == ("feature/b/2/patch-1", "unmetered")
    assert (report.total.unmetered, report.total.priced_usd) == (1, Decimal(2))


COUNTS = st.integers(0, 2**31 - 1)
TURNS = st.builds(
    Turn,
    run=st.sampled_from(["feature/a/1", "feature/a/10", "feature/b/2"]),
    tenant=st.just("acme"),
    stage=st.sampled_from(list(AGENTS)),
    number=st.integers(1, 6),
    status=st.sampled_from(["done", "done", "failed", "in_flight"]),
    model=st.sampled_from(["openai:m", "anthropic:c"]),
    calls=st.integers(1, 5),
    tokens=st.tuples(COUNTS, COUNTS, COUNTS),
    cost=st.none() | st.integers(0, 10**36).map(lambda digits: Decimal(f"{digits}e-30")),
    minutes=st.integers(0, 3000),
)


@given(st.lists(TURNS, max_size=25, unique_by=lambda turn: (turn.task_key, turn.number)))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_every_way_to_add_up_gives_the_same(pool: Pool, turns: list[Turn]) -> None:
    """The parts of each dimension make its total, all totals are one, and it is the sum that fractions give."""
    turns = [turn if turn.status == "done" else _unfinished(turn) for turn in turns]
    await store(pool, turns)
    finished = [turn for turn in turns if turn.status == "done"]
    costs = [turn.cost for turn in finished]
    is_known = None not in costs
    want = sum(Fraction(value) for value in costs if value is not None)
    for dimension in Dimension:
        report = await spending(pool, dimension)
        total = report.total
        assert Fraction(total.priced_usd) == want == sum(Fraction(row.priced_usd) for row in report.rows)
        assert total.unpriced == costs.count(None) == sum(row.unpriced for row in report.rows)
        assert (total.cost_usd is not None) == is_known == all(row.cost_usd is not None for row in report.rows)
        assert all(row.cost_usd in (None, row.priced_usd) for row in (*report.rows, total))
        assert total.calls == sum(turn.calls for turn in turns) == sum(row.calls for row in report.rows)
        assert total.turns == len(finished) == sum(row.turns for row in report.rows)
        for index, name in enumerate(("tokens_in", "tokens_out", "tokens_cached")):
            assert getattr(total, name) == sum(turn.tokens[index] for turn in turns)
            assert getattr(total, name) == sum(getattr(row, name) for row in report.rows)


def _unfinished(turn: Turn) -> Turn:
    """Only a finished turn has tokens and a cost."""
    return Turn(turn.run, turn.tenant, turn.stage, turn.number, turn.status, turn.model, turn.calls, (0, 0, 0), None)


async def test_reports_since_a_day_do_not_read_everything(pool: Pool) -> None:
    """The index by time serves them once there is much to read."""
    await pool.execute(
        "INSERT INTO llm_turns (task_key, turn, agent_id, status, gateway_id, request_sha256, model, started_at)"
        " SELECT 'r/' || number, 1, 'roy', 'done', 'g', repeat('a', 64), 'm',"
        " $1::timestamptz + number * '1 s'::interval FROM generate_series(1, 60000) AS number",
        START,
    )
    await pool.execute("ANALYZE llm_turns")
    late = START + timedelta(seconds=59_900)
    plan = await pool.fetch("EXPLAIN " + query("spending"), Dimension.DAY, None, None, late)
    assert "llm_turns_started_idx" in "\n".join(row[0] for row in plan)
