"""Budgets at the LLM proxy: what a turn is quoted at, what the provider is told, what the agent is told.

The reservation itself is part of the statement that claims the turn, the payment of the one that journals the answer
(`coatcheck/storage/journal.py`). Nothing here decides whether a turn fits: the database does, with the rows locked.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Any, Final

from pydantic_ai.messages import ModelResponse

from coatcheck.economy.quotes import ANSWER_TOKENS, TIGHT_ANSWER_TOKENS, Quote, Rates, quote
from coatcheck.economy.units import budget_in_microcredits, format_credits
from coatcheck.gateway.prices import PriceTable
from coatcheck.storage.journal import TurnQuote
from schemas.budget import Budget
from schemas.config import Limits, Tenant
from schemas.conversation import TurnOverBudget, TurnRequest
from schemas.ledger import Reservation

GRACE_SECONDS: Final = 300
"""A reservation outlives the longest call by this: the answer has to be journalled, also after an outage."""
_HARMLESS: Final = frozenset({"max_tokens", "temperature", "top_p", "top_k", "seed", "stop_sequences", "tool_choice"})
"""Settings of a request that make nothing dearer; the others are not passed on where something may not be exceeded."""


class BudgetDesk:
    """Quotes turns.

    Args:
        prices: Of the providers.
        limits: Of a day.
        tenants: Whose limits of a day are passed on; the database knows whose run a turn belongs to.
        call_seconds: Most time that a call may take.
    """

    def __init__(
        self, prices: PriceTable, *, limits: Limits, tenants: Mapping[str, Tenant], call_seconds: float
    ) -> None:
        self._prices = prices
        self._known: dict[tuple[str, date], Rates | None] = {}
        self._agents = {agent: _micro(budget) for agent, budget in limits.agents.items()}
        self._tenants = {name: _micro(it.per_day) for name, it in tenants.items() if it.per_day is not None}
        self._day = None if limits.per_day is None else _micro(limits.per_day)
        self._lifetime = int(call_seconds) + GRACE_SECONDS

    def quotes(self, agent: str, request: TurnRequest, model: str, *, encoded: bytes) -> Iterator[TurnQuote]:
        """What the journal needs to reserve this turn's worst case, if anything limits it; to be tried in order.

        Args:
            agent: Who asks.
            request: What for.
            model: Of whom.
            encoded: The request's messages as JSON.
        """
        claimed = [claim for claim in request.claims if claim.marker.encode() in encoded]
        bodies = sum(min(claim.deliverable.bytes, 4 * claim.limit) for claim in claimed if claim.deliverable)
        # The provider counted instructions and tools with the first turn.
        form = len(json.dumps(request.parameters)) if request.turn == 1 else 0
        given = request.settings.get("max_tokens")
        most = given if isinstance(given, int) and given > 0 else ANSWER_TOKENS
        has_brief = any(claim.deliverable is None for claim in claimed)
        for answer in (most, TIGHT_ANSWER_TOKENS) if most > TIGHT_ANSWER_TOKENS and not request.wrap_up else (most,):
            size = len(encoded) + form + bodies
            worst = quote(self._rates(model), new_bytes=size, answer_tokens=answer, is_last=bool(request.wrap_up))
            yield self._encoded(agent, model, worst, has_brief=has_brief)

    def _encoded(self, agent: str, model: str, worst: Quote, *, has_brief: bool) -> TurnQuote:
        limits = {"agent": self._agents.get(agent), "tenants": self._tenants, "day": self._day}
        document = {
            "model": model,
            "rate": None if worst.rate is None else str(worst.rate),
            "fixed": worst.fixed,
            "keep": worst.keep,
            "tokens": worst.tokens,
            "keep_tokens": worst.keep_tokens,
            "has_brief": has_brief,
            "lifetime": self._lifetime,
            "limits": limits,
        }
        is_limited = bool(limits["agent"] or self._tenants or self._day)
        return TurnQuote(json.dumps(document), is_limited=is_limited, answer_tokens=worst.answer_tokens)

    @staticmethod
    def settings(given: Mapping[str, Any], turn: TurnQuote) -> dict[str, Any]:
        """The request's settings, with the bound on the answer that was reserved."""
        return {name: value for name, value in given.items() if name in _HARMLESS} | {"max_tokens": turn.answer_tokens}

    def _rates(self, model: str) -> Rates | None:
        """Looked up once a day: the table's lookup takes longer than all the rest here."""
        key = model, datetime.now(UTC).date()
        if key not in self._known:
            price = self._prices.highest(model)
            self._known[key] = None if price is None else Rates(*price)
        return self._known[key]


def ending(request: TurnRequest, turn: TurnQuote, response: ModelResponse) -> str | None:
    """Why an answer to a reserved turn is the conversation's last; `None` when it is not."""
    if response.finish_reason == "length":
        return f"the answer was cut at {turn.answer_tokens:,} tokens, since a longer one did not fit"
    return request.wrap_up or None


def over_budget(refusal: Reservation) -> TurnOverBudget:
    """What the agent is told, in words."""
    what, _, name = refusal.by.partition("/")
    if what == "price":
        return TurnOverBudget(reason=f"no price is known for {name}, so its cost cannot be limited: set one, or tokens")
    left = format_credits(max(refusal.left, 0)) if refusal.unit == "credits" else f"{max(refusal.left, 0):,}"
    whose = "the run" if what == "run" else "everybody today" if what == "day" else f"{what} {name.split('/')[0]} today"
    unit = "" if refusal.unit == "credits" else f" {refusal.unit}"
    needed = format_credits(refusal.needed) if refusal.unit == "credits" else f"{refusal.needed:,}"
    return TurnOverBudget(reason=f"{whose} has {left}{unit} left, and the next call with a last one may take {needed}")


def _micro(budget: Budget) -> dict[str, int | None]:
    return {
        "credits": None if budget.usd is None else budget_in_microcredits(budget.usd),
        "tokens": budget.tokens,
        "calls": budget.calls,
    }
