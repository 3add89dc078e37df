"""Rows of runs: repeated, late and shuffled steps leave the same tables, and the reads give them back."""

import itertools
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from coatcheck.errors import CoatcheckError
from coatcheck.storage import state
from coatcheck.storage.database import Pool, open_pool
from schemas.activities import RecordInput
from tests.integration.storage_rows import NOTICE, RUN_KEY, START, STEPS, TASK_KEY, completed_task, run_row, task_row


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[Pool]:
    """A pool on an empty, migrated database."""
    async with open_pool(postgres_dsn) as pool:
        yield pool


async def tables(pool: Pool, *, without: tuple[str, ...] = ()) -> dict[str, list[dict[str, Any]]]:
    """Every row of the four tables."""
    names = {"workflows": 1, "task_executions": 1, "events": 1, "agent_playground_messages": 1}
    content = {}
    for name, key in names.items():
        rows = [dict(row) for row in await pool.fetch(f"SELECT * FROM {name} ORDER BY {key}")]
        content[name] = [{column: row[column] for column in row if column not in without} for row in rows]
    return content


async def say(pool: Pool, turn: int, role: str, content: str) -> None:
    """One message of the research task's conversation."""
    await pool.execute(
        "INSERT INTO agent_playground_messages (message_id, instance_id, role, content) VALUES ($1, $2, $3, $4)",
        *(f"{TASK_KEY}/{turn:03d}/{int(role == 'assistant'):02d}", TASK_KEY, role, content),
    )


async def test_rows_have_the_declared_columns(pool: Pool) -> None:
    """Every fact of a step is in the column that the storage architecture gives it."""
    for step in STEPS:
        await state.record(pool, step)
    [workflow] = (await tables(pool))["workflows"]
    assert workflow["name"] == "customer-search"
    assert workflow["workflow_type"] == "FeaturePipeline"
    assert workflow["description"] == "Find customers by name."
    assert (workflow["status"], workflow["error"], workflow["error_count"]) == ("failed", "the critique failed", 1)
    assert workflow["metadata"] == {
        "temporal_workflow_id": "feature/customer-search",
        "namespace": "default",
        "feature": "customer-search",
        "tenant": "default",
    }
    [task] = (await tables(pool))["task_executions"]
    assert task["workflow_id"] == RUN_KEY
    assert (task["agent_id"], task["task_name"], task["task_type"]) == ("cynthia", "research", "research")
    assert (task["execution_time_ms"], task["retry_count"]) == (90_000, 1)
    assert task["output_data"] == NOTICE


async def test_a_repeated_step_changes_nothing(pool: Pool) -> None:
    """After each step, recording it again, or any earlier one, leaves every table as it was."""
    await say(pool, 1, "assistant", "the whole report")
    for number, step in enumerate(STEPS, start=1):
        await state.record(pool, step)
        before = await tables(pool)
        for repeated in STEPS[:number]:
            await state.record(pool, repeated)
        assert await tables(pool) == before


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
async def test_steps_out_of_order_keep_the_newest(pool: Pool, order: tuple[int, ...]) -> None:
    """In whatever order three steps arrive, the rows are those of the right order."""
    for number in order:
        await state.record(pool, STEPS[number])
    [workflow] = (await tables(pool))["workflows"]
    assert (workflow["state_data"], workflow["completed_steps"]) == ({"revision": 3}, 1)
    assert workflow["current_step"] == "critique"
    assert workflow["description"] == "Find customers by name."
    [task] = await state.tasks(pool, RUN_KEY)
    assert (task.status, task.output_data, task.execution_time_ms) == ("completed", NOTICE, 90_000)


