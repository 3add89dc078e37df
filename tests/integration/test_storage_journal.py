"""The journal of model turns, all of it as the role that a gateway has."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from coatcheck.errors import NotAuthorizedError, TaskClosedError, TurnOutOfOrderError
from coatcheck.storage import state
from coatcheck.storage.database import Pool, open_pool
from coatcheck.storage.journal import LEASE, Busy, Claimed, ClaimOutcome, Done, Finished, TaskUsage, TurnJournal
from schemas.activities import RecordInput
from schemas.streams import AGENTS
from tests.integration.storage_rows import NOTICE, RUN_KEY, STEPS, TASK_KEY, completed_task, run_row, task_row

QUESTION = {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "Find customers by name."}]}
TOOL_RETURN = {"part_kind": "tool-return", "tool_name": "read", "content": "ok", "outcome": "success"}
TOOL_RESULT = {"kind": "request", "parts": [TOOL_RETURN]}
RETRY = {"kind": "request", "parts": [TOOL_RETURN, TOOL_RETURN | {"content": "no such file", "outcome": "retried"}]}
TOOL_CALL = {
    "kind": "response",
    "parts": [{"part_kind": "tool-call", "tool_name": "read", "tool_call_id": "call-1", "args": "{}"}],
    "usage": {"input_tokens": 10, "output_tokens": 5},
}
REPORT = {"kind": "response", "parts": [{"part_kind": "text", "content": "# Research"}]}


@dataclass
class FakeClock:
    """Monotonic seconds that pass when a test says so."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.seconds


@pytest.fixture
async def owner(postgres_dsn: str) -> AsyncIterator[Pool]:
    """A pool of the core worker, which has recorded that research is running."""
    async with open_pool(postgres_dsn) as pool:
        for step in STEPS[:2]:
            await state.record(pool, step)
        yield pool


@pytest.fixture
async def pool(gateway_dsn: str, owner: Pool) -> AsyncIterator[Pool]:
    """A pool as a gateway opens it."""
    assert owner
    async with open_pool(gateway_dsn) as pool:
        yield pool


@pytest.fixture
async def journal(pool: Pool) -> TurnJournal:
    """The journal of a gateway that lives."""
    journal = TurnJournal(pool, "gateway-a")
    await journal.beat()
    return journal


async def claim(
    journal: TurnJournal, turn: int = 1, *, agent: str = "cynthia", task_key: str = TASK_KEY
) -> ClaimOutcome:
    """Claim a turn, of the research task unless the test says otherwise."""
    return await journal.claim(task_key, turn, agent=agent, request_sha256="b" * 64, model="scripted")


async def fail(journal: TurnJournal, code: str, message: str, *, counts: bool) -> None:
    """Let the first turn's call fail."""
    await journal.fail(TASK_KEY, 1, agent="cynthia", code=code, message=message, counts=counts)


async def complete(journal: TurnJournal, turn: int = 1, **changes: Any) -> Done:
    """Journal an answer; 10 tokens in, 5 out, a tenth of a cent, unless the test says otherwise."""
    answer: dict[str, Any] = {
        "agent": "cynthia",
        "request_messages": [QUESTION],
        "response": TOOL_CALL,
        "model": "scripted",
        "tokens_in": 10,
        "tokens_out": 5,
        "tokens_cached": 2,
        "cost_usd": Decimal("0.001"),
    }
    return await journal.complete(TASK_KEY, turn, **(answer | changes))


async def test_a_turn_is_called_once_and_replayed_ever_after(journal: TurnJournal) -> None:
    """The first claim gets the call, later ones the identical answer with its model and cost."""
    assert await claim(journal) == Claimed(calls=1, failures=0)
    done = Done(message=TOOL_CALL, model="scripted", cost_usd=Decimal("0.001"))
    assert await complete(journal) == done
    assert await claim(journal) == done
    assert await claim(journal) == done


async def test_of_many_claims_at_once_one_gets_the_call(pool: Pool) -> None:
    """Twenty claims over two gateways, each in a task that stays alive: one is claimed, the others wait."""
    journals = [TurnJournal(pool, f"gateway-{name}") for name in "ab"]
    for journal in journals:
        await journal.beat()
    everybody_answered = asyncio.Barrier(20)

    async def ask(number: int) -> ClaimOutcome:
        outcome = await claim(journals[number % 2])
        await everybody_answered.wait()
        return outcome

    outcomes = await asyncio.gather(*(ask(number) for number in range(20)))
    assert Counter(type(outcome) for outcome in outcomes) == {Claimed: 1, Busy: 19}
    assert await pool.fetchval("SELECT calls FROM llm_turns") == 1


