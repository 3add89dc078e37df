"""The ledger: no overdraft, no second movement, zero in sum, whoever does what at the same time."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from coatcheck.errors import AccountMissingError, InsufficientCreditsError, TransferConflictError
from coatcheck.storage import ledger
from coatcheck.storage.database import Pool, open_pool
from schemas.ledger import MARKET, TREASURY, HoldStatus, Reservation
from tests.integration.ledger_lab import Connection, at_once, funded

MINUTE = timedelta(minutes=1)
ROY = "agent/roy"


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[Pool]:
    """The ledger's owner; whatever a test did, the books are right after it."""
    async with open_pool(postgres_dsn) as pool:
        yield pool
        assert (await ledger.check(pool)).is_right


async def reserve(
    pool: Pool, hold: str, amount: int, *, account: str = ROY, lifetime: timedelta = MINUTE
) -> Reservation:
    """Hold money of Roy's for the market."""
    return await ledger.reserve(
        pool, hold, account=account, target=MARKET, amount=amount, lifetime=lifetime, agent="roy"
    )


async def expire(pool: Pool, hold: str) -> None:
    """Let the time of a hold be over."""
    await pool.execute("UPDATE holds SET expires_at = now() - interval '1 s' WHERE hold_id = $1", hold)


async def test_a_transfer_moves_money_once(pool: Pool) -> None:
    """Both ends change, the same id again changes nothing, and another content under it is refused."""
    await funded(pool, ROY, 1000)
    order = {"kind": "transfer", "source": ROY, "target": MARKET, "amount": 400}
    assert [await ledger.transfer(pool, "t-1", **order) for _ in range(3)] == ["moved", "duplicate", "duplicate"]
    with pytest.raises(TransferConflictError):
        await ledger.transfer(pool, "t-1", **(order | {"amount": 401}))
    found = {item.account: item.balance for item in await ledger.balances(pool)}
    assert found == {ROY: 600, MARKET: 400, TREASURY: -1000}
    assert (await ledger.check(pool)).total == 0


async def test_what_is_refused_leaves_nothing_behind(pool: Pool) -> None:
    """Too little, nobody, negative, nothing, to itself, more than a number holds; the id is free afterwards."""
    await funded(pool, ROY, 100)
    order: dict[str, Any] = {"kind": "transfer", "source": ROY, "target": MARKET, "amount": 101}
    with pytest.raises(InsufficientCreditsError, match="agent/roy has less than 101"):
        await ledger.transfer(pool, "t", **order)
    with pytest.raises(AccountMissingError, match="agent/nobody"):
        await ledger.transfer(pool, "t", **(order | {"source": "agent/nobody"}))
    with pytest.raises(AccountMissingError, match="agent/nobody"):
        await ledger.transfer(pool, "t", **(order | {"target": "agent/nobody", "amount": 1}))
    for wrong in ({"amount": 0}, {"amount": -5}, {"amount": 10**18}, {"target": ROY}):
        with pytest.raises(ValueError, match="is no transfer"):
            await ledger.transfer(pool, "t", **(order | wrong))
    assert await ledger.transfer(pool, "t", **(order | {"amount": 100})) == "moved"


@pytest.mark.parametrize(
    "statement",
    ["UPDATE transactions SET amount = 1", "DELETE FROM transactions", "TRUNCATE transactions"],
)
async def test_transactions_only_grow(pool: Pool, statement: str) -> None:
    """Not even for the owner, and not where no row is changed."""
    with pytest.raises(asyncpg.RestrictViolationError, match="transactions is append-only"):
        await pool.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE accounts SET balance = -1 WHERE account_id = 'market'",
        "UPDATE accounts SET held = 1 WHERE account_id = 'market'",
        "UPDATE accounts SET held = -1 WHERE account_id = 'treasury'",
        "INSERT INTO accounts (account_id) VALUES ('pocket/roy')",
    ],
)
async def test_accounts_cannot_be_overdrawn_behind_the_functions_back(pool: Pool, statement: str) -> None:
    """The treasury alone may be negative, and nothing is held that is not there."""
    with pytest.raises(asyncpg.CheckViolationError):
        await pool.execute(statement)