async def test_a_step_made_anew_under_its_revision_counts(pool: Pool) -> None:
    """The worker died after the commit and before Temporal knew; the step now says more than it did."""
    await state.record(pool, RecordInput(run=run_row(2), tasks=[task_row("running")]))
    await state.record(pool, RecordInput(run=run_row(2, status="cancelled"), tasks=[task_row("cancelled")]))
    run = await state.find_run(pool, RUN_KEY)
    assert run is not None
    assert run.status == "cancelled"
    assert [task.status for task in await state.tasks(pool, RUN_KEY)] == ["cancelled"]


async def test_a_completed_task_stays_completed_and_null_erases_nothing(pool: Pool) -> None:
    """A later step may neither reopen a finished round nor blank what an earlier one wrote."""
    await state.record(pool, RecordInput(run=run_row(1), tasks=[task_row("failed", error="a first try")]))
    await state.record(pool, RecordInput(run=run_row(2), tasks=[task_row("running")]))
    assert [(task.status, task.error) for task in await state.tasks(pool, RUN_KEY)] == [("running", "a first try")]
    await state.record(pool, RecordInput(run=run_row(3), tasks=[completed_task()]))
    await state.record(pool, RecordInput(run=run_row(4), tasks=[task_row("running")]))
    [task] = await state.tasks(pool, RUN_KEY)
    assert (task.status, task.output_data, task.retry_count) == ("completed", NOTICE, 1)


@pytest.mark.parametrize("ended", ["failed", "cancelled"])
async def test_after_a_reset_a_round_runs_again(pool: Pool, ended: str) -> None:
    """Its row says so with the next revision, and not when the end arrives late: the LLM proxy goes by the row."""
    end = RecordInput(run=run_row(2, status=ended), tasks=[task_row(ended, completed_at=START)])
    await state.record(pool, end)
    await state.record(pool, RecordInput(run=run_row(1), tasks=[task_row("running")]))
    assert [task.status for task in await state.tasks(pool, RUN_KEY)] == [ended]
    await state.record(pool, RecordInput(run=run_row(3), tasks=[task_row("running")]))
    await state.record(pool, end)
    assert [task.status for task in await state.tasks(pool, RUN_KEY)] == ["running"]
    run = await state.find_run(pool, RUN_KEY)
    assert run is not None
    assert run.status == "running"


async def test_completion_compacts_the_last_answer_only(pool: Pool) -> None:
    """The report is on its stream, so the conversation keeps a ticket in its place; the earlier turns stay."""
    await say(pool, 1, "assistant", "a tool call")
    await say(pool, 2, "tool", "a result")
    await say(pool, 2, "assistant", "r" * 100_000)
    await state.record(pool, STEPS[1])
    assert (await tables(pool))["agent_playground_messages"][-1]["content"] == "r" * 100_000
    await state.record(pool, STEPS[2])
    contents = [row["content"] for row in (await tables(pool))["agent_playground_messages"]]
    assert contents[:2] == ["a tool call", "a result"]
    ticket = {key: NOTICE["metadata"][key] for key in ("stream", "sequence", "sha256", "bytes")}
    assert await pool.fetchval("SELECT $1::text::jsonb", contents[2]) == {"deliverable": ticket}


async def test_a_step_is_all_or_nothing(pool: Pool) -> None:
    """A step with a row that the schema refuses leaves no trace of its other rows."""
    with pytest.raises(asyncpg.CheckViolationError):
        await state.record(pool, RecordInput(run=run_row(1), tasks=[task_row("dreaming")]))
    assert not any((await tables(pool)).values())


async def test_text_that_postgresql_cannot_hold_becomes_visible(pool: Pool) -> None:
    """NUL becomes U+2400 and a lone surrogate U+FFFD; an escaped backslash before `u0000` is left alone."""
    brief = "nul \0, escaped \\u0000, both \\\0, surrogate \ud800"
    run = run_row(1, brief=brief, error=brief, step_results={"research": {"summary": brief}})
    await state.record(pool, RecordInput(run=run))
    stored = "nul \u2400, escaped \\u0000, both \\\u2400, surrogate \ufffd"
    assert await state.read_brief(pool, RUN_KEY) == stored
    found = await state.find_run(pool, RUN_KEY)
    assert found is not None
    assert (found.error, found.step_results) == (stored, {"research": {"summary": stored}})