async def test_claims_of_a_failed_turn_at_once(pool: Pool) -> None:
    """Ten gateways retry a failed turn: one gets it, and nobody takes it for failed still."""
    journals = [TurnJournal(pool, f"gateway-{number}") for number in range(10)]
    for journal in journals:
        await journal.beat()
    await claim(journals[0])
    await fail(journals[0], "provider.unavailable", "500", counts=True)
    outcomes = await asyncio.gather(*(claim(journal) for journal in journals))
    assert Counter(type(outcome) for outcome in outcomes) == {Claimed: 1, Busy: 9}
    assert Claimed(calls=2, failures=1) in outcomes


async def test_the_task_that_claimed_a_turn_holds_it_until_it_ends(journal: TurnJournal) -> None:
    """While it lives nobody here can call too; when it died without a word, its turn is free again."""
    is_over = asyncio.Event()

    async def call() -> ClaimOutcome:
        outcome = await claim(journal)
        await is_over.wait()
        return outcome

    caller = asyncio.create_task(call())
    while not await journal.in_flight(RUN_KEY):
        assert not caller.done()
    assert await claim(journal) == Busy("gateway-a")
    is_over.set()
    assert await caller == Claimed(calls=1, failures=0)
    assert await claim(journal) == Claimed(calls=2, failures=0)


async def test_a_process_finds_the_calls_of_the_one_before_it(pool: Pool, journal: TurnJournal) -> None:
    """A gateway that comes back under its name does not wait for its own lease."""
    await claim(journal)
    restarted = TurnJournal(pool, "gateway-a")
    await restarted.beat()
    assert await claim(restarted) == Claimed(calls=2, failures=0)


async def silence(owner: Pool, gateway_id: str, duration: timedelta) -> None:
    """Let a gateway's last sign of life, and the beginning of its calls, be that long ago."""
    await owner.execute(
        "UPDATE llm_gateways SET seen_at = now() - $2::interval WHERE gateway_id = $1", gateway_id, duration
    )
    await owner.execute("UPDATE llm_turns SET started_at = now() - interval '1 hour' WHERE gateway_id = $1", gateway_id)


async def steady(pool: Pool, gateway_id: str) -> tuple[TurnJournal, FakeClock]:
    """A gateway that has been beating for longer than half a lease."""
    clock = FakeClock()
    journal = TurnJournal(pool, gateway_id, clock=clock)
    for _ in range(4):
        await journal.beat()
        clock.seconds += 1.5
    await journal.beat()
    return journal, clock


async def test_a_call_is_taken_over_after_the_lease(pool: Pool, owner: Pool, journal: TurnJournal) -> None:
    """A silent gateway loses its turn, a living one keeps it; of two that want it, one gets it."""
    await claim(journal)
    (second, _), (third, _) = await steady(pool, "gateway-b"), await steady(pool, "gateway-c")
    await silence(owner, "gateway-a", LEASE - timedelta(seconds=1))
    assert await claim(second) == Busy("gateway-a")
    await silence(owner, "gateway-a", LEASE + timedelta(seconds=1))
    outcomes = await asyncio.gather(claim(second), claim(third))
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Busy", "Claimed"]
    assert Claimed(calls=2, failures=0) in outcomes


async def test_a_call_that_has_just_begun_is_not_taken_over(pool: Pool) -> None:
    """Even from a gateway whose sign of life is late."""
    await claim(TurnJournal(pool, "gateway-a"))
    second, _ = await steady(pool, "gateway-b")
    assert await claim(second) == Busy("gateway-a")


async def test_nothing_is_taken_over_right_after_an_outage(pool: Pool, owner: Pool, journal: TurnJournal) -> None:
    """When PostgreSQL was away, everybody was silent: others first get half a lease to show that they live."""
    await claim(journal)
    second, clock = await steady(pool, "gateway-b")
    clock.seconds += 60
    await silence(owner, "gateway-a", timedelta(seconds=60))
    assert await claim(second) == Busy("gateway-a")
    await second.beat()
    assert await claim(second) == Busy("gateway-a")
    for _ in range(2):
        clock.seconds += 1.5
        await second.beat()
    assert await claim(second) == Claimed(calls=2, failures=0)