async def test_a_reservation_is_settled_to_what_was_used(pool: Pool) -> None:
    """The rest is free again; settling twice pays once."""
    await funded(pool, ROY, 1000)
    assert await reserve(pool, "h", 700) == Reservation(status=HoldStatus.HELD, amount=700)
    assert await reserve(pool, "other", 400) == Reservation(
        status=HoldStatus.REFUSED, by=ROY, unit="credits", left=300, needed=400
    )
    with pytest.raises(InsufficientCreditsError):  # what is held is not there for anything else
        await ledger.transfer(pool, "t", kind="transfer", source=ROY, target=MARKET, amount=301)
    assert [await ledger.settle(pool, "h", amount=250) for _ in range(2)] == ["settled", "duplicate"]
    assert (await reserve(pool, "h", 700)).status is HoldStatus.SETTLED
    after = await ledger.balance(pool, ROY)
    assert (after.balance, after.held, after.free) == (750, 0, 750)


async def test_the_same_reservation_again_replaces_itself(pool: Pool) -> None:
    """A call that is made again, perhaps at another price, holds once."""
    await funded(pool, ROY, 1000)
    for amount in (600, 600, 900):
        assert (await reserve(pool, "h", amount)).status is HoldStatus.HELD
    assert (await ledger.balance(pool, ROY)).held == 900
    assert [await ledger.release(pool, "h") for _ in range(2)] == [True, False]
    assert (await ledger.balance(pool, ROY)).free == 1000
    assert await ledger.settle(pool, "h", amount=10) == "gone"


async def test_a_reservation_that_outlives_its_call_expires(pool: Pool) -> None:
    """The next look at the account gives it back, and so does whoever looks after all of them."""
    await funded(pool, ROY, 1000)
    await reserve(pool, "lost", 1000)
    assert (await reserve(pool, "next", 1000)).status is HoldStatus.REFUSED
    await expire(pool, "lost")
    assert (await reserve(pool, "next", 1000)).status is HoldStatus.HELD
    await expire(pool, "next")
    assert [await ledger.release_expired(pool) for _ in range(2)] == [1, 0]
    assert (await ledger.balance(pool, ROY)).free == 1000


async def test_five_hundred_at_once_and_a_hundred_fit(pool: Pool, postgres_dsn: str) -> None:
    """Exactly a hundred reservations are granted, the others are told what is left; nobody waits for ever."""
    await funded(pool, ROY, 100 * 70 + 69)

    async def work(connection: "Connection[asyncpg.Record]", number: int) -> list[str]:
        # Ten of each client's one after the other, fifty clients together: 500 that want the same money.
        outcomes = []
        for item in range(10):
            row = await connection.fetchval(
                "SELECT ledger_reserve($1, $2, $3, 70, $4) ->> 'status'", f"h-{number}-{item}", ROY, MARKET, MINUTE
            )
            outcomes.append(row)
        return outcomes

    outcomes = Counter(status for group in await at_once(postgres_dsn, 50, work) for status in group)
    assert outcomes == {"held": 100, "refused": 400}
    found = await ledger.balance(pool, ROY)
    assert (found.held, found.free) == (7000, 69)


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
async def test_a_hot_account_is_never_overdrawn(pool: Pool, postgres_dsn: str, isolation: str) -> None:
    """Many clients spend one account in both directions; a serialization failure is tried again under the same id."""
    agents = [await funded(pool, f"agent/a{number}", 0) for number in range(10)]
    await funded(pool, "tenant/hot", 300)
    each = 20 if isolation == "read committed" else 5

    async def work(connection: "Connection[asyncpg.Record]", number: int) -> Counter[str]:
        await connection.execute(f"SET default_transaction_isolation = '{isolation}'")
        seen: Counter[str] = Counter()
        for item in range(each):
            ends = ("tenant/hot", agents[number % 10]) if item % 4 else (agents[number % 10], "tenant/hot")
            seen[await _until_decided(connection, f"{number}-{item}", *ends)] += 1
            if item % 5 == 0:
                seen[f"again {await _until_decided(connection, f'{number}-{item}', *ends)}"] += 1
        return seen

    seen = sum(await at_once(postgres_dsn, 50, work), Counter[str]())
    hot = await ledger.balance(pool, "tenant/hot")
    spent = sum([(await ledger.balance(pool, agent)).balance for agent in agents])
    assert hot.balance >= 0
    assert hot.balance + spent == 300
    assert seen["moved"] + seen["refused"] == 50 * each
    assert seen["moved"] + seen["again moved"] == await pool.fetchval(
        "SELECT count(*) FROM transactions WHERE kind = 'transfer'"
    )


