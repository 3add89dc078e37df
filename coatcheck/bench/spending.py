"""What a run has taken, by its turns."""

from dataclasses import dataclass
from decimal import Decimal

from coatcheck.bench.findings import Violation
from coatcheck.bench.recording import Recording
from schemas.events import TurnCompleted
from schemas.scenario import Budget


@dataclass(frozen=True)
class Spending:
    """Sums over the turns of a run."""

    tokens: int
    usd: Decimal | None
    """`None` when a price is unknown."""
    calls: int
    turns: int


def spending(recording: Recording) -> Spending:
    """Add the turns up; a turn that is told twice is counted once."""
    turns = list({event.event_id: event.payload for _, event in recording.of(TurnCompleted)}.values())
    costs = [turn.cost_usd for turn in turns]
    known = [cost for cost in costs if cost is not None]
    return Spending(
        tokens=sum(turn.tokens_in + turn.tokens_out for turn in turns),
        usd=sum(known, Decimal(0)) if len(known) == len(costs) else None,
        calls=sum(turn.calls for turn in turns),
        turns=len(turns),
    )


def budget_violations(recording: Recording, budget: Budget) -> list[Violation]:
    """What was taken beyond the budget."""
    spent, found = spending(recording), []
    if budget.tokens is not None and spent.tokens > budget.tokens:
        found.append(f"{spent.tokens:,} tokens, at most {budget.tokens:,} are allowed")
    if budget.calls is not None and spent.calls > budget.calls:
        found.append(f"{spent.calls} model calls, at most {budget.calls} are allowed")
    if budget.usd is not None and spent.usd is None:
        found.append("the price of a turn is unknown, so no budget in dollars can be kept")
    if budget.usd is not None and spent.usd is not None and spent.usd > Decimal(str(budget.usd)):
        found.append(f"${spent.usd}, at most ${budget.usd:g} is allowed")
    return [Violation(rule="budget", message=text) for text in found]
