"""The record of tool calls: who makes one, and how it ended. Intent before the call, outcome after it, each once.

A call (task key, tool call id) is *claimed* before the tool is called and *completed* afterwards; of several gateways
one makes it. What a gateway has begun and nobody has completed is *orphaned* once that gateway has been silent for a
lease: nobody knows then whether the tool did its work, so only a tool that may be called again is.

A gateway shows that it lives through `TurnJournal.beat`; it has one name in both records.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import asyncpg

from coatcheck.errors import NotAuthorizedError, TaskClosedError, ToolKeyConflictError
from coatcheck.storage.database import Executor, Pool, query, storable_text, storage_errors
from coatcheck.storage.journal import LEASE, refusal_of
from schemas.ledger import Reservation
from schemas.mcp import CallTool, ToolOutcome

MOST_CALLS: Final = 3
"""Of one tool that may be called again: whatever kills three gateways would kill the fourth."""


@dataclass(frozen=True)
class Granted:
    """The call is ours: make it, then `complete`."""


@dataclass(frozen=True)
class Ended:
    """It has ended; this is how."""

    outcome: ToolOutcome


@dataclass(frozen=True)
class Held:
    """A gateway that lives, or may live, is making it: look again later."""


@dataclass(frozen=True)
class Orphaned:
    """A dead gateway has begun it and it must not be made again: `abandon` it."""

    gateway_id: str


@dataclass(frozen=True)
class OverBudget:
    """What it costs does not fit into what may still be spent; nothing was claimed."""

    refusal: Reservation


Claim = Granted | Ended | Held | Orphaned | OverBudget


@dataclass(frozen=True)
class ToolCallRow:
    """One call as it is recorded."""

    task_key: str
    tool_call_id: str
    agent: str
    server: str
    tool: str
    status: str
    calls: int
    repeatable: bool
    error_code: str | None
    result_bytes: int
    reference: str | None
    cost_usd: Decimal
    created_at: datetime
    completed_at: datetime | None


class ToolJournal:
    """The record as one gateway process sees it; the role `coatcheck_gateway` suffices for all of it.

    Every method raises `StorageUnavailableError` when PostgreSQL is away, and may be called again then.

    Args:
        pool: From `open_pool`.
        gateway_id: The one of this process's `TurnJournal`.
        may_take_over: That journal's: whether this gateway may judge that another one is dead.
        lease: How long a gateway may be silent before its calls are orphaned.
    """

    def __init__(
        self, pool: Pool, gateway_id: str, *, may_take_over: Callable[[], bool], lease: timedelta = LEASE
    ) -> None:
        self._pool = pool
        self._gateway_id = gateway_id
        self._may_take_over = may_take_over
        self._lease = lease
        self._held: set[tuple[str, str]] = set()

    async def peek(self, call: CallTool, *, agent: str) -> Ended | Held | None:
        """How a call stands, without taking it; `None` when nobody has begun it.

        Raises:
            NotAuthorizedError: no such task of that agent is recorded.
            TaskClosedError: the task is not running, and the call was not made while it was.
            ToolKeyConflictError: the key was used for something else.
        """
        with storage_errors():
            row = await self._pool.fetchrow(
                """
                SELECT task.status AS task_status, kept.status, kept.request_sha256, kept.outcome
                FROM task_executions AS task
                LEFT JOIN tool_calls AS kept ON kept.task_key = $1 AND kept.tool_call_id = $2
                WHERE task.execution_id = $1 AND task.agent_id = $3
                """,
                *(call.task_key, call.tool_call_id, agent),
            )
        if row is None:
            raise NotAuthorizedError(f"no task {call.task_key} of {agent} is recorded")
        return _found(row, call)

    async def claim(self, call: CallTool, *, agent: str, repeatable: bool, quote: str | None = None) -> Claim:
        """Take the call for this gateway, or learn why not; whoever is granted it holds it until `complete`.

        Args:
            call: What is to be called.
            agent: Who asks for it.
            repeatable: Whether it may be made again when nobody knows how an earlier one ended.
            quote: What it costs, for `reserve_tool`: reserved with the claim, or nothing is claimed. `None`: nothing.

        Raises:
            NotAuthorizedError: no such task of that agent is recorded.
            TaskClosedError: the task is not running any more; nothing was called.
            ToolKeyConflictError: the key was used for something else.
        """
        key = call.task_key, call.tool_call_id
        if key in self._held:
            return Held()
        self._held.add(key)
        claim: Claim | None = None
        try:
            claim = await self._claim(call, agent, repeatable, quote)
        finally:
            if not isinstance(claim, Granted):
                self._held.discard(key)
        return claim

    async def _claim(self, call: CallTool, agent: str, repeatable: bool, quote: str | None) -> Claim:  # noqa: FBT001  a column
        try:
            with storage_errors():
                row = await self._pool.fetchrow(
                    query("tool_claim"),
                    *(call.task_key, call.tool_call_id, agent, call.server, call.tool, self._gateway_id, call.digest()),
                    *(repeatable, MOST_CALLS, self._lease, self._may_take_over(), quote),
                )
        except asyncpg.PostgresError as error:
            return OverBudget(refusal_of(error))
        assert row is not None
        if row["calls"] is not None:
            return Granted()
        if row["task_status"] is None:
            raise NotAuthorizedError(f"no task {call.task_key} of {agent} is recorded")
        found = _found(row, call)
        # Begun under our own name and not held: never made, and its task has ended since.
        if isinstance(found, Held) and (row["is_orphan"] or row["gateway_id"] == self._gateway_id):
            return Orphaned(row["gateway_id"])
        return found or Held()  # another gateway's first claim is being committed right now

    async def complete(self, call: CallTool, outcome: ToolOutcome, *, is_priced: bool = False) -> ToolOutcome:
        """Record how our call ended, and pay for it in the same transaction; the first outcome stays.

        Args:
            call: What was called.
            outcome: How it ended, and what it cost.
            is_priced: Whether it was claimed with a quote.

        Returns:
            What is recorded: this one, or the one that was there before.

        Raises:
            LookupError: the call was never claimed.
        """
        ended = await self._end(call, outcome, self._gateway_id, is_priced=is_priced)
        self._held.discard((call.task_key, call.tool_call_id))
        return ended

    async def abandon(
        self, call: CallTool, outcome: ToolOutcome, *, gateway_id: str, is_priced: bool = False
    ) -> ToolOutcome:
        """Record that nobody knows how a dead gateway's call ended; returns what is recorded, as `complete` does."""
        return await self._end(call, outcome, gateway_id, is_priced=is_priced)

    async def _end(self, call: CallTool, outcome: ToolOutcome, gateway_id: str, *, is_priced: bool) -> ToolOutcome:
        key = call.task_key, call.tool_call_id
        with storage_errors():
            is_first = await self._pool.fetchval(
                """
                UPDATE tool_calls SET
                    status = $4, outcome = $5, reference = $6, error_code = $7, result_bytes = $8, cost_usd = $9,
                    completed_at = now()
                WHERE task_key = $1 AND tool_call_id = $2 AND gateway_id = $3 AND status = 'called'
                RETURNING CASE WHEN $10::bool THEN settle_tool($1, $2, $9::numeric) ELSE 'free' END
                """,
                *(*key, gateway_id, outcome.status, outcome.model_dump_json(), outcome.reference),
                *(outcome.code or None, outcome.result_bytes, outcome.cost_usd, is_priced),
            )
            if is_first:
                return outcome
            stored = await self._pool.fetchval(
                "SELECT outcome FROM tool_calls WHERE task_key = $1 AND tool_call_id = $2", *key
            )
        if stored is None:
            raise LookupError(f"{call.tool_call_id} of {call.task_key} is not ours to end")
        return ToolOutcome.model_validate_json(stored)

    async def owns(self, task_key: str, reference: str, *, agent: str) -> bool:
        """Whether a result with that reference is one of a task of that agent."""
        with storage_errors():
            found: bool = await self._pool.fetchval(
                "SELECT EXISTS (SELECT FROM tool_calls WHERE task_key = $1 AND reference = $2 AND agent_id = $3)",
                *(task_key, storable_text(reference), agent),
            )
        return found


