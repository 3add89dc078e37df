"""`agog.svc.ledger.<verb>.<agent>`: an agent sees and spends its own account, and cannot name another's."""

import functools
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel

from coatcheck.errors import MessagingUnavailableError, NotAuthorizedError
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.service import serve
from coatcheck.services.ledger import LedgerService
from coatcheck.storage import ledger
from coatcheck.storage.database import Pool, open_pool
from schemas import errors
from schemas.ledger import HoldStatus, LedgerReply, ReserveRequest, SettleRequest, Verb
from schemas.subjects import ledger_subject
from tests.integration.ledger_lab import funded
from tests.integration.nats_clients import client_as


@pytest.fixture
async def served(core: NatsClient, postgres_dsn: str) -> AsyncIterator[Pool]:
    """The service of a core worker; Roy has 1,000 micro-credits and Cynthia 5."""
    async with open_pool(postgres_dsn) as pool:
        await funded(pool, "agent/roy", 1000)
        await funded(pool, "agent/cynthia", 5)
        service = LedgerService(pool)
        endpoints = {
            ledger_subject(verb, agent): functools.partial(service.handle, verb, agent)
            for agent in ("roy", "cynthia")
            for verb in Verb
        }
        async with serve(core, name="ledger", version="1.0.0", endpoints=endpoints):
            yield pool
        assert (await ledger.check(pool)).is_right


async def ask(
    client: NatsClient, verb: Verb, agent: str, request: BaseModel | dict[str, Any] | None = None
) -> LedgerReply:
    """One request as an agent's own code would make it."""
    if isinstance(request, BaseModel):
        payload = request.model_dump_json().encode()
    else:
        payload = b"" if request is None else str(request).replace("'", '"').encode()
    return LedgerReply.model_validate_json(await client.request(ledger_subject(verb, agent), payload))


async def test_an_agent_reserves_settles_and_reads(served: Pool, roy: NatsClient) -> None:
    """Each step once, however often it is asked for."""
    assert served
    for _ in range(2):
        reply = await ask(roy, Verb.RESERVE, "roy", ReserveRequest(key="crawl-1", amount=600))
        assert reply.reservation is not None
        assert reply.reservation.status is HoldStatus.HELD
    reply = await ask(roy, Verb.BALANCE, "roy")
    assert reply.balance is not None
    assert (reply.balance.account, reply.balance.held, reply.balance.free) == ("agent/roy", 600, 400)
    told = [await ask(roy, Verb.SETTLE, "roy", SettleRequest(key="crawl-1", amount=150, memo="3 pages")) for _ in "12"]
    assert [reply.settled for reply in told] == ["settled", "duplicate"]
    reply = await ask(roy, Verb.HISTORY, "roy", {"limit": 1})
    assert reply.page is not None
    [entry] = reply.page.entries
    assert (entry.amount, entry.other, entry.agent, entry.memo) == (-150, "market", "roy", "3 pages")


async def test_what_is_not_there_is_not_held(served: Pool, roy: NatsClient) -> None:
    """Too little is an answer; a released or unknown key pays nothing; more than was held is refused."""
    assert served
    reply = await ask(roy, Verb.RESERVE, "roy", ReserveRequest(key="big", amount=1001))
    assert reply.reservation is not None
    assert (reply.reservation.status, reply.reservation.left) == (HoldStatus.REFUSED, 1000)
    await ask(roy, Verb.RESERVE, "roy", ReserveRequest(key="small", amount=10))
    assert (await ask(roy, Verb.SETTLE, "roy", {"key": "small", "amount": 11})).code == errors.INSUFFICIENT_CREDITS
    assert (await ask(roy, Verb.RELEASE, "roy", {"key": "small"})).released is True
    assert (await ask(roy, Verb.SETTLE, "roy", {"key": "small", "amount": 1})).settled == "gone"


async def test_the_body_names_nobody(served: Pool, roy: NatsClient, cynthia: NatsClient) -> None:
    """One key of two agents is two reservations; another's name in the body is a mistake, its subject is closed."""
    assert served
    await ask(roy, Verb.RESERVE, "roy", ReserveRequest(key="same", amount=600))
    await ask(cynthia, Verb.RESERVE, "cynthia", ReserveRequest(key="same", amount=5))
    assert (await ask(cynthia, Verb.RELEASE, "cynthia", {"key": "same"})).released is True
    assert (await ledger.balance(served, "agent/roy")).held == 600
    for wrong in ({"key": "x", "amount": 1, "account": "agent/roy"}, {"key": "x", "agent": "roy", "amount": 1}):
        assert (await ask(cynthia, Verb.RESERVE, "cynthia", wrong)).code == errors.REQUEST_INVALID
    for verb in Verb:
        with pytest.raises((NotAuthorizedError, MessagingUnavailableError)):
            await cynthia.request(ledger_subject(verb, "roy"), b"{}", timeout=1)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{",
        b'{"key": "x", "amount": -5}',
        b'{"key": "x", "amount": 0}',
        b'{"key": "x", "amount": 1.5}',
        b'{"key": "x", "amount": NaN}',
        b'{"key": "x", "amount": 1e400}',
        b'{"key": "x", "amount": 99999999999999999999}',
        b'{"key": "x", "amount": "10"}',
        b'{"key": "' + b"k" * 200 + b'", "amount": 1}',
        b'{"key": "\\u0000", "amount": 1}',
    ],
)
async def test_nonsense_is_refused_with_a_type(served: Pool, roy: NatsClient, payload: bytes) -> None:
    """Nothing is held, and the answer says what is wrong."""
    reply = LedgerReply.model_validate_json(await roy.request(ledger_subject(Verb.RESERVE, "roy"), payload))
    assert reply.code == errors.REQUEST_INVALID
    assert reply.message
    assert (await ledger.balance(served, "agent/roy")).held == 0


async def test_no_other_identity_can_ask(served: Pool, nats_server: NatsStatus) -> None:
    """Neither who judges nor who observes has an account."""
    assert served
    for name in ("judge", "observer"):
        async with client_as(nats_server, name) as client:
            with pytest.raises((NotAuthorizedError, MessagingUnavailableError)):
                await client.request(ledger_subject(Verb.BALANCE, "roy"), b"", timeout=1)


async def test_a_reservation_is_quick(served: Pool, roy: NatsClient) -> None:
    """The median of a request and its answer; `make bench` has the limit of 5 ms, on a machine of its own."""
    assert served
    took = []
    for number in range(100):
        began = time.perf_counter()
        await ask(roy, Verb.RESERVE, "roy", ReserveRequest(key=f"quick-{number}", amount=1))
        took.append(time.perf_counter() - began)
    assert statistics.median(took) < 0.05
