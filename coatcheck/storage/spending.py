"""What calls of models and of priced tools took: tokens and cost by call, stage, agent, model, run, tenant or day.

All sums are PostgreSQL's, which adds NUMERIC exactly; the total comes from the same statement as its parts, so that
they agree whatever is written meanwhile.
"""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from coatcheck.storage.database import Executor, query, storage_errors


class Dimension(StrEnum):
    """What spending is told by."""

    CALL = "call"
    """One line per turn: the calls of one turn are tries of the same one."""
    STAGE = "stage"
    AGENT = "agent"
    MODEL = "model"
    RUN = "run"
    TENANT = "tenant"
    DAY = "day"
    """In UTC, by the begin of the turn's latest call."""


class Spending(BaseModel):
    """What a group of turns took."""

    model_config = ConfigDict(frozen=True)

    label: dict[str, Any] = {}
    """Which group, such as `{"agent": "roy"}`; empty for the total."""
    calls: int
    """Provider calls begun; more than `turns` when some failed, were lost or are under way."""
    turns: int
    """Finished turns."""
    tokens_in: int
    """Of finished turns, cached ones included."""
    tokens_out: int
    tokens_cached: int
    cost_usd: Decimal | None
    """`None` when the price of any finished turn is unknown, or a command agent has worked."""
    priced_usd: Decimal
    """Of the turns whose price is known: at least so much was spent."""
    unpriced: int
    """Finished turns without a known price."""
    unmetered: int = 0
    """Finished rounds of command agents, which call their providers themselves: not among calls, turns and tokens."""
    models: list[str]
    """`provider:model` that wrote the answers, and `tool:server` of priced tools, in alphabetical order."""
    first_at: datetime | None
    """Begin of the earliest call that is known; `None` when there is none."""
    last_at: datetime | None


class Report(BaseModel):
    """Spending by one dimension."""

    by: Dimension
    rows: list[Spending]
    """In the order in which the groups began."""
    total: Spending


async def spending(
    executor: Executor,
    by: Dimension,
    *,
    run_key: str | None = None,
    tenant: str | None = None,
    since: datetime | None = None,
) -> Report:
    """Add up what turns took.

    Args:
        executor: Of a role that may read the operational tables.
        by: What the rows are.
        run_key: Only this run.
        tenant: Only this tenant.
        since: Only turns whose latest call began then or later; with a time zone.

    Raises:
        StorageUnavailableError: PostgreSQL is away.
    """
    with storage_errors():
        rows = await executor.fetch(query("spending"), by, run_key, tenant, since)
    *groups, total = rows
    return Report(
        by=by,
        rows=[Spending.model_validate(dict(row)) for row in groups],
        total=Spending.model_validate({**total, "label": {}}),
    )
