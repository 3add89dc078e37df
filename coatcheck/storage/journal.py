"""The LLM proxy's journal of model turns: who calls the provider, what it answered, what it cost.

A turn (task key, number) is *claimed* before the provider is called and *completed* in one transaction with its
messages, so no finished call is made twice, and of several gateways one makes the call. A gateway shows that it
lives by `beat`; when it has been silent for a lease, another may take its call over. Silence is judged with care
after an outage of PostgreSQL itself, when every gateway has been silent: who has not been beating for half a lease
takes nothing over, so that the others can first show that they live.

Whose task it is, and whether it still runs, says its row in `task_executions`, which the core worker commits before it
asks the agent. It is checked in the claim's own statement: an agent gets no turn of another's task, pays for none that
does not exist, and one that outlives its cancelled run spends no more.

Messages are stored as their exact JSON text (`exact_json`), so a replayed turn is the same turn.
"""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import asyncpg

from coatcheck.errors import NotAuthorizedError, TaskClosedError, TurnOutOfOrderError
from coatcheck.storage.database import Pool, exact_json, query, storable_json, storable_text, storage_errors
from schemas.ledger import Reservation
from schemas.workflow_ids import run_key_of

LEASE: Final = timedelta(seconds=6)
"""Four beats of 1.5 s: one or two may be late, and a dead gateway's calls are made again within 10 s."""
MAX_TURN: Final = 999
"""Message ids have three digits for the turn."""
MAX_MESSAGES: Final = 99
"""Messages of one turn; their ids have two digits."""

_ERROR_OUTCOMES: Final = frozenset({"failed", "retried"})
"""Of a pydantic-ai tool return; the others are its success and decisions of people."""


@dataclass(frozen=True)
class Claimed:
    """The turn is ours: call the provider, then `complete` or `fail`."""

    calls: int
    """Provider calls begun for this turn, this one included."""
    failures: int
    """Of the earlier ones, those that failed and count."""
    age_seconds: float = field(default=0.0, compare=False)
    """Since the turn was first claimed, by the database's clock."""
    failed_seconds_ago: float | None = field(default=None, compare=False)
    """Since its latest call failed, by the same clock; `None` when it did not, or was lost."""
    is_reserved: bool = False
    """Whether something limits what it may cost."""


@dataclass(frozen=True)
class Done:
    """The turn is finished: this is its answer, at no cost."""

    message: dict[str, Any]
    """A pydantic-ai `ModelResponse`."""
    model: str
    cost_usd: Decimal | None
    """`None` when no price was known."""


@dataclass(frozen=True)
class Finished:
    """The whole task is recorded as completed."""

    notice: dict[str, Any]


@dataclass(frozen=True)
class Busy:
    """A gateway that lives, or may live, is calling: ask again later."""

    gateway_id: str


@dataclass(frozen=True)
class OverBudget:
    """The turn does not fit into what may still be spent; nothing was claimed."""

    refusal: Reservation


@dataclass(frozen=True)
class TurnQuote:
    """What a turn may cost at most, for `reserve_turn`."""

    document: str
    """JSON, as the function has it."""
    is_limited: bool
    """Whether something may limit it besides the budget of its run."""
    answer_tokens: int
    """What the provider has to be told when the turn is reserved."""


ClaimOutcome = Claimed | Done | Finished | Busy | OverBudget


@dataclass(frozen=True)
class TaskUsage:
    """What one task's turns took."""

    task_key: str
    agent: str
    calls: int
    """Provider calls begun; more than `turns` when some failed, were lost or are under way."""
    turns: int
    """Finished turns."""
    tokens_in: int
    tokens_out: int
    tokens_cached: int
    cost_usd: Decimal | None
    """`None` when the price of any finished turn is unknown."""


@dataclass(frozen=True)
class TurnInFlight:
    """A provider call under way, as far as the journal knows."""

    task_key: str
    turn: int
    agent: str
    gateway_id: str
    started_at: datetime