async def test_the_first_commit_wins(pool: Pool, owner: Pool, journal: TurnJournal) -> None:
    """A gateway that was believed dead and one that took over both have an answer: the first is the turn's."""
    await claim(journal)
    second, _ = await steady(pool, "gateway-b")
    await silence(owner, "gateway-a", timedelta(seconds=60))
    assert isinstance(await claim(second), Claimed)
    first, late = await asyncio.gather(complete(journal), complete(second, response=REPORT, cost_usd=None))
    assert first == late
    assert await claim(journal) == first
    assert await journal.history(TASK_KEY, 2) == [QUESTION, first.message]
    assert await pool.fetchval("SELECT count(*) FROM agent_playground_messages") == 2


async def test_failures_are_counted_and_only_the_holder_fails_a_turn(pool: Pool, journal: TurnJournal) -> None:
    """A rate limit does not count, a server error does; neither touches another's call or a finished turn."""
    await claim(journal)
    await fail(journal, "provider.rate_limited", "429", counts=False)
    assert await claim(journal) == Claimed(calls=2, failures=0)
    await fail(journal, "provider.unavailable", "500 \0 \ud800", counts=True)
    assert tuple(await pool.fetchrow("SELECT status, error_code, error FROM llm_turns") or ()) == (
        *("failed", "provider.unavailable", "500 \u2400 \ufffd"),
    )
    assert await claim(journal) == Claimed(calls=3, failures=1)
    await fail(TurnJournal(pool, "gateway-b"), "provider.unavailable", "not mine", counts=True)
    assert [turn.gateway_id for turn in await journal.in_flight(RUN_KEY)] == ["gateway-a"]
    done = await complete(journal)
    await fail(journal, "provider.unavailable", "too late", counts=True)
    assert await claim(journal) == done


async def test_turns_are_contiguous(journal: TurnJournal) -> None:
    """A turn needs the one before it finished, and has a number that its message ids can hold."""
    with pytest.raises(TurnOutOfOrderError, match=r"turn 2 .* turn 1 is next"):
        await claim(journal, 2)
    await claim(journal)
    with pytest.raises(TurnOutOfOrderError):
        await claim(journal, 2)
    await complete(journal)
    assert await claim(journal, 2) == Claimed(calls=1, failures=0)
    for turn in (0, 1000):
        with pytest.raises(ValueError, match="between 1 and 999"):
            await claim(journal, turn)


async def test_a_recorded_task_answers_with_its_notice(owner: Pool, journal: TurnJournal) -> None:
    """Once the task's row is complete its conversation is compacted, and every claim gets the notice."""
    await claim(journal)
    await complete(journal, response=REPORT)
    assert isinstance(await claim(journal), Done)
    await state.record(owner, RecordInput(run=run_row(3), tasks=[completed_task()]))
    for turn in (1, 2):
        assert await claim(journal, turn) == Finished(notice=NOTICE)


ROY_HAS_NO_SUCH_TASK = r"the agent 'roy' has no task 'feature/customer-search/0199c2f0-run/research-1'"


async def test_another_agents_turns_are_refused_and_left_alone(owner: Pool, journal: TurnJournal) -> None:
    """New, in flight, failed, done, with the task finished: Roy is told nothing, and Cynthia notices nothing."""

    async def attack() -> None:
        for turn in (1, 2):
            with pytest.raises(NotAuthorizedError, match=ROY_HAS_NO_SUCH_TASK):
                await claim(journal, turn, agent="roy")

    await attack()
    assert await journal.usage(RUN_KEY) == []
    assert await claim(journal) == Claimed(calls=1, failures=0)
    await attack()
    await fail(journal, "provider.unavailable", "500", counts=True)
    await attack()
    assert await claim(journal) == Claimed(calls=2, failures=1)
    done = await complete(journal)
    await attack()
    assert await claim(journal) == done
    await state.record(owner, RecordInput(run=run_row(3), tasks=[completed_task()]))
    await attack()
    assert await claim(journal) == Finished(notice=NOTICE)


@pytest.mark.parametrize(
    "task_key",
    [f"{RUN_KEY}/research-2", f"{RUN_KEY}x/research-1", "", TASK_KEY.upper(), f"{TASK_KEY} ", "x" * 300],
    ids=["round", "run", "empty", "case", "space", "long"],
)
async def test_a_task_that_is_not_recorded_is_refused(pool: Pool, journal: TurnJournal, task_key: str) -> None:
    """Nothing is claimed in it."""
    with pytest.raises(NotAuthorizedError, match="the agent 'cynthia' has no task"):
        await claim(journal, task_key=task_key)
    assert await pool.fetchval("SELECT count(*) FROM llm_turns") == 0


