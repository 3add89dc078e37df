"""The answer of `why` as data: the JSON of `why --json`, and what the screen is drawn from.

Composed from facts of several sources, any of which may be missing; nothing here asks a server.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Final

from pydantic import BaseModel

from coatcheck.cli.pending import PendingActivity, TemporalView
from coatcheck.cli.progress import ENDED
from coatcheck.cli.runs import FoundRun
from coatcheck.storage.budgets import RunBudget
from coatcheck.storage.spending import Report, Spending
from coatcheck.storage.state import EventRecord, RunRecord, TaskRecord
from schemas.notice import Notice
from schemas.pipeline import Progress, StageProgress, StageState, TaskNotice
from schemas.review import FindingMark
from schemas.tracing import trace_id
from schemas.workflow_ids import activity_id

BUSY: Final = frozenset({StageState.WAITING, StageState.PARKED, StageState.RUNNING, StageState.FAILED})
LAST_EVENTS: Final = 20
"""As many as are worth having in the JSON; the screen has room for fewer, `coatcheck events` has all."""
_DETAILS: Final = frozenset({"turn.completed", "tool.completed", "deliverable.published", "stage.accepted"})
"""Events that other parts of the screen sum up: calls and tokens, messages, reasons."""


class Wait(BaseModel):
    """One thing that the run waits for, and what makes it go on."""

    what: str
    stage: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    """When it goes on or ends by itself."""
    remedies: list[str] = []
    """Commands, most useful first."""


class StageLine(BaseModel):
    """One stage: where it is and what all its rounds took."""

    stage: str
    agent: str
    state: str
    round: int
    verdict: str | None = None
    reason: str = ""
    """Why it was accepted, or is parked."""
    models: list[str] = []
    calls: int | None = None
    """Provider calls begun; `None` when PostgreSQL could not be asked."""
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_cached: int | None = None
    tokens: int
    cost_usd: Decimal | None
    """`None` when the price of any turn is unknown."""
    unpriced: int = 0


class Judgement(BaseModel):
    """What a review or a test said of one round."""

    task: str
    """`critique-1`."""
    agent: str
    verdict: str
    findings: list[str] = []
    """Ids of the open findings; those that are major end with `!`."""
    rework: list[str] = []
    """Stages that a test sends back."""
    checks_passed: int | None = None
    checks_failed: int | None = None
    failed_checks: list[str] = []
    summary: str


class ProducedFile(BaseModel):
    """A file of a deliverable."""

    path: str
    bytes: int


class Message(BaseModel):
    """The latest deliverable of a stage, and its files."""

    stage: str
    task: str
    message: str
    """`STREAM:SEQ`, as `coatcheck fetch` takes it."""
    bytes: int
    files: list[ProducedFile] | None = None
    """`None` when the deliverable could not be read."""
    problem: str | None = None


class Happening(BaseModel):
    """One line of the audit log."""

    when: datetime
    event: str
    stage: str | None
    agent: str | None
    reason: str


class Explanation(BaseModel):
    """Everything that `why` knows of a run."""

    feature: str | None
    workflow_id: str
    run_key: str
    tenant: str | None
    status: str
    stage: str | None
    """The stage that everything hangs on, of several the first one; where the run ended, if it ended early."""
    round: int | None
    since: datetime | None
    """Since when that is so."""
    started_at: datetime | None
    ended_at: datetime | None
    error: str | None
    waits: list[Wait] = []
    pending: list[PendingActivity] = []
    stages: list[StageLine] = []
    total: Spending | None = None
    budget: RunBudget | None = None
    """What it may spend and has; `None` without a budget, or when PostgreSQL could not be asked."""
    judgements: list[Judgement] = []
    messages: list[Message] = []
    events: list[Happening] = []
    """The last ones, in order."""
    ui_url: str | None = None
    trace_id: str | None = None
    """Of the run's trace, where traces are made."""
    trace_url: str | None = None
    """Its page in Phoenix."""
    missing: list[str] = []
    """Sources that did not answer, so that what is told may be old or incomplete."""


