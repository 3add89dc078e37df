"""`python -m tests.benchmarks.ledger`: transfers on one hot account, a reservation by request and reply, an auction.

Real servers that sync every write; the figures are of a machine that does nothing else.
"""

import asyncio
import functools
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

from coatcheck.economy.auction import clear
from coatcheck.localstack import LocalStack, StackStatus
from coatcheck.messaging.accounts import load_user
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.service import serve
from coatcheck.services.ledger import LedgerService
from coatcheck.storage import ledger
from coatcheck.storage.database import Pool, open_pool
from schemas.ledger import LedgerReply, ReserveRequest, Verb
from schemas.market import Bid
from schemas.subjects import ledger_subject
from tests.integration.ledger_lab import Connection, at_once, funded

CLIENTS: Final = 50
BIDS: Final = 10_000
HOT: Final = "tenant/hot"


@dataclass(frozen=True)
class LedgerFigures:
    """What was measured."""

    transfers_per_second: float
    serializable_per_second: float
    """The same under SERIALIZABLE, with every failure tried again under its id."""
    reserve_milliseconds: float
    """The median of a request and its answer, one after the other."""
    auction_milliseconds: float
    """Of 10,000 bids: the median of ten."""


async def measure_ledger(folder: Path, each: int = 1_000) -> LedgerFigures:
    """Start NATS and PostgreSQL in `folder`; the books are checked in the end."""
    async with LocalStack(folder, servers=("nats", "postgres"), workers=()) as stack:
        status = stack.status()
        assert status.postgres is not None
        async with open_pool(status.postgres.dsn) as pool:
            await funded(pool, HOT, 10**9)
            for number in range(CLIENTS):
                await funded(pool, f"agent/a{number}", 0)
            plain = await _transfers(status.postgres.dsn, each, "read committed")
            strict = await _transfers(status.postgres.dsn, each // 20, "serializable")
            reserve = await _reserve(status, pool)
            found = await ledger.check(pool)
            assert found.is_right, found
    return LedgerFigures(plain, strict, reserve, _auction())


async def _transfers(dsn: str, each: int, isolation: str) -> float:
    async def work(connection: "Connection[asyncpg.Record]", number: int) -> None:
        await connection.execute(f"SET default_transaction_isolation = '{isolation}'")
        for item in range(each):
            while True:
                try:
                    moved = await connection.fetchval(
                        "SELECT ledger_transfer($1, 'transfer', $2, $3, 1)",
                        *(f"{isolation}/{number}/{item}", HOT, f"agent/a{number}"),
                    )
                except asyncpg.SerializationError:
                    continue
                assert moved == "moved"
                break

    began = time.perf_counter()
    await at_once(dsn, CLIENTS, work)
    return CLIENTS * each / (time.perf_counter() - began)


async def _reserve(status: StackStatus, pool: Pool, count: int = 500) -> float:
    await funded(pool, "agent/roy", 10**6)
    service = LedgerService(pool)
    endpoints = {ledger_subject(verb, "roy"): functools.partial(service.handle, verb, "roy") for verb in Verb}
    took = []
    async with (
        _client(status, "core") as core,
        _client(status, "roy") as roy,
        serve(core, name="ledger", version="1.0.0", endpoints=endpoints),
    ):
        for number in range(count):
            payload = ReserveRequest(key=f"k{number}", amount=1).model_dump_json().encode()
            began = time.perf_counter()
            reply = await roy.request(ledger_subject(Verb.RESERVE, "roy"), payload)
            took.append(time.perf_counter() - began)
            assert LedgerReply.model_validate_json(reply).reservation is not None
    return statistics.median(took) * 1000


def _client(status: StackStatus, name: str) -> NatsClient:
    assert status.nats is not None
    key = status.nats.users[name].nkey_file
    assert key is not None
    return NatsClient(status.nats.url, user=load_user(key.parent, name), name=name)


def _auction() -> float:
    chance = random.Random(7)
    bids = [
        Bid(
            bid_id=f"b{number}",
            agent=f"a{number}",
            resource="check_cpu",
            share=chance.randint(1, 20),
            price=chance.randint(0, 10**6),
        )
        for number in range(BIDS)
    ]
    took = []
    for number in range(10):
        began = time.perf_counter()
        clear(bids, floors={"idle": 1_000}, interval=str(number))
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1000


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure_ledger(Path(folder)))
    print(
        f"{figures.transfers_per_second:,.0f} transfers/s on one account ({figures.serializable_per_second:,.0f}/s "
        f"serializable), reserve {figures.reserve_milliseconds:.2f} ms, auction {figures.auction_milliseconds:.1f} ms"
    )