@pytest.mark.parametrize("status", ["cancelled", "failed", "pending"])
async def test_a_task_that_does_not_run_is_refused(owner: Pool, journal: TurnJournal, status: str) -> None:
    """No call is made for it, nor an answer repeated; who is calling may still journal what is paid."""
    await claim(journal)
    await complete(journal)
    await claim(journal, 2)
    await state.record(owner, RecordInput(run=run_row(3), tasks=[task_row(status)]))
    await complete(journal, 2)
    for turn in (1, 2, 3, 4):
        with pytest.raises(TaskClosedError, match=f"{TASK_KEY}' of 'cynthia' is {status}"):
            await claim(journal, turn)
    [usage] = await journal.usage(RUN_KEY)
    assert (usage.calls, usage.turns) == (2, 2)


async def test_after_a_reset_a_task_goes_on_where_it_was(owner: Pool, journal: TurnJournal) -> None:
    """The run of the reset records the task as running before it asks the agent, who pays for nothing twice."""
    await claim(journal)
    done = await complete(journal)
    await state.record(owner, RecordInput(run=run_row(3, status="failed"), tasks=[task_row("failed")]))
    with pytest.raises(TaskClosedError):
        await claim(journal)
    await state.record(owner, RecordInput(run=run_row(4), tasks=[task_row("running")]))
    assert await claim(journal) == done
    assert await claim(journal, 2) == Claimed(calls=1, failures=0)


async def test_attacks_hold_nobody_up(journal: TurnJournal) -> None:
    """While all the others ask for her turn again and again, Cynthia gets it at her first try."""

    async def attack(agent: str) -> None:
        for _ in range(20):
            with pytest.raises(NotAuthorizedError):
                await claim(journal, agent=agent)

    attacks = [asyncio.create_task(attack(agent)) for agent in AGENTS if agent != "cynthia"]
    await asyncio.sleep(0)  # they have begun
    assert await claim(journal) == Claimed(calls=1, failures=0)
    answered = await complete(journal)
    assert await claim(journal) == answered
    await asyncio.gather(*attacks)


async def test_history_is_every_message_in_order(pool: Pool, journal: TurnJournal) -> None:
    """Three turns: roles, tool calls and errors have their columns, the messages come back as they went in."""
    conversation = [([QUESTION], TOOL_CALL), ([TOOL_RESULT, RETRY], TOOL_CALL), ([TOOL_RESULT], REPORT)]
    for turn, (request_messages, response) in enumerate(conversation, start=1):
        await claim(journal, turn)
        await complete(journal, turn, request_messages=request_messages, response=response)
    assert await journal.history(TASK_KEY, 1) == []
    assert await journal.history(TASK_KEY, 3) == [QUESTION, TOOL_CALL, TOOL_RESULT, RETRY, TOOL_CALL]
    rows = await pool.fetch("SELECT * FROM agent_playground_messages ORDER BY message_id")
    assert [row["message_id"].removeprefix(TASK_KEY) for row in rows] == [
        *("/001/00", "/001/01", "/002/00", "/002/01", "/002/02", "/003/00", "/003/01"),
    ]
    assert [row["role"] for row in rows] == ["user", "assistant", "tool", "tool", "assistant", "tool", "assistant"]
    assert [row["is_error"] for row in rows] == [False, False, False, True, False, False, False]
    assert rows[1]["tool_calls"] == [{"tool_call_id": "call-1", "tool_name": "read"}]
    assert rows[0]["tool_calls"] is None
    assert rows[4]["metadata"] == {"turn": 2, "model": "scripted"}
    assert {(row["instance_id"], row["agent_id"]) for row in rows} == {(TASK_KEY, "cynthia")}


