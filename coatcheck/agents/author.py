"""Who writes a report: a model through the LLM proxy. `coatcheck.agents.command` has the other kind.

An author turns an order into a validated report and leaves its files on the desk. It publishes nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Protocol

from pydantic_ai import Agent, ModelRetry, RunContext, ToolOutput, capture_run_messages
from pydantic_ai.exceptions import UnexpectedModelBehavior, UsageLimitExceeded
from pydantic_ai.messages import ModelMessage
from pydantic_ai.usage import UsageLimits

from coatcheck.agents.desk import Desk
from coatcheck.agents.instructions import load_instructions
from coatcheck.agents.partial import blocked, partial_report
from coatcheck.agents.prompt import READING_RULES
from coatcheck.agents.proxy_model import AskProxy, BudgetSpentError, ProxyModel, Spending
from coatcheck.agents.reports import Report, ReviewReport, report_model
from coatcheck.agents.toolbox import AskGateway, Toolbox
from coatcheck.agents.tools import add_tools
from coatcheck.errors import AgentLimitError, AgentOutputError
from schemas.deliverable import Deliverable, StoredDeliverable
from schemas.notice import Verdict
from schemas.pipeline import StageKind
from schemas.roles import SUBMIT_REPORT, Role


@dataclass(frozen=True)
class Spent:
    """What a round took, journalled turns included."""

    models: frozenset[str] = frozenset()
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    cost_usd: Decimal | None = None
    """`None` when a price is unknown."""


@dataclass(frozen=True)
class Written:
    """A finished report."""

    report: Report
    spent: Spent


class Author(Protocol):
    """Writes the report of one round."""

    async def write(self, task_key: str, prompt: str, desk: Desk) -> Written | StoredDeliverable:
        """Do the work; may be called again for the same task after a death, and then pays for nothing twice.

        Returns:
            The report, or what an earlier attempt has published, from an author that would do all its work again.
        """


class ModelAuthor:
    """A pydantic-ai agent whose model is a client of the LLM proxy.

    Args:
        role: Whose work it does.
        ask: Asks the LLM proxy.
        stopping: Whether the worker is about to end.
        ask_tools: Asks the MCP gateway; `None` for an agent that may call no MCP server.
    """

    def __init__(
        self, role: Role, *, ask: AskProxy, stopping: Callable[[], bool], ask_tools: AskGateway | None = None
    ) -> None:
        self._role = role
        self._ask = ask
        self._stopping = stopping
        self._ask_tools = ask_tools

    async def write(self, task_key: str, prompt: str, desk: Desk) -> Written:
        """Hold the conversation; journalled turns cost nothing. Out of budget, what there is is handed in as blocked.

        Raises:
            AgentOutputError: the model gave no valid report within its bounded tries; not retried.
            AgentLimitError: the role's turns are used up; not retried.
            TurnRefusedError: the proxy refused; carries whether to retry.
            StageParkedError: no model can be asked for a while.
            TaskFinishedError: the task is recorded as complete.
        """
        model = ProxyModel(
            self._ask, task_key=task_key, models=self._role.models, claims=desk.claims, stopping=self._stopping
        )
        limits = UsageLimits(request_limit=self._role.max_turns)
        toolboxes = [Toolbox(self._ask_tools, task_key, self._stopping)] if self._ask_tools else []
        report: Report | None = None
        with capture_run_messages() as messages:
            try:
                result = await _agent(self._role).run(
                    prompt, model=model, deps=desk, usage_limits=limits, toolsets=toolboxes
                )
                report = result.output
            except UsageLimitExceeded as error:
                raise AgentLimitError(f"{self._role.agent}: {error}") from error
            except BudgetSpentError:
                pass
            except UnexpectedModelBehavior as error:
                if model.over_budget is None:
                    raise AgentOutputError(f"{self._role.agent} gave no valid report: {error}") from error
        if model.over_budget is not None:
            report = _over_budget(report, messages, model.over_budget, role=self._role, stage=desk.order.stage)
        assert report is not None
        return Written(report, _spent(model.spending, toolboxes))


def _spent(spending: Spending, toolboxes: Sequence[Toolbox]) -> Spent:
    """What models and tools took; the cost is unknown when a model's price is."""
    models = spending.cost_usd
    return Spent(
        models=frozenset(spending.models),
        tokens_in=spending.usage.input_tokens,
        tokens_out=spending.usage.output_tokens,
        tokens_cached=spending.usage.cache_read_tokens,
        cost_usd=None if models is None else sum((it.cost_usd for it in toolboxes), models),
    )


def _over_budget(
    report: Report | None, messages: Sequence[ModelMessage], reason: str, *, role: Role, stage: str
) -> Report:
    return partial_report(role.reports, messages, reason, stage) if report is None else blocked(report, reason)


def account_for(report: Report, previous: Deliverable | None) -> str | None:
    """Make sure that a review says of each finding of the round before whether it is settled.

    An approval settles all that it does not repeat; `fixed` is completed then.

    Args:
        report: The new report; nothing is asked of one that is no review.
        previous: The review of the round before.

    Returns:
        What the review fails to say, or `None`.
    """
    if previous is None or not isinstance(report, ReviewReport):
        return None
    known = [str(finding["id"]) for finding in (previous.metadata.model_extra or {}).get("findings") or []]
    repeated = {finding.id for finding in report.findings}
    if unknown := [name for name in report.fixed if name not in known]:
        return f"fixed names {', '.join(unknown)}, but the last round's findings were {', '.join(known) or 'none'}"
    missing = [name for name in known if name not in repeated and name not in report.fixed]
    if missing and report.verdict is not Verdict.APPROVE:
        return f"is it settled or not? neither fixed nor findings has the earlier {', '.join(missing)}"
    report.fixed += missing
    return None


@cache
def _agent(role: Role) -> Agent[Desk, Report]:
    """Built once per role; it holds no state of a run."""
    agent = Agent(
        deps_type=Desk,
        output_type=ToolOutput(report_model(role.reports), name=SUBMIT_REPORT),
        instructions=f"{load_instructions(role)}\n\n{READING_RULES}",
        # A tool may be refused as often as there are turns; a report only so often.
        retries={"tools": role.max_turns, "output": role.output_retries},
    )
    add_tools(agent, role)
    if role.reports is StageKind.REVIEW:
        agent.output_validator(_accounts_for_earlier_findings)
    return agent


async def _accounts_for_earlier_findings(context: RunContext[Desk], report: Report) -> Report:
    if (problem := account_for(report, await context.deps.last_round())) is not None:
        raise ModelRetry(problem)
    return report