async def test_a_run_without_a_first_step_has_no_brief(pool: Pool) -> None:
    """Asking for it is an error and not an empty brief."""
    with pytest.raises(CoatcheckError, match="no brief is recorded"):
        await state.read_brief(pool, RUN_KEY)


async def test_runs_are_found_by_key_and_by_workflow_id(pool: Pool) -> None:
    """A Temporal workflow id alone means its latest run."""
    later = run_row(1, run_key="feature/customer-search/later", started_at=START + timedelta(hours=1))
    for run in (later, run_row(1)):
        await state.record(pool, RecordInput(run=run))
    by_key = await state.find_run(pool, RUN_KEY)
    by_workflow_id = await state.find_run(pool, "feature/customer-search")
    assert by_key is not None
    assert by_workflow_id is not None
    assert (by_key.run_key, by_workflow_id.run_key) == (RUN_KEY, later.run_key)
    assert await state.find_run(pool, "feature/another") is None
    assert [run.run_key for run in await state.list_runs(pool, 10)] == [later.run_key, RUN_KEY]
    assert len(await state.list_runs(pool, 1)) == 1


async def test_the_turns_of_a_round_are_told_when_it_ends(pool: Pool) -> None:
    """Finished turns with their tool calls and messages, in order; also when the step is repeated."""
    for turn, status in ((1, "done"), (2, "done"), (3, "in_flight")):
        await pool.execute(
            "INSERT INTO llm_turns (task_key, turn, agent_id, status, gateway_id, request_sha256, model, tokens_in,"
            " completed_at) VALUES ($1, $2, 'cynthia', $3, 'g', 'x', 'test:model', 10, now())",
            *(TASK_KEY, turn, status),
        )
        calls = [{"tool_call_id": "c1", "tool_name": "read_file"}] if turn == 1 else None
        for number, (role, made) in enumerate((("user", None), ("assistant", calls))):
            await pool.execute(
                "INSERT INTO agent_playground_messages (message_id, instance_id, role, content, tool_calls, metadata)"
                " VALUES ($1, $2, $3, '', $4, $5)",
                *(f"{TASK_KEY}/{turn:03d}/{number:02d}", TASK_KEY, role, made, {"turn": turn}),
            )
    assert await state.record(pool, STEPS[1]) == []
    told = await state.record(pool, STEPS[2])
    assert [(turn.turn, turn.messages, turn.model, turn.tokens_in) for turn in told] == [
        (1, 2, "test:model", 10),
        (2, 2, "test:model", 10),
    ]
    assert [turn.tool_calls for turn in told] == [[{"tool_call_id": "c1", "tool_name": "read_file"}], None]
    assert await state.record(pool, STEPS[2]) == told


async def test_deliverables_and_highest_sequences(pool: Pool) -> None:
    """What finished tasks announced, by feature and by stream."""
    metadata = NOTICE["metadata"]
    newer = NOTICE | {"metadata": metadata | {"sequence": 12, "round": 2, "verdict": "approve"}}
    second = completed_task(task_key=f"{RUN_KEY}/research-2", round=2, output_data=newer)
    await state.record(pool, STEPS[1])
    assert await state.recorded_sequences(pool) == {}
    await state.record(pool, RecordInput(run=run_row(3), tasks=[completed_task(), second]))
    rows = await state.deliverable_rows(pool, "customer-search")
    assert [(row.round, row.ref.sequence, row.verdict) for row in rows] == [(1, 7, None), (2, 12, "approve")]
    assert rows[0].subject == NOTICE["nats_channel"]
    assert await state.deliverable_rows(pool, "another") == []
    assert await state.recorded_sequences(pool) == {"agog_features_research": 12}