@pytest.mark.parametrize(
    ("part", "role", "is_error"),
    [
        ({"part_kind": "tool-return", "tool_name": "read"}, "tool", False),
        ({"part_kind": "tool-return", "tool_name": "read", "outcome": "denied"}, "tool", False),
        ({"part_kind": "tool-return", "tool_name": "read", "outcome": "retried"}, "tool", True),
        ({"part_kind": "tool-return", "tool_name": "read", "outcome": "failed"}, "tool", True),
        ({"part_kind": "retry-feedback", "retry": {"cause": "no_output"}}, "system", True),
        ({"part_kind": "retry-prompt", "tool_name": "read"}, "tool", True),
        ({"part_kind": "retry-prompt"}, "system", True),
        ({"part_kind": "system-prompt"}, "system", False),
        ({"part_kind": "user-prompt"}, "user", False),
    ],
    ids=str,
)
async def test_roles_and_errors(
    pool: Pool, journal: TurnJournal, part: dict[str, Any], role: str, *, is_error: bool
) -> None:
    """Corrections are errors, whether pydantic-ai 2 or 1 has written them."""
    await claim(journal)
    await complete(journal, request_messages=[{"kind": "request", "parts": [{"content": "x"} | part]}])
    row = await pool.fetchrow("SELECT role, is_error FROM agent_playground_messages ORDER BY message_id LIMIT 1")
    assert row is not None
    assert tuple(row) == (role, is_error)


@pytest.mark.parametrize(
    "text", ["nul \0", "surrogate \ud800", "\\u0000 \\\0", "größer 検索 🔎", "x" * 9_500_000], ids=len
)
async def test_any_text_is_replayed_exactly(journal: TurnJournal, text: str) -> None:
    """What PostgreSQL cannot hold is escaped in the stored JSON text; 9.5 MB go through."""
    question = {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": text}]}
    answer = {"kind": "response", "parts": [{"part_kind": "text", "content": text}]}
    await claim(journal)
    await complete(journal, request_messages=[question], response=answer)
    assert await journal.history(TASK_KEY, 2) == [question, answer]
    replayed = await claim(journal)
    assert isinstance(replayed, Done)
    assert replayed.message == answer


async def test_usage_and_calls_in_flight(owner: Pool, journal: TurnJournal) -> None:
    """Sums per task of one run only; one turn without a price makes the cost unknown."""
    await claim(journal)
    await complete(journal)
    await claim(journal, 2)
    other = f"{RUN_KEY}0/research-1"
    another_run = run_row(1, run_key=f"{RUN_KEY}0")
    await state.record(owner, RecordInput(run=another_run, tasks=[task_row("running", task_key=other)]))
    await claim(journal, task_key=other)
    usage = TaskUsage(TASK_KEY, "cynthia", 2, 1, 10, 5, 2, Decimal("0.001"))
    assert await journal.usage(RUN_KEY) == [usage]
    assert [(turn.task_key, turn.turn, turn.agent) for turn in await journal.in_flight(RUN_KEY)] == [
        (TASK_KEY, 2, "cynthia"),
    ]
    await complete(journal, 2, cost_usd=None)
    assert await journal.usage(RUN_KEY) == [TaskUsage(TASK_KEY, "cynthia", 2, 2, 20, 10, 4, None)]


async def test_only_claimed_turns_and_real_conversations_are_journalled(journal: TurnJournal) -> None:
    """A turn that nobody claimed, an answer among the questions, too many messages."""
    with pytest.raises(LookupError, match="never claimed"):
        await complete(journal)
    await claim(journal)
    for messages in ([QUESTION, TOOL_CALL], [QUESTION] * 99):
        with pytest.raises(ValueError, match="at most 99 messages"):
            await complete(journal, request_messages=messages)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT state_data FROM workflows",
        "SELECT input_data FROM task_executions",
        "SELECT * FROM events",
        "INSERT INTO workflows (workflow_id) VALUES ('x')",
        "INSERT INTO events (event_id, event_type) VALUES ('x', 'x')",
        "UPDATE workflows SET description = 'x'",
        "UPDATE task_executions SET output_data = '{}'",
        "UPDATE agent_playground_messages SET content = 'x'",
        "DELETE FROM agent_playground_messages",
        "DELETE FROM llm_turns",
        "TRUNCATE llm_turns",
        "DELETE FROM llm_gateways",
        "DROP TABLE llm_turns",
        "CREATE TABLE mine (id int)",
        "SELECT * FROM schema_migrations",
    ],
)
async def test_the_gateway_role_can_do_nothing_else(pool: Pool, statement: str) -> None:
    """No other rows, no other columns, no rewriting of conversations."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await pool.execute(statement)


async def test_the_gateway_role_reads_briefs(pool: Pool) -> None:
    """The brief is claimed by the run's key."""
    assert await state.read_brief(pool, RUN_KEY) == "Find customers by name."
