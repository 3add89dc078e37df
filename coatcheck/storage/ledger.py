"""Balances, statements and movements of credits. Money moves through the function `ledger_transfer` and nothing else.

The rules are in the migration beside the tables, so that whoever has a connection is held to them; this module calls
and translates. Every movement has an id: whoever is not sure does it again, and it is done once.
"""

from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, Literal

import asyncpg
from pydantic import BaseModel, ConfigDict

from coatcheck.errors import AccountMissingError, InsufficientCreditsError, TransferConflictError
from coatcheck.storage.database import Executor, storable_text, storage_errors
from schemas.ledger import MAX_PAGE, MOST_MICROCREDITS, Balance, Entry, Page, Reservation

Moved = Literal["moved", "duplicate"]
Settled = Literal["settled", "duplicate", "gone"]

_REFUSALS: Final = {
    "CL001": InsufficientCreditsError,
    "CL002": AccountMissingError,
    "CL003": TransferConflictError,
}
"""SQLSTATE that the functions raise → ours."""
_BALANCE: Final = "SELECT account_id AS account, balance, held, balance - held AS free FROM accounts"
_ENTRY: Final = """
    SELECT sequence, transfer_id, kind, account_id AS account, other_id AS other, amount, agent_id AS agent, memo,
        "timestamp"
    FROM entries
"""


class LedgerCheck(BaseModel):
    """Whether the books are right."""

    model_config = ConfigDict(frozen=True)

    accounts: int
    transactions: int
    total: int
    """Of all balances; 0."""
    drifted: list[str]
    """Accounts whose balance is not the sum of their entries, or whose `held` is not that of their holds."""
    holds: int
    expired: int
    """Holds that are given back at the next look at their account, or by the next reconcile."""
    shortfall: int
    """Micro-credits that the treasury has paid because something cost more than was held and free."""

    @property
    def is_right(self) -> bool:
        """Whether nothing is wrong: an expired hold and a shortfall are as they should be."""
        return self.total == 0 and not self.drifted


@contextmanager
def ledger_errors() -> Generator[None]:
    """Turn the functions' refusals into ours.

    Raises:
        InsufficientCreditsError: the source has too little.
        AccountMissingError: there is no such account.
        TransferConflictError: the id belongs to a transfer with other contents.
        StorageUnavailableError: PostgreSQL is away; do it again under the same id.
    """
    try:
        with storage_errors():
            yield
    except asyncpg.PostgresError as error:
        refusal = _REFUSALS.get(error.sqlstate or "")
        if refusal is None:
            raise
        raise refusal(str(error)) from error


async def open_account(executor: Executor, account: str) -> None:
    """Make the account unless it is there."""
    with storage_errors():
        await executor.execute("INSERT INTO accounts (account_id) VALUES ($1) ON CONFLICT DO NOTHING", account)


async def transfer(
    executor: Executor, transfer_id: str, *, kind: str, source: str, target: str, amount: int, memo: str = ""
) -> Moved:
    """Move micro-credits.

    Returns:
        `duplicate` when this very transfer was made before: nothing has moved again.

    Raises:
        ValueError: the amount is not between 1 and 10^15, or both ends are one account.
        InsufficientCreditsError: the source has less than that free, the treasury excepted.
        AccountMissingError: one of the accounts does not exist.
        TransferConflictError: the id belongs to another transfer.
    """
    if not 0 < amount <= MOST_MICROCREDITS or source == target:
        raise ValueError(f"{amount} micro-credits from {source} to {target} is no transfer")
    with ledger_errors():
        moved: Moved = await executor.fetchval(
            "SELECT ledger_transfer($1, $2, $3, $4, $5, NULL, $6)",
            *(transfer_id, kind, source, target, amount, storable_text(memo)),
        )
    return moved


async def reserve(
    executor: Executor, hold_id: str, *, account: str, target: str, amount: int, lifetime: timedelta, agent: str
) -> Reservation:
    """Hold micro-credits of an account for a payment to `target`; a refusal is a result.

    Raises:
        AccountMissingError: there is no such account.
    """
    with ledger_errors():
        row = await executor.fetchval(
            "SELECT ledger_reserve($1, $2, $3, $4, $5, $6)", hold_id, account, target, amount, lifetime, agent
        )
    return Reservation.model_validate(row)


