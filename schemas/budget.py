"""What may be spent: the budget of a run, and the limits of a day. Money in US dollars, where a price is known."""

from decimal import Decimal
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.subjects import Slug

Dollars = Annotated[Decimal, Field(gt=0, le=1_000_000, max_digits=16, decimal_places=6)]
Count = Annotated[int, Field(ge=1, le=10**12)]

BLOCKED_BY_BUDGET: Final = "budget: "
"""How the blockers of a stage begin that stopped because nothing more may be spent."""


class Allowance(BaseModel):
    """At most so much in all; what is not given is not limited."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    usd: Dollars | None = None
    """US dollars. A model without a known price needs `tokens` or `calls` besides."""
    tokens: Count | None = None
    """Of model calls, in and out."""
    calls: Count | None = None
    """Model calls."""

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if not self._limits():
            raise ValueError("a budget limits at least one of usd, tokens and calls")
        return self

    def _limits(self) -> bool:
        return (self.usd, self.tokens, self.calls) != (None, None, None)

    def __str__(self) -> str:
        """`$0.50, 200,000 tokens`."""
        said = [f"${self.usd:,.2f}" if self.usd else "", f"{self.tokens:,} tokens" if self.tokens else ""]
        return ", ".join(filter(None, [*said, f"{self.calls:,} calls" if self.calls else ""]))


class Budget(Allowance):
    """What a run may spend; within it, what single agents may."""

    agents: dict[Slug, Allowance] = {}
    """Agent → the most that its calls may use of the run's budget, over all its rounds."""

    def _limits(self) -> bool:
        return super()._limits() or bool(self.agents)

    def __str__(self) -> str:
        """`$0.50, 200,000 tokens, roy $0.20`."""
        own = [super().__str__()] if super()._limits() else []
        return ", ".join(own + [f"{agent} {allowance}" for agent, allowance in self.agents.items()])


class BudgetChange(BaseModel):
    """Argument of the update `set_budget`: what the run may spend in all from now on, what it has spent included."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    budget: Budget
    by: Annotated[str, Field(min_length=1, max_length=100)]
