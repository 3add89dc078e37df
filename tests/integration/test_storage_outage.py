"""PostgreSQL away at start, killed in the middle, giving up: one typed error, and the pool heals by itself."""

import asyncio
import logging
from collections.abc import Callable
from decimal import Decimal
from urllib.parse import urlsplit

import asyncpg
import pytest

from coatcheck.errors import StorageUnavailableError
from coatcheck.localstack import LocalStack
from coatcheck.storage import state
from coatcheck.storage.database import open_pool, storage_errors
from coatcheck.storage.journal import Claimed, Done, TurnJournal
from tests.integration.storage_rows import RUN_KEY, STEPS, TASK_KEY

ANSWER = {"kind": "response", "parts": [{"part_kind": "text", "content": "# Research"}]}


async def test_a_server_that_is_away_at_start(caplog: pytest.LogCaptureFixture) -> None:
    """The pool opens with a warning; its use fails with our error and not with the driver's."""
    with caplog.at_level(logging.WARNING):
        async with open_pool("postgresql://coatcheck:secret@127.0.0.1:1/coatcheck", min_size=2) as pool:
            assert "PostgreSQL does not answer" in caplog.text
            for _ in range(2):
                with pytest.raises(StorageUnavailableError):
                    await state.record(pool, STEPS[0])


async def test_a_wrong_password_is_not_an_outage(postgres_dsn: str) -> None:
    """Trying again would not help, so it is not dressed up as unavailable."""
    password = urlsplit(postgres_dsn).password
    assert password is not None
    wrong = postgres_dsn.replace(password, "wrong")
    with pytest.raises(asyncpg.InvalidPasswordError):
        async with open_pool(wrong):
            pass


@pytest.mark.parametrize(
    ("error", "is_away"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (asyncpg.CannotConnectNowError("the database system is starting up"), True),
        (asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"), True),
        (asyncpg.InterfaceError("connection is closed"), True),
        (asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"), True),
        (asyncpg.DiskFullError("no space left on device"), True),
        (asyncpg.InterfaceError("the server expects 3 arguments for this query, 2 were passed"), False),
        (asyncpg.UndefinedTableError('relation "workflows" does not exist'), False),
        (asyncpg.CheckViolationError("workflows_status_check"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_which_errors_mean_that_it_is_away(error: Exception, is_away: bool) -> None:  # noqa: FBT001  a parameter
    """What asyncpg has been seen to raise when a server dies, and what no second try can mend."""
    with pytest.raises(StorageUnavailableError if is_away else type(error)), storage_errors():
        raise error


@pytest.mark.parametrize(
    "statements",
    [["SELECT pg_terminate_backend(pg_backend_pid())"], ["SET LOCAL statement_timeout = 10", "SELECT pg_sleep(20)"]],
    ids=["terminated", "timed out"],
)
async def test_a_lost_connection_is_replaced(postgres_dsn: str, statements: list[str]) -> None:
    """A backend that an administrator ends, or a statement that the server gives up, leaves a usable pool."""
    async with open_pool(postgres_dsn, max_size=1) as pool:

        async def lose_it() -> None:
            with storage_errors():
                async with pool.acquire() as connection, connection.transaction():
                    for statement in statements:
                        await connection.execute(statement)

        with pytest.raises(StorageUnavailableError):
            await lose_it()
        await state.record(pool, STEPS[0])
        assert await state.read_brief(pool, RUN_KEY) == "Find customers by name."


async def test_a_killed_server_loses_nothing_and_the_pool_heals(new_stack: Callable[..., LocalStack]) -> None:
    """A kill -9 between claim and answer: acknowledged rows are there, the answer is stored by trying again."""
    stack = new_stack(servers=("postgres",), workers=())
    status = stack.status().postgres
    assert status is not None
    async with open_pool(status.dsn) as pool, open_pool(status.gateway_dsn) as gateway_pool:
        journal = TurnJournal(gateway_pool, "gateway-a")
        await journal.beat()
        for step in STEPS[:2]:
            await state.record(pool, step)
        claimed = await journal.claim(TASK_KEY, 1, agent="cynthia", request_sha256="b" * 64, model="scripted")
        assert claimed == Claimed(calls=1, failures=0)

        # Orphaned backends may serve for a moment more, so the outage is over only with the next server.
        await asyncio.to_thread(stack.wait_running, "postgres", other_than=stack.kill("postgres"))
        done = None
        while done is None:
            try:
                done = await journal.complete(
                    *(TASK_KEY, 1),
                    agent="cynthia",
                    request_messages=[],
                    response=ANSWER,
                    model="scripted",
                    tokens_in=1,
                    tokens_out=1,
                    tokens_cached=0,
                    cost_usd=Decimal(0),
                )
            except StorageUnavailableError:  # a connection of the old server
                continue

        assert done == Done(message=ANSWER, model="scripted", cost_usd=Decimal(0))
        assert await state.read_brief(pool, RUN_KEY) == "Find customers by name."
        [usage] = await journal.usage(RUN_KEY)
        assert (usage.calls, usage.turns) == (1, 1)