async def settle(executor: Executor, hold_id: str, *, amount: int, memo: str = "") -> Settled:
    """Pay `amount` of what is held to the hold's target and free the rest."""
    with ledger_errors():
        settled: Settled = await executor.fetchval(
            "SELECT ledger_settle($1, 'purchase', $2, 0, $3)", hold_id, amount, storable_text(memo)
        )
    return settled


async def release(executor: Executor, hold_id: str) -> bool:
    """Free what is held; `False` when nothing is."""
    with storage_errors():
        released: bool = await executor.fetchval("SELECT ledger_release($1)", hold_id)
    return released


async def held_amount(executor: Executor, hold_id: str) -> int | None:
    """What is held under the id; `None` when nothing is."""
    with storage_errors():
        amount: int | None = await executor.fetchval("SELECT amount FROM holds WHERE hold_id = $1", hold_id)
    return amount


async def release_expired(executor: Executor, limit: int = 1000) -> int:
    """Give back what is held beyond its time, each in a transaction of its own; how many were."""
    with storage_errors():
        rows = await executor.fetch(
            "SELECT hold_id FROM holds WHERE expires_at <= now() ORDER BY expires_at LIMIT $1", limit
        )
    return sum([await release(executor, row["hold_id"]) for row in rows])


async def balance(executor: Executor, account: str) -> Balance:
    """One account.

    Raises:
        AccountMissingError: there is no such account.
    """
    with storage_errors():
        row = await executor.fetchrow(f"{_BALANCE} WHERE account_id = $1", account)
    if row is None:
        raise AccountMissingError(f"there is no account {account}")
    return Balance(**row)


async def balances(executor: Executor, *, limit: int = MAX_PAGE, after: str = "") -> list[Balance]:
    """A page of all accounts by name; the next one begins `after` the last name of this one."""
    with storage_errors():
        rows = await executor.fetch(
            f"{_BALANCE} WHERE account_id > $1 ORDER BY account_id LIMIT $2", after, min(limit, MAX_PAGE)
        )
    return [Balance(**row) for row in rows]


async def history(executor: Executor, account: str, *, before: int | None = None, limit: int = 50) -> Page:
    """A page of an account's entries, newest first.

    Args:
        executor: Where to look.
        account: Whose.
        before: `Page.before` of the page above.
        limit: Entries of the page, at most 500.
    """
    with storage_errors():
        rows = await executor.fetch(
            f"{_ENTRY} WHERE account_id = $1 AND sequence < coalesce($2, 9223372036854775807)"
            " ORDER BY sequence DESC LIMIT $3",
            *(account, before, min(limit, MAX_PAGE)),
        )
    entries = [Entry(**row) for row in rows]
    return Page(entries=entries, before=entries[-1].sequence if len(entries) == min(limit, MAX_PAGE) else None)


async def check(executor: Executor) -> LedgerCheck:
    """Add everything up; reads the whole ledger."""
    with storage_errors():
        row = await executor.fetchrow(
            """
            WITH moved AS (
                SELECT account_id, sum(amount) AS amount FROM entries GROUP BY account_id
            ),
            reserved AS (
                SELECT account_id, sum(amount) AS amount FROM holds GROUP BY account_id
            )
            SELECT
                (SELECT count(*) FROM accounts) AS accounts,
                (SELECT count(*) FROM transactions) AS transactions,
                (SELECT coalesce(sum(balance), 0)::bigint FROM accounts) AS total,
                ARRAY(
                    SELECT coalesce(accounts.account_id, moved.account_id)
                    FROM accounts FULL JOIN moved USING (account_id) LEFT JOIN reserved USING (account_id)
                    WHERE accounts.balance IS DISTINCT FROM coalesce(moved.amount, 0)
                        OR accounts.held IS DISTINCT FROM coalesce(reserved.amount, 0)
                    ORDER BY 1
                ) AS drifted,
                (SELECT count(*) FROM holds) AS holds,
                (SELECT count(*) FROM holds WHERE expires_at <= now()) AS expired,
                (SELECT coalesce(sum(amount), 0)::bigint FROM transactions WHERE kind = 'shortfall') AS shortfall
            """
        )
    assert row is not None
    return LedgerCheck(**row)
