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
from coatcheck.economy.units import budget_in_microcredits, cost_in_microcredits, format_credits
from coatcheck.gateway.prices import PriceTable
from coatcheck.storage.journal import TurnQuote
from schemas.budget import Allowance
from schemas.config import Limits, Tenant
from schemas.conversation import TurnOverBudget, TurnRequest
from schemas.ledger import Reservation
from schemas.mcp import McpServer

GRACE_SECONDS: Final = 300
"""A reservation outlives the longest call by this: the answer has to be journalled, also after an outage."""
_HARMLESS: Final = frozenset({"max_tokens", "temperature", "top_p", "top_k", "seed", "stop_sequences", "tool_choice"})
"""Settings of a request that make nothing dearer; the others are not passed on where something may not be exceeded."""


class DayLimits:
    """What may be used on one day, as the database takes it.

    Args:
        limits: Of everybody, and of single agents.
        tenants: Whose limits of a day are passed on; the database knows whose run a call belongs to.
    """

    def __init__(self, limits: Limits, tenants: Mapping[str, Tenant]) -> None:
        self._agents = {agent: _micro(budget) for agent, budget in limits.agents.items()}
        self._tenants = {name: _micro(it.per_day) for name, it in tenants.items() if it.per_day is not None}
        self._day = None if limits.per_day is None else _micro(limits.per_day)

    def of(self, agent: str) -> dict[str, Any]:
        """Those that a call of that agent may meet; of its run and tenant the database knows more."""
        return {"agent": self._agents.get(agent), "tenants": self._tenants, "day": self._day}

    def tool_quote(self, agent: str, server: McpServer) -> str | None:
        """What one call of a server costs, for `reserve_tool`; `None` when it costs nothing."""
        if not server.cost_usd:
            return None
        lifetime = int(server.timeout_seconds) + GRACE_SECONDS
        return json.dumps(
            {"cost": cost_in_microcredits(server.cost_usd), "lifetime": lifetime, "limits": self.of(agent)}
        )


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
        self._limits = DayLimits(limits, tenants)
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
        limits = self._limits.of(agent)
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
        is_limited = any(limits.values())
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
    if refusal.by.startswith("price/"):
        name = refusal.by.partition("/")[2]
        return TurnOverBudget(reason=f"no price is known for {name}, so its cost cannot be limited: set one, or tokens")
    needed = format_credits(refusal.needed) if refusal.unit == "credits" else f"{refusal.needed:,}"
    return TurnOverBudget(reason=f"{what_is_left(refusal)} left, and the next call with a last one may take {needed}")


def tool_refused(refusal: Reservation) -> str:
    """What the agent is told when a call of a tool does not fit."""
    needed = format_credits(refusal.needed)
    return f"{what_is_left(refusal)} left, and this call with a last one of the model may take {needed}"


def what_is_left(refusal: Reservation) -> str:
    """`the run has $0.10`: who is short, and how much it still has."""
    what, _, name = refusal.by.partition("/")
    whose = {
        "run": "the run",
        "day": "everybody today",
        "run-agent": f"agent {name.split('/')[0]} in this run",
    }.get(what, f"{what} {name.split('/')[0]} today")
    if refusal.unit == "credits":
        return f"{whose} has {format_credits(max(refusal.left, 0))}"
    return f"{whose} has {max(refusal.left, 0):,} {refusal.unit}"


def _micro(budget: Allowance) -> dict[str, int | None]:
    return {
        "credits": None if budget.usd is None else budget_in_microcredits(budget.usd),
        "tokens": budget.tokens,
        "calls": budget.calls,
    }
