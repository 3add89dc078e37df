"""The agent's loop: from a tiny input to a published deliverable and a notice, in one activity.

Order and idempotency: the turns are journalled by the proxy under (task key, turn); the deliverable is published with
the task key as its message id; the notice names what is stored. A second attempt replays the turns for nothing, finds
its message on the stream and returns the same ticket, wherever the first one died.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

from pydantic_ai import Agent, ModelRetry, RunContext, ToolOutput
from pydantic_ai.exceptions import UnexpectedModelBehavior, UsageLimitExceeded
from pydantic_ai.usage import RunUsage, UsageLimits

from coatcheck.agents.prompt import READING_RULES, build_prompt, deliverable_claim, deliverable_section
from coatcheck.agents.proxy_model import AskProxy, ProxyModel, TaskFinishedError
from coatcheck.agents.reports import Report, report_model
from coatcheck.agents.roles import FETCH_DELIVERABLE, SUBMIT_REPORT, Role, load_instructions
from coatcheck.errors import AgentLimitError, AgentOutputError
from coatcheck.failpoints import failpoint
from coatcheck.messaging.deliverables import DeliverableService
from schemas.activities import StageOrder
from schemas.conversation import Claim
from schemas.deliverable import Deliverable, DeliverableMetadata, DeliverableRef
from schemas.notice import Notice
from schemas.streams import stream_name
from schemas.subjects import deliverable_subject


@dataclass
class Desk:
    """What the tools of one task work with."""

    feature: str
    tickets: dict[str, DeliverableRef]
    """Stage → its latest deliverable in this run."""
    claims: list[Claim]


@dataclass(frozen=True)
class Task:
    """One attempt at one round of one stage."""

    order: StageOrder
    task_key: str
    attempt: int


class StageRunner:
    """Runs rounds for one agent identity."""

    def __init__(
        self, role: Role, *, ask: AskProxy, deliverables: DeliverableService, stopping: Callable[[], bool]
    ) -> None:
        self._role = role
        self._ask = ask
        self._deliverables = deliverables
        self._stopping = stopping

    async def run(self, task: Task) -> Notice:
        """Do the round and return its notice.

        Raises:
            AgentOutputError: the model gave no valid report within its bounded tries; not retried.
            AgentLimitError: the role's turns are used up; not retried.
            TurnRefusedError: the proxy refused; carries whether to retry.
            DeliverableTooLargeError: the report does not fit into a message; not retried.
            MessagingUnavailableError: the publish is indeterminate; a retry finds out.
        """
        started = time.monotonic()
        prompt, claims = build_prompt(self._role, task.order)
        model = ProxyModel(
            self._ask,
            task_key=task.task_key,
            model=self._role.model,
            claims=claims,
            stopping=self._stopping,
        )
        try:
            report, usage = await self._talk(model, prompt, _desk(task.order, claims))
        except TaskFinishedError as finished:
            return finished.notice
        deliverable = self._wrap(report, task.order, model, seconds=time.monotonic() - started)
        ref = await self._publish(deliverable, task)
        return self._notice(report, usage, model, ref=ref, task=task)

    async def _talk(self, model: ProxyModel, prompt: str, desk: Desk) -> tuple[Report, RunUsage]:
        limits = UsageLimits(request_limit=self._role.max_turns)
        try:
            result = await _agent(self._role).run(prompt, model=model, deps=desk, usage_limits=limits)
        except UsageLimitExceeded as error:
            raise AgentLimitError(f"{self._role.agent}: {error}") from error
        except UnexpectedModelBehavior as error:
            raise AgentOutputError(f"{self._role.agent} gave no valid report: {error}") from error
        return result.output, result.usage

    def _wrap(self, report: Report, order: StageOrder, model: ProxyModel, *, seconds: float) -> Deliverable:
        metadata = DeliverableMetadata(
            agent=self._role.agent,
            taskType=self._role.task_type,
            feature=order.feature,
            timestamp=datetime.now(UTC),
            files_analyzed=report.files_analyzed,
            duration_minutes=round(seconds / 60, 3),
            model=", ".join(sorted(model.spending.models)),
            **report.custom_fields(),
        )
        return Deliverable(content=report.report, metadata=metadata)

    async def _publish(self, deliverable: Deliverable, task: Task) -> DeliverableRef:
        await failpoint("agent.before_publish")
        ref = await self._deliverables.publish_report(
            deliverable,
            task_key=task.task_key,
            stream=stream_name(self._role.task_type),
            subject=self._subject(task.order),
        )
        await failpoint("agent.after_publish")
        return ref

    def _subject(self, order: StageOrder) -> str:
        return deliverable_subject(self._role.agent, self._role.task_type, order.feature)

    def _notice(self, report: Report, usage: RunUsage, model: ProxyModel, *, ref: DeliverableRef, task: Task) -> Notice:
        optional = {
            "cost_usd": model.spending.cost_usd,
            "attempt": task.attempt if task.attempt > 1 else None,
            **report.notice_fields(),
        }
        return self._deliverables.create_notice(
            agent=self._role.agent,
            feature=task.order.feature,
            subject=self._subject(task.order),
            ref=ref,
            summary=report.summary,
            status="blocked" if report.blocked else "complete",
            complexity=report.complexity,
            blockers=report.blockers,
            ready_for_next_stage=not report.blocked,
            files_modified=report.files_modified,
            completion_time=datetime.now(UTC),
            round=task.order.round,
            tokens_in=usage.input_tokens,
            tokens_out=usage.output_tokens,
            **{name: value for name, value in optional.items() if value is not None},
        )


def _desk(order: StageOrder, claims: list[Claim]) -> Desk:
    return Desk(
        feature=order.feature, tickets={item.stage: item.ref for item in (*order.tickets, *order.inputs)}, claims=claims
    )


@cache
def _agent(role: Role) -> Agent[Desk, Report]:
    """Built once per role; it holds no state of a run."""
    agent = Agent(
        deps_type=Desk,
        output_type=ToolOutput(report_model(role.kind), name=SUBMIT_REPORT),
        instructions=f"{load_instructions(role)}\n\n{READING_RULES}",
        retries=role.output_retries,
    )
    if FETCH_DELIVERABLE in role.tools:
        agent.tool(fetch_deliverable)
    return agent


async def fetch_deliverable(context: RunContext[Desk], stage: str, offset: int = 0) -> str:
    """Read what another stage of this run has delivered.

    Args:
        context: Given by the framework.
        stage: Name of the stage, such as "research".
        offset: First character to show; use it to go on where an earlier text was cut.
    """
    desk = context.deps
    if stage not in desk.tickets:
        raise ModelRetry(f"no stage {stage!r} has delivered yet; there are: {', '.join(desk.tickets) or 'none'}")
    claim = deliverable_claim(desk.tickets[stage], stage, offset=offset)
    desk.claims.append(claim)
    return deliverable_section(claim, desk.tickets[stage], stage, desk.feature)
