"""The look at the streams, on a real NATS that also goes away."""

import functools
from collections.abc import Callable

from coatcheck.events.watching import look_at_backbone, look_at_ledger
from coatcheck.localstack import LocalStack
from coatcheck.messaging.accounts import LOGS
from coatcheck.messaging.streams import ensure_streams
from coatcheck.storage.database import open_pool
from coatcheck.storage.ledger import open_account
from coatcheck.telemetry import instruments
from coatcheck.telemetry.instruments import BackboneInstruments, LedgerInstruments
from schemas.streams import AUDIT_LOG, DEAD_LETTERS
from tests.integration.nats_clients import client_as
from tests.unit.measured import Measured


async def test_what_is_there_and_what_is_not(new_stack: Callable[..., LocalStack]) -> None:
    """Sizes, ages, limits, lag and dead letters; of a NATS that is away, nothing but that."""
    stack = new_stack(servers=("nats",), workers=())
    server = stack.status().nats
    assert server is not None
    measured = Measured()
    async with client_as(server, "core") as core:
        await ensure_streams(core, LOGS)
        for number in range(3):
            await core.publish("agog.events.system.core.x.y", b"{}", message_id=str(number), stream=AUDIT_LOG.name)
        await core.publish("agog.dead.projector", b"?", message_id="dead", stream=DEAD_LETTERS.name)
        look = functools.partial(look_at_backbone, core, LOGS, BackboneInstruments(measured.meter))
        await look()
        assert measured.points(instruments.PROJECTOR_LAG) == {(): 3}
        assert measured.points(instruments.DEAD_LETTERS) == {(): 1}
        assert measured.points(instruments.STREAM_MESSAGES) == {("audit_log",): 3, ("dead_letters",): 1}
        assert 0 < measured.points(instruments.STREAM_SIZE)[("audit_log",)] < 4096
        assert measured.points(instruments.STREAM_SIZE_LIMIT)[("audit_log",)] == AUDIT_LOG.max_bytes
        assert 0 < measured.points(instruments.STREAM_AGE)[("audit_log",)] < 60
        assert measured.points(instruments.BACKBONE_UP) == {(): 1}
        stack.stop_member("nats")
        await look()
        assert measured.points(instruments.BACKBONE_UP) == {(): 0}
        assert measured.points(instruments.STREAM_SIZE) == {}
        stack.start_member("nats")
        await look()
        assert measured.points(instruments.BACKBONE_UP) == {(): 1}
        assert measured.points(instruments.PROJECTOR_LAG) == {(): 3}


async def test_an_account_that_is_not_what_its_entries_say(postgres_dsn: str) -> None:
    """It is counted, and so is money that came from nowhere."""
    measured = Measured()
    books = LedgerInstruments(measured.meter)
    async with open_pool(postgres_dsn) as pool:
        await look_at_ledger(pool, books)
        assert measured.points(instruments.LEDGER_IMBALANCE) == {(): 0}
        await open_account(pool, "agent/roy")
        await pool.execute("UPDATE accounts SET balance = 5 WHERE account_id = 'agent/roy'")
        await look_at_ledger(pool, books)
        assert measured.points(instruments.LEDGER_IMBALANCE) == {(): 2}
