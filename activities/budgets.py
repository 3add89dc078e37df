"""Which budget a run has: what its request says, by name or in amounts, else what its tenant has by default."""

from collections.abc import Mapping

from coatcheck.errors import BudgetError
from schemas.activities import RecordInput
from schemas.budget import Budget
from schemas.config import Tenant


class Budgets:
    """The budgets of `coatcheck.toml`.

    Args:
        named: `[budgets]`.
        tenants: `[tenants]`, with the names of theirs.
    """

    def __init__(self, named: Mapping[str, Budget] | None = None, tenants: Mapping[str, Tenant] | None = None) -> None:
        self._named = named or {}
        self._tenants = tenants or {}

    def resolved(self, step: RecordInput) -> RecordInput:
        """The step with the budget itself in place of its name; the same step when it says nothing of one.

        Raises:
            BudgetError: no budget has that name.
        """
        run = step.run
        name = run.budget
        if name is None and run.brief is not None and run.tenant in self._tenants:  # a run's first step
            name = self._tenants[run.tenant].budget
        if not isinstance(name, str):
            return step
        if name not in self._named:
            known = ", ".join(self._named) or "none"
            raise BudgetError(f"there is no budget {name!r} in coatcheck.toml; there are: {known}")
        return step.model_copy(update={"run": run.model_copy(update={"budget": self._named[name]})})