class TurnJournal:
    """The journal as one gateway process sees it; the role `coatcheck_gateway` suffices for all of it.

    Every method raises `StorageUnavailableError` when PostgreSQL is away. All may be called again then: a repeated
    `complete` finds its own answer, a repeated `claim` finds its own intent.

    Args:
        pool: From `open_pool`.
        gateway_id: Names the process. With a name that survives a restart, the calls that the last process left
            behind are taken over at once and not after a lease; two living processes must not share it.
        lease: How long a gateway may be silent before its calls count as lost. `beat` at least four times as often.
        clock: Monotonic seconds.
    """

    def __init__(
        self, pool: Pool, gateway_id: str, *, lease: timedelta = LEASE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool = pool
        self.gateway_id = self._gateway_id = gateway_id
        self._lease = lease
        self._clock = clock
        self._reserved: set[tuple[str, str, int]] = set()
        """Of the turns held here, those that are paid from a budget or counted against a limit."""
        self._held: dict[tuple[str, str, int], asyncio.Task[Any]] = {}
        """By agent too: who asks for another's task is neither told of its turns nor in their way."""
        self._last_beat = self._steady_since = float("-inf")
        self.gateways = 1
        """That live, as of the last beat."""

    async def beat(self) -> int:
        """Show that this gateway lives; without it others take its calls over, and it takes over none.

        Returns:
            How many gateways live, this one included: none of the others has been silent for a lease.
        """
        with storage_errors():
            others: int = await self._pool.fetchval(
                """
                WITH beat AS (
                    INSERT INTO llm_gateways (gateway_id) VALUES ($1)
                    ON CONFLICT (gateway_id) DO UPDATE SET seen_at = now()
                )
                SELECT count(*) FROM llm_gateways WHERE gateway_id <> $1 AND seen_at >= now() - $2::interval
                """,
                self._gateway_id,
                self._lease,
            )
        now = self._clock()
        if now - self._last_beat > self._grace_seconds:
            self._steady_since = now
        self._last_beat = now
        self.gateways = 1 + others
        return self.gateways

    async def peek(self, task_key: str, turn: int, *, agent: str) -> tuple[Done | Finished | Busy | None, str]:
        """Look whether the turn needs a call, without taking it; and the tenant of its run.

        Returns:
            What a claim would find, or `None` when it would very likely be granted; and the tenant.

        Raises:
            NotAuthorizedError: no such task of that agent is recorded, whoever else may have one.
            TaskClosedError: the task is neither running nor completed with its notice.
        """
        if (agent, task_key, turn) in self._held:
            return Busy(self._gateway_id), ""
        with storage_errors():
            row = await self._pool.fetchrow(query("peek"), task_key, turn, agent, self._gateway_id, self._lease)
        assert row is not None
        outcome = _outcome(row, task_key, turn, agent)
        assert not isinstance(outcome, Claimed | OverBudget)
        return outcome, row["tenant"] or ""

    async def claim(
        self, task_key: str, turn: int, *, agent: str, request_sha256: str, model: str, quote: TurnQuote | None = None
    ) -> ClaimOutcome:
        """Take the turn for this gateway, or learn why not; one round trip unless two claims collide.

        A turn can be taken when it is new, when it failed, when its gateway has been silent for a lease, or when it
        is in flight under our own name but nobody here holds it: a process before us began it, or the answer to its
        claim was lost. The asyncio task that claimed a turn holds it until `complete`, `fail` or its own end; for
        other tasks the outcome is `Busy` so long.

        Where the run has a budget or a limit applies, the turn's worst case is reserved with it, or nothing is claimed.

        Raises:
            ValueError: `turn` is not between 1 and 999.
            NotAuthorizedError: no such task of that agent is recorded, whoever else may have one.
            TaskClosedError: the task is neither running nor completed with its notice.
            TurnOutOfOrderError: the turn before it is not finished.
        """
        if not 1 <= turn <= MAX_TURN:
            raise ValueError(f"turn {turn} is not between 1 and {MAX_TURN}")
        held = (agent, task_key, turn)
        if held in self._held:
            return Busy(self._gateway_id)
        self._hold(held)
        outcome: ClaimOutcome | None = None
        try:
            while outcome is None:
                try:
                    with storage_errors():
                        row = await self._pool.fetchrow(
                            query("claim"),
                            *(task_key, turn, agent, self._gateway_id, request_sha256, model),
                            *(self._lease, self.may_take_over()),
                            *_quoted(quote, task_key),
                        )
                except asyncpg.PostgresError as error:
                    return OverBudget(refusal_of(error))
                assert row is not None
                outcome = _outcome(row, task_key, turn, agent)
            if isinstance(outcome, Claimed) and outcome.is_reserved:
                self._reserved.add(held)
        finally:
            if not isinstance(outcome, Claimed):
                self._held.pop(held, None)
        return outcome

    async def history(self, task_key: str, before_turn: int) -> list[dict[str, Any]]:
        """The pydantic-ai messages of the finished turns before `before_turn`, in order."""
        with storage_errors():
            rows = await self._pool.fetch(
                """
                SELECT content FROM agent_playground_messages
                WHERE instance_id = $1 AND (metadata ->> 'turn')::int < $2
                ORDER BY message_id
                """,
                task_key,
                before_turn,
            )
        return [json.loads(row["content"]) for row in rows]

    async def complete(  # noqa: PLR0913  the columns of one row
        self,
        task_key: str,
        turn: int,
        *,
        agent: str,
        request_messages: Sequence[dict[str, Any]],
        response: dict[str, Any],
        model: str,
        tokens_in: int,
        tokens_out: int,
        tokens_cached: int,
        cost_usd: Decimal | None,
    ) -> Done:
        """Journal the answer: the turn, its usage and its messages in one transaction. The first commit wins.

        It need not come from the gateway that holds the turn: an answer that is there is worth keeping.

        Args:
            task_key: The task.
            turn: Its turn, claimed before.
            agent: Whose conversation it is.
            request_messages: The messages since the last answer, at most 98, no `ModelResponse` among them.
            response: The provider's answer, a `ModelResponse`.
            model: `provider:model` that wrote it.
            tokens_in: Prompt tokens, cached ones included.
            tokens_out: Tokens of the answer.
            tokens_cached: Prompt tokens that the provider had cached.
            cost_usd: `None` when no price is known.

        Returns:
            The journalled answer: this one, or the one that was there before.

        Raises:
            ValueError: too many messages, or an answer among the request messages.
            LookupError: the turn was never claimed.
        """
        messages = [*request_messages, response]
        if len(messages) > MAX_MESSAGES or any(message["kind"] == "response" for message in request_messages):
            raise ValueError(f"a turn has at most {MAX_MESSAGES} messages, of which only the last is an answer")
        with storage_errors():
            is_first = await self._pool.fetchval(
                query("complete"),
                *(task_key, turn, agent, model, tokens_in, tokens_out, tokens_cached, cost_usd),
                [f"{task_key}/{turn:03d}/{number:02d}" for number in range(len(messages))],
                [_role(message) for message in messages],
                [exact_json(message) for message in messages],
                [_tool_calls(message) for message in messages],
                [_is_error(message) for message in messages],
                (agent, task_key, turn) in self._reserved,
            )
            stored = None if is_first else await self._stored(task_key, turn)
        self._let_go(agent, task_key, turn)
        return stored or Done(message=response, model=model, cost_usd=cost_usd)

    async def fail(self, task_key: str, turn: int, *, agent: str, code: str, message: str, counts: bool) -> None:
        """Record that our call failed; does nothing when the turn is finished or another gateway has taken it over.

        Args:
            task_key: The task.
            turn: Its turn.
            agent: Who asked for it.
            code: A dotted code of `schemas.errors`.
            message: The provider's words.
            counts: Whether it counts towards the turn's bounded number of failures.
        """
        with storage_errors():
            await self._pool.execute(
                """
                UPDATE llm_turns SET
                    status = 'failed', failures = failures + $4::bool::int, error_code = $5, error = $6,
                    completed_at = now()
                WHERE task_key = $1 AND turn = $2 AND gateway_id = $3 AND status = 'in_flight'
                RETURNING CASE WHEN $7::bool THEN release_turn($1, $2) END
                """,
                *(task_key, turn, self._gateway_id, counts, code, storable_text(message)),
                (agent, task_key, turn) in self._reserved,
            )
        self._let_go(agent, task_key, turn)

    async def usage(self, run_key: str) -> list[TaskUsage]:
        """What each task of a run took so far, in order of the task keys."""
        # Task keys are the run key, a slash and more: a range of the primary key, since `0` follows `/`.
        with storage_errors():
            rows = await self._pool.fetch(
                """
                SELECT task_key, min(agent_id) AS agent, sum(calls)::int AS calls,
                    (count(*) FILTER (WHERE status = 'done'))::int AS turns, sum(tokens_in)::int AS tokens_in,
                    sum(tokens_out)::int AS tokens_out, sum(tokens_cached)::int AS tokens_cached,
                    CASE WHEN bool_or(status = 'done' AND cost_usd IS NULL) THEN NULL
                        ELSE coalesce(sum(cost_usd), 0) END AS cost_usd
                FROM llm_turns WHERE task_key >= $1 || '/' AND task_key < $1 || '0' GROUP BY task_key ORDER BY task_key
                """,
                run_key,
            )
        return [TaskUsage(**row) for row in rows]

    async def in_flight(self, run_key: str) -> list[TurnInFlight]:
        """The calls of a run that are under way, or were when their gateway died."""
        with storage_errors():
            rows = await self._pool.fetch(
                "SELECT task_key, turn, agent_id AS agent, gateway_id, started_at FROM llm_turns"
                " WHERE task_key >= $1 || '/' AND task_key < $1 || '0' AND status = 'in_flight'"
                " ORDER BY task_key, turn",
                run_key,
            )
        return [TurnInFlight(**row) for row in rows]

    @property
    def _grace_seconds(self) -> float:
        return self._lease.total_seconds() / 2

    def may_take_over(self) -> bool:
        """Whether this gateway has shown for half a lease that it lives, and so may judge that another one is dead."""
        now = self._clock()
        return now - self._last_beat < self._grace_seconds <= now - self._steady_since

    def _hold(self, key: tuple[str, str, int]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._held[key] = task
        task.add_done_callback(lambda ended: self._let_go(*key) if self._held.get(key) is ended else None)

    def _let_go(self, agent: str, task_key: str, turn: int) -> None:
        self._held.pop((agent, task_key, turn), None)
        self._reserved.discard((agent, task_key, turn))

    async def _stored(self, task_key: str, turn: int) -> Done:
        row = await self._pool.fetchrow(
            """
            SELECT content, turn.model, cost_usd FROM llm_turns AS turn
            JOIN agent_playground_messages ON instance_id = task_key AND role = 'assistant'
                AND (metadata ->> 'turn')::int = turn
            WHERE task_key = $1 AND turn = $2
            """,
            task_key,
            turn,
        )
        if row is None:
            raise LookupError(f"turn {turn} of {task_key} was never claimed")
        return Done(message=json.loads(row["content"]), model=row["model"], cost_usd=row["cost_usd"])


def _outcome(row: asyncpg.Record, task_key: str, turn: int, agent: str) -> ClaimOutcome | None:
    """`None`: another transaction was writing the row; ask again."""
    if row["task_status"] is None:
        raise NotAuthorizedError(f"the agent {agent!r} has no task {task_key!r}")
    if row["notice"] is not None:
        return Finished(notice=row["notice"])
    if row["task_status"] != "running":
        raise TaskClosedError(
            f"the task {task_key!r} of {agent!r} is {row['task_status']}: no model call is made for it"
        )
    if row["calls"] is not None:
        return Claimed(
            calls=row["calls"],
            failures=row["failures"],
            age_seconds=row["age_seconds"] or 0.0,
            failed_seconds_ago=row["failed_seconds_ago"],
            is_reserved=row["reserved"] is not None,
        )
    if row["status"] == "done":
        return Done(message=json.loads(row["answer"]), model=row["model"], cost_usd=row["cost_usd"])
    if row["status"] == "in_flight":
        return Busy(gateway_id=row["gateway_id"])
    if row["next_turn"] is not None and row["next_turn"] < turn:
        raise TurnOutOfOrderError(f"turn {turn} of {task_key} was asked for, but turn {row['next_turn']} is next")
    return None


def _quoted(quote: TurnQuote | None, task_key: str) -> tuple[str | None, bool, str | None]:
    """The last parameters of `claim.sql`; a turn without a quote is not limited by anything."""
    return (None, False, None) if quote is None else (quote.document, quote.is_limited, run_key_of(task_key))


def refusal_of(error: asyncpg.PostgresError) -> Reservation:
    """What `reserve_turn` or `reserve_tool` says is short.

    Raises:
        PostgresError: `error`, when it is none of its refusals.
    """
    if error.sqlstate != "CL010":
        raise error
    return Reservation.model_validate_json(error.detail or "")


def _role(message: dict[str, Any]) -> str:
    if message["kind"] == "response":
        return "assistant"
    if any(part["part_kind"] == "user-prompt" for part in message["parts"]):
        return "user"
    return "tool" if any(_answers_tool_call(part) for part in message["parts"]) else "system"


def _answers_tool_call(part: dict[str, Any]) -> bool:
    """Pydantic-ai 1 wrote every correction as a `retry-prompt`, with a tool's name when it answers a call."""
    kind = part["part_kind"]
    return kind == "tool-return" or (kind == "retry-prompt" and part.get("tool_name") is not None)


def _tool_calls(message: dict[str, Any]) -> str | None:
    calls = [
        {"tool_call_id": part["tool_call_id"], "tool_name": part["tool_name"]}
        for part in message["parts"]
        if message["kind"] == "response" and part["part_kind"].endswith("tool-call")
    ]
    return storable_json(calls) if calls else None


def _is_error(message: dict[str, Any]) -> bool:
    """Whether the model is told that something went wrong: a failed call, or an answer that it has to correct."""
    return any(
        part["part_kind"] in {"retry-feedback", "retry-prompt"} or part.get("outcome") in _ERROR_OUTCOMES
        for part in message["parts"]
    )