@dataclass
class Facts:
    """What could be learnt; everything but the names may be missing."""

    workflow_id: str
    run_key: str
    found: FoundRun | None = None
    view: TemporalView | None = None
    progress: Progress | None = None
    has_answered: bool = False
    """`progress` is the workflow's own."""
    record: RunRecord | None = None
    tasks: list[TaskRecord] = field(default_factory=list)
    notices: list[TaskNotice] = field(default_factory=list)
    events: list[EventRecord] = field(default_factory=list)
    stages: Report | None = None
    calls: Report | None = None
    budget: RunBudget | None = None
    messages: list[Message] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    troubles: list[Wait] = field(default_factory=list)
    """Servers and workers that are down."""
    ui_url: str | None = None
    trace_url: str | None = None
    has_traces: bool = False
    """A tracer has read the audit log, or this environment knows where traces are."""

    @property
    def status(self) -> str:
        """The workflow's own word, else the one that was recorded or that Temporal has."""
        if self.has_answered and self.progress is not None:
            return self.progress.status
        if self.view is not None and (self.view.ended_at is not None or self.record is None):
            return self.view.status
        return self.record.status if self.record is not None else "unknown"

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen."""
        if self.view is not None:
            return self.view.ended_at is not None
        return self.status in ENDED


def compose(facts: Facts, waits: list[Wait]) -> Explanation:
    """Put the facts together."""
    record, view = facts.record, facts.view
    stage, round_number, began = _where(facts)
    return Explanation(
        feature=record.feature if record else view.feature if view else None,
        workflow_id=facts.workflow_id,
        run_key=facts.run_key,
        tenant=record.tenant if record else None,
        status=facts.status,
        stage=stage,
        round=round_number,
        since=_since(facts, began, waits),
        started_at=record.started_at if record else view.started_at if view else None,
        ended_at=_ended_at(facts),
        error=_error(facts),
        waits=waits,
        pending=view.pending if view else [],
        stages=_stages(facts),
        total=facts.stages.total if facts.stages else None,
        budget=facts.budget,
        judgements=[_judgement(item) for item in facts.notices if item.notice.metadata.verdict is not None],
        messages=facts.messages,
        events=[_happening(event) for event in facts.events if event.event_type not in _DETAILS][-LAST_EVENTS:],
        ui_url=facts.ui_url,
        trace_id=trace_id(facts.run_key) if facts.has_traces else None,
        trace_url=facts.trace_url,
        missing=facts.missing,
    )


def current_stage(progress: Progress | None) -> StageProgress | None:
    """The stage that everything hangs on: one that asks a person goes before one that works."""
    if progress is None:
        return None
    order = (StageState.FAILED, StageState.WAITING, StageState.PARKED, StageState.RUNNING)
    busy = [row for row in progress.stages if row.state in BUSY]
    return min(busy, key=lambda row: order.index(row.state), default=None)


def latest_notices(notices: Sequence[TaskNotice]) -> dict[str, TaskNotice]:
    """Stage → its last notice, in the order in which the stages first delivered."""
    return {item.stage: item for item in notices}


def message_of(notice: Notice) -> str:
    """`STREAM:SEQ`."""
    return f"{notice.metadata.stream}:{notice.metadata.sequence}"


def _where(facts: Facts) -> tuple[str | None, int | None, datetime | None]:
    """Stage, round and its begin; from Temporal's pending activities when nobody else could say it."""
    if (current := current_stage(facts.progress)) is not None:
        return current.stage, current.round, current.started_at
    if facts.progress is None and facts.view is not None and facts.view.pending:
        item = facts.view.pending[0]
        number = item.activity_id.rpartition("-")[2]
        return item.stage, int(number) if number.isdigit() else None, item.scheduled_at
    return None, None, None


def _since(facts: Facts, began: datetime | None, waits: Sequence[Wait]) -> datetime | None:
    if facts.has_ended:
        return _ended_at(facts)
    known = [wait.since for wait in waits if wait.since is not None]
    if known:
        return known[0]
    return began or (facts.view.started_at if facts.view else None)


def _ended_at(facts: Facts) -> datetime | None:
    if facts.view is not None:
        return facts.view.ended_at
    return facts.record.completed_at if facts.record else None


def _error(facts: Facts) -> str | None:
    """What ended it; with the round in which it happened, where that is known."""
    text = facts.progress.error if facts.progress else None
    text = text or (facts.view.failure if facts.view else None)
    failed = next((task for task in reversed(facts.tasks) if task.status == "failed"), None)
    if text is None:
        return failed.error if failed else None
    return f"{activity_id(failed.stage, failed.round)} ({failed.agent}): {text}" if failed else text


def _stages(facts: Facts) -> list[StageLine]:
    if facts.progress is None:
        return []
    spent = {row.label["stage"]: row for row in facts.stages.rows} if facts.stages else None
    return [_stage(row, spent) for row in facts.progress.stages]


def _stage(row: StageProgress, spent: dict[str, Spending] | None) -> StageLine:
    line = StageLine(
        stage=row.stage,
        agent=row.agent,
        state=row.state,
        round=row.round,
        verdict=row.verdict,
        reason=row.reason,
        tokens=row.tokens,
        cost_usd=row.cost_usd,
    )
    if spent is None:
        return line
    taken = spent.get(row.stage)
    if taken is None:
        return line.model_copy(update={"calls": 0})
    return line.model_copy(
        update={
            **taken.model_dump(
                include={"models", "calls", "tokens_in", "tokens_out", "tokens_cached", "cost_usd", "unpriced"}
            ),
            "tokens": taken.tokens_in + taken.tokens_out,
        }
    )


def _judgement(item: TaskNotice) -> Judgement:
    meta = item.notice.metadata
    evidence = meta.evidence
    return Judgement(
        task=activity_id(item.stage, item.round),
        agent=item.notice.agent,
        verdict=str(meta.verdict),
        findings=[_finding(mark) for mark in meta.findings or []],
        rework=meta.rework or [],
        checks_passed=evidence.passed if evidence else None,
        checks_failed=evidence.failed if evidence else None,
        failed_checks=[line.check for line in evidence.checks if line.exit != 0] if evidence else [],
        summary=item.notice.summary,
    )


def _finding(mark: str) -> str:
    try:
        parsed = FindingMark.parse(mark)
    except ValueError:  # of another release; its text says more than nothing
        return mark
    return f"{parsed.id}!" if parsed.is_major else parsed.id


def _happening(event: EventRecord) -> Happening:
    payload = event.payload
    round_number = f"-{payload['round']}" if payload.get("round") else ""
    verdict = ((payload.get("notice") or {}).get("metadata") or {}).get("verdict")
    reason = payload.get("reason") or verdict or payload.get("comment") or payload.get("action") or ""
    return Happening(
        when=event.created_at,
        event=event.event_type,
        stage=f"{payload['stage']}{round_number}" if payload.get("stage") else None,
        agent=event.agent,
        reason=str(reason),
    )
