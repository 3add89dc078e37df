"""`LedgerService`: serves `agog.svc.ledger.<verb>.<agent>`: an agent's own balance, statement and reservations.

The account is made of the subject's last token and of nothing in the body, and every key is put below the agent's own
name, so that nobody can see, spend or get in the way of another's money. What agents buy is paid to the market.
"""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

from pydantic import ValidationError

from coatcheck.errors import CoatcheckError, InsufficientCreditsError
from coatcheck.failpoints import failpoint
from coatcheck.storage import ledger
from coatcheck.storage.database import Pool
from schemas import errors
from schemas.ledger import (
    MARKET,
    HistoryRequest,
    LedgerReply,
    ReleaseRequest,
    ReserveRequest,
    SettleRequest,
    Verb,
    agent_account,
)

_SHOWN: Final = 500
"""Characters of a refusal."""


class LedgerService:
    """Answers agents.

    Args:
        pool: As the owner of the ledger.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._verbs: dict[Verb, Callable[[str, bytes], Awaitable[LedgerReply]]] = {
            Verb.BALANCE: self._balance,
            Verb.HISTORY: self._history,
            Verb.RESERVE: self._reserve,
            Verb.SETTLE: self._settle,
            Verb.RELEASE: self._release,
        }

    async def handle(self, verb: Verb, agent: str, payload: bytes) -> bytes:
        """Answer one request of `agent`, whose name comes from the subject.

        Returns:
            A `LedgerReply` as JSON. Whoever gets no answer asks again with the same key: it happens once.
        """
        try:
            reply = await self._verbs[verb](agent, payload)
        except ValidationError as error:
            reply = LedgerReply(code=errors.REQUEST_INVALID, message=str(error)[:_SHOWN])
        except CoatcheckError as error:
            reply = LedgerReply(code=error.code, message=str(error)[:_SHOWN], retryable=error.retryable)
        return reply.model_dump_json(exclude_none=True).encode()

    async def _balance(self, agent: str, _: bytes) -> LedgerReply:
        return LedgerReply(balance=await ledger.balance(self._pool, agent_account(agent)))

    async def _history(self, agent: str, payload: bytes) -> LedgerReply:
        request = HistoryRequest.model_validate_json(payload or b"{}")
        page = await ledger.history(self._pool, agent_account(agent), before=request.before, limit=request.limit)
        return LedgerReply(page=page)

    async def _reserve(self, agent: str, payload: bytes) -> LedgerReply:
        request = ReserveRequest.model_validate_json(payload)
        await failpoint("ledger.before_reserve")
        reservation = await ledger.reserve(
            self._pool,
            _hold_id(agent, request.key),
            account=agent_account(agent),
            target=MARKET,
            amount=request.amount,
            lifetime=timedelta(seconds=request.seconds),
            agent=agent,
        )
        await failpoint("ledger.after_reserve")
        return LedgerReply(reservation=reservation)

    async def _settle(self, agent: str, payload: bytes) -> LedgerReply:
        request = SettleRequest.model_validate_json(payload)
        hold_id = _hold_id(agent, request.key)
        held = await ledger.held_amount(self._pool, hold_id)
        if held is not None and request.amount > held:
            raise InsufficientCreditsError(
                f"{held:,} micro-credits are held under {request.key}, not {request.amount:,}"
            )
        await failpoint("ledger.before_settle")
        settled = await ledger.settle(self._pool, hold_id, amount=request.amount, memo=request.memo)
        await failpoint("ledger.after_settle")
        return LedgerReply(settled=settled)

    async def _release(self, agent: str, payload: bytes) -> LedgerReply:
        request = ReleaseRequest.model_validate_json(payload)
        return LedgerReply(released=await ledger.release(self._pool, _hold_id(agent, request.key)))


def _hold_id(agent: str, key: str) -> str:
    return f"{agent_account(agent)}/{key}"