def _found(row: Any, call: CallTool) -> Ended | Held | None:
    if row["status"] is not None and row["request_sha256"] != call.digest():
        raise ToolKeyConflictError(f"{call.tool_call_id} was another call of this task: a call's id is used once")
    if row["outcome"] is not None:
        return Ended(ToolOutcome.model_validate_json(row["outcome"]))
    if row["status"] is not None:
        return Held()
    if row["task_status"] != "running":
        raise TaskClosedError(f"{call.task_key} is {row['task_status']}: no tool is called for it")
    return None


async def tool_call_rows(
    executor: Executor, *, run_key: str | None = None, agent: str | None = None, limit: int = 50
) -> list[ToolCallRow]:
    """The latest calls, oldest of them first.

    Args:
        executor: The owner's, or the gateway's.
        run_key: Only of this run.
        agent: Only of this agent.
        limit: How many.
    """
    with storage_errors():
        rows = await executor.fetch(
            """
            SELECT task_key, tool_call_id, agent_id AS agent, server, tool, status, calls, repeatable, error_code,
                result_bytes, reference, cost_usd, created_at, completed_at
            FROM tool_calls
            WHERE ($1::text IS NULL OR (task_key >= $1 || '/' AND task_key < $1 || '0'))
                AND ($2::text IS NULL OR agent_id = $2)
            ORDER BY created_at DESC LIMIT $3
            """,
            *(run_key, agent, limit),
        )
    return [ToolCallRow(**row) for row in reversed(rows)]