async def _until_decided(connection: "Connection[asyncpg.Record]", name: str, source: str, target: str) -> str:
    while True:
        try:
            moved = await connection.fetchval("SELECT ledger_transfer($1, 'transfer', $2, $3, 1)", name, source, target)
        except asyncpg.SerializationError:
            await asyncio.sleep(0)
        except asyncpg.PostgresError as error:
            if error.sqlstate != "CL001":
                raise
            return "refused"
        else:
            return str(moved)


async def test_a_statement_is_read_page_by_page(pool: Pool) -> None:
    """Newest first, each entry once, also while new ones come in; by agent and time there is an index."""
    await funded(pool, ROY, 100)
    for number in range(7):
        await ledger.transfer(pool, f"t-{number}", kind="transfer", source=ROY, target=MARKET, amount=1 + number)
    page = await ledger.history(pool, ROY, limit=3)
    await ledger.transfer(pool, "late", kind="transfer", source=ROY, target=MARKET, amount=50)
    seen = [entry.amount for entry in page.entries]
    while page.before is not None:
        page = await ledger.history(pool, ROY, before=page.before, limit=3)
        seen += [entry.amount for entry in page.entries]
    assert seen == [-7, -6, -5, -4, -3, -2, -1, 100]
    plan = await pool.fetch(
        "EXPLAIN SELECT * FROM entries WHERE account_id = 'agent/roy' AND sequence < 5 ORDER BY sequence DESC LIMIT 3"
    )
    assert "Seq Scan" not in "".join(row[0] for row in plan)


async def test_check_finds_what_does_not_add_up(pool: Pool) -> None:
    """A balance that was changed by hand, and what is held without a hold."""
    await funded(pool, ROY, 100)
    async with pool.acquire() as connection:
        change = connection.transaction()
        await change.start()
        await connection.execute("UPDATE accounts SET balance = balance + 5, held = 2 WHERE account_id = 'agent/roy'")
        found = await ledger.check(connection)
        await change.rollback()
    assert not found.is_right
    assert (found.total, found.drifted) == (5, [ROY])


async def test_a_killed_client_leaves_all_or_nothing(pool: Pool, postgres_dsn: str) -> None:
    """A connection that breaks in the middle of a movement: made again under its id, it has moved once."""
    await funded(pool, ROY, 1000)
    for _ in range(20):
        name = str(uuid.uuid4())
        connection = await asyncpg.connect(postgres_dsn)
        pending = asyncio.create_task(
            connection.fetchval("SELECT ledger_transfer($1, 'transfer', $2, $3, 1), pg_sleep(0.001)", name, ROY, MARKET)
        )
        await asyncio.sleep(0)
        connection.terminate()
        await asyncio.gather(pending, return_exceptions=True)
        await ledger.transfer(pool, name, kind="transfer", source=ROY, target=MARKET, amount=1)
    assert (await ledger.balance(pool, MARKET)).balance == 20
