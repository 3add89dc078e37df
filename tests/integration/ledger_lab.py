"""Accounts with money in them, and many clients at once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from coatcheck.storage import ledger
from coatcheck.storage.database import Pool
from schemas.ledger import TREASURY

Connection = asyncpg.Connection
Work = Callable[["Connection[asyncpg.Record]", int], Awaitable[Any]]


async def funded(pool: Pool, account: str, amount: int) -> str:
    """The account, with that much new money in it."""
    await ledger.open_account(pool, account)
    if amount:
        await ledger.transfer(
            pool, f"topup/{account}/{amount}", kind="topup", source=TREASURY, target=account, amount=amount
        )
    return account


async def at_once(dsn: str, clients: int, work: Work) -> list[Any]:
    """What `work` returned for each client, each with a connection of its own, all begun together."""
    connections = await asyncio.gather(*(asyncpg.connect(dsn) for _ in range(clients)))
    try:
        return await asyncio.gather(*(work(connection, number) for number, connection in enumerate(connections)))
    finally:
        await asyncio.gather(*(connection.close() for connection in connections))
