"""What runs may spend, looked after: budgets of runs that have ended, and reservations that outlived their calls.

Escrow and reservations are made elsewhere, in the statements that they belong to: `record.sql`, `claim.sql`,
`complete.sql`. Here is what keeps their promise when whoever made them has died.
"""

from pydantic import BaseModel, ConfigDict

from coatcheck.storage.database import Executor
from coatcheck.storage.ledger import ledger_errors, release_expired


class Sweep(BaseModel):
    """What was given back."""

    model_config = ConfigDict(frozen=True)

    holds: int
    """Reservations that had expired."""
    budgets: int
    """Runs that have ended whose budget was not closed, or had something left."""


class AgentShare(BaseModel):
    """What one agent may use of a run's budget, and has used, reservations included."""

    model_config = ConfigDict(frozen=True)

    agent: str
    credits: int | None
    """Micro-credits in all."""
    tokens: int | None
    calls: int | None
    credits_used: int
    tokens_used: int
    calls_used: int


class RunBudget(BaseModel):
    """A run's budget as it is."""

    model_config = ConfigDict(frozen=True)

    credits: int | None
    """Micro-credits in all."""
    tokens: int | None
    calls: int | None
    spent: int | None
    """Of the credits, what has been paid."""
    held: int
    tokens_used: int
    calls_used: int
    is_closed: bool
    agents: list[AgentShare] = []
    """Those with limits of their own, by name."""

    @property
    def left(self) -> int | None:
        """Of the credits, what is neither paid nor held; `None` where money is not what limits the run."""
        return None if self.credits is None else max(self.credits - (self.spent or 0) - self.held, 0)


async def sweep(executor: Executor) -> Sweep:
    """Give back what expired reservations hold and what ended runs have left; idempotent, safe beside everything."""
    holds = await release_expired(executor)
    with ledger_errors():
        closed = await executor.fetch(
            """
            UPDATE run_budgets AS budget SET closed_at = coalesce(budget.closed_at, now())
            FROM workflows AS run
            WHERE run.workflow_id = budget.run_key
                AND run.status IN ('completed', 'rejected', 'expired', 'cancelled', 'failed')
                AND (budget.closed_at IS NULL OR EXISTS (
                    SELECT FROM accounts WHERE account_id = 'run/' || budget.run_key AND balance > held
                ))
            RETURNING budget.run_key
            """
        )
    return Sweep(holds=holds, budgets=len(closed))


async def run_budget(executor: Executor, run_key: str) -> RunBudget | None:
    """What the run may spend and has spent; `None` when nothing limits it."""
    with ledger_errors():
        row = await executor.fetchrow(
            """
            SELECT budget.credits, budget.tokens, budget.calls, coalesce(account.held, 0) AS held,
                (
                    SELECT coalesce(sum(amount), 0)::bigint FROM transactions
                    WHERE source = account.account_id AND kind IN ('model', 'purchase')
                ) AS spent,
                coalesce(used.tokens, 0) AS tokens_used, coalesce(used.calls, 0) AS calls_used,
                budget.closed_at IS NOT NULL AS is_closed,
                (
                    SELECT coalesce(jsonb_agg(most || jsonb_build_object(
                        'agent', agent, 'credits_used', coalesce(own.credits, 0),
                        'tokens_used', coalesce(own.tokens, 0), 'calls_used', coalesce(own.calls, 0)
                    ) ORDER BY agent), '[]')
                    FROM jsonb_each(budget.agents) AS given (agent, most)
                    LEFT JOIN limit_usage AS own ON own.limit_id = 'run-agent/' || agent || '/' || budget.run_key
                ) AS agents
            FROM run_budgets AS budget
            LEFT JOIN accounts AS account ON account.account_id = 'run/' || budget.run_key
            LEFT JOIN limit_usage AS used ON used.limit_id = 'run/' || budget.run_key
            WHERE budget.run_key = $1
            """,
            run_key,
        )
    return None if row is None else RunBudget(**row)
