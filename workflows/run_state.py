"""What one run of `FeaturePipeline` knows about itself, and how that looks to others.

Owns the bookkeeping: rounds, notices, status, and their projections as rows, events, progress, details and result.
Does not decide what happens next; that is `feature_pipeline`. Every change is collected in a step until `take_step`
hands it to the state activity, so that one stage costs one statement.
"""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from schemas import event_payloads as payloads
from schemas import events
from schemas.activities import RecordInput, RunRow, StageInputRef, TaskRow
from schemas.budget import Budget, BudgetChange
from schemas.notice import Notice
from schemas.pipeline import (
    Decision,
    FeatureRequest,
    InheritedRound,
    PipelineResult,
    Progress,
    RunStatus,
    Stage,
    StageOutcome,
    StageProgress,
    StageState,
    TaskNotice,
    Waiting,
)
from schemas.review import FindingMark
from schemas.workflow_ids import activity_id, task_key
from workflows.telling import Telling


@dataclass
class Round:
    """One round of a stage."""

    stage: Stage
    number: int
    task_key: str
    started_at: datetime
    inputs: list[StageInputRef]
    comment: str
    completed_at: datetime | None = None
    notice: Notice | None = None
    has_failed: bool = False
    parked_until: datetime | None = None
    parked_reason: str = ""
    parked_times: int = 0
    reset: str = ""
    """As the run's when it began."""
    is_inherited: bool = False
    """Another run did it, of which this one is a fork."""


_ENDED = {
    RunStatus.COMPLETED: events.RunCompleted,
    RunStatus.REJECTED: events.RunRejected,
    RunStatus.EXPIRED: events.RunExpired,
    RunStatus.CANCELLED: events.RunCancelled,
    RunStatus.FAILED: events.RunFailed,
}


@dataclass
class RunState:
    """The whole state of a run; plain data, changed only by its methods."""

    request: FeatureRequest
    run_key: str
    workflow_id: str
    started_at: datetime
    namespace: str = "default"
    rounds: list[Round] = field(default_factory=list)
    waiting: dict[str, Waiting] = field(default_factory=dict)
    """Stage → what a person is asked about it."""
    is_paused: bool = False
    error: str | None = None
    completed_at: datetime | None = None
    _ended: RunStatus | None = None
    _done: set[str] = field(default_factory=set)
    _reasons: dict[str, str] = field(default_factory=dict)
    _steps: int = 0
    _tasks: dict[str, TaskRow] = field(default_factory=dict)
    _pauses: int = 0
    _budgets: int = 0

    def __post_init__(self) -> None:
        self._telling = Telling(self.run_key, self.workflow_id)

    # --- what happens -------------------------------------------------------------------------------------------

    def open(self) -> None:
        """The run starts, with the rounds that it inherits."""
        request, fork = self.request, self.request.fork
        for item in fork.rounds if fork else ():
            self._inherit(item)
        brief = request.brief.encode("utf-8", "surrogatepass")
        payload = payloads.RunStarted(
            workflow_id=self.workflow_id,
            feature=request.feature,
            tenant=request.tenant,
            priority=request.priority,
            stages=[stage.name for stage in request.pipeline.stages],
            agents=[stage.agent for stage in request.pipeline.stages],
            brief_sha256=hashlib.sha256(brief).hexdigest(),
            brief_bytes=len(brief),
            forked_from=fork.run_key if fork else None,
            inherited=list(fork.rounds) if fork else [],
            run=self._point(),
        )
        self._telling.about_run(events.RunStarted, self.started_at, payload)

    def note_reset(self, seed: int, now: datetime) -> None:
        """Temporal took the run back to where it is now."""
        now = self._telling.moment(now)
        self._telling.reset = f"@{seed:x}"
        changed = payloads.RunChanged(reason="reset in Temporal", run=self._point())
        self._telling.about_run(events.RunReset, now, changed)

    def start_round(self, stage: Stage, now: datetime, inputs: list[StageInputRef], comment: str) -> Round:
        """Begin the next round of `stage`."""
        now = self._telling.moment(now)
        number = self.round_count(stage.name) + 1
        key = task_key(self.run_key, activity_id(stage.name, number))
        current = Round(stage, number, key, now, inputs, comment, reset=self._telling.reset)
        self.rounds.append(current)
        self._done.discard(stage.name)
        self._tasks[key] = self._task_row(current, "running")
        payload = payloads.StageStarted(
            stage=stage.name,
            task_type=stage.task_type,
            round=number,
            inputs={item.stage: item.ref.to_ticket() for item in inputs},
            comment=comment,
            run=self._point(),
        )
        # The last input is what made this round start: a verdict that sent it back, or the last work that it needs.
        self._tell(events.StageStarted, now, payload, current, caused_by=inputs[-1].stage if inputs else None)
        return current

    def finish_round(self, current: Round, notice: Notice, now: datetime) -> None:
        """The agent has returned its notice."""
        now = self._telling.moment(now)
        current.notice, current.completed_at = notice, now
        self._tasks[current.task_key] = self._task_row(current, "completed")
        payload = payloads.StageCompleted(
            stage=current.stage.name, round=current.number, notice=notice, run=self._point()
        )
        self._tell(events.StageCompleted, now, payload, current)

    def finish_stage(self, stage: Stage, reason: str, now: datetime) -> None:
        """Nothing more is wanted of the stage, unless a later one sends it back."""
        now = self._telling.moment(now)
        self._done.add(stage.name)
        self._reasons[stage.name] = reason
        latest = self.latest(stage.name)
        assert latest is not None
        payload = payloads.StageAccepted(stage=stage.name, rounds=latest.number, reason=reason, run=self._point())
        self._tell(events.StageAccepted, now, payload, latest)

    def park(self, current: Round, reason: str, now: datetime, until: datetime) -> None:
        """No model can be asked until then; the round is begun again after that, and loses nothing."""
        now = self._telling.moment(now)
        current.parked_until, current.parked_reason = until, reason
        current.parked_times += 1
        payload = payloads.StageParked(
            stage=current.stage.name, round=current.number, reason=reason, until=until, run=self._point()
        )
        self._tell(events.StageParked, now, payload, current, occurrence=str(current.parked_times), severity="warning")

    def unpark(self, current: Round) -> None:
        """The time is over."""
        current.parked_until = None

    def wait(self, stage: Stage, reason: str, now: datetime, deadline: datetime) -> None:
        """A person has to decide."""
        now = self._telling.moment(now)
        latest = self.latest(stage.name)
        notice = latest.notice if latest else None
        if latest is None or notice is None:
            raise ValueError(f"stage {stage.name!r} has nothing to decide on")
        waiting = Waiting(
            stage=stage.name,
            round=latest.number,
            reason=reason,
            sha256=notice.metadata.sha256,
            subject=notice.nats_channel,
            deadline=deadline,
        )
        self.waiting[stage.name] = waiting
        payload = payloads.DecisionRequested(**waiting.model_dump(), run=self._point())
        self._tell(events.DecisionRequested, now, payload, latest, severity="warning")

    def decided(self, decision: Decision, now: datetime) -> None:
        """A person has decided."""
        now = self._telling.moment(now)
        self.waiting.pop(decision.stage, None)
        latest = self.latest(decision.stage)
        assert latest is not None
        payload = payloads.DecisionMade(**decision.model_dump(), round=latest.number, run=self._point())
        self._tell(events.DecisionMade, now, payload, latest)

    def set_paused(self, paused: bool, now: datetime) -> None:  # noqa: FBT001  the two states of one switch
        """The run stands still between stages, or goes on."""
        now = self._telling.moment(now)
        self.is_paused = paused
        self._pauses += paused
        kind = events.RunPaused if paused else events.RunResumed
        self._telling.about_run(kind, now, payloads.RunChanged(run=self._point()), occurrence=str(self._pauses))

    def budget_set(self, change: BudgetChange, now: datetime) -> str:
        """A person has set what the run may spend; returns the event's id, for `withdraw`."""
        self._budgets += 1
        payload = payloads.BudgetSet(budget=change.budget, by=change.by, run=self._point())
        return self._telling.about_run(
            events.BudgetSet, self._telling.moment(now), payload, occurrence=str(self._budgets)
        )

    def withdraw(self, event_id: str) -> None:
        """It did not happen after all: the step that told it was refused, so nobody has heard of it."""
        self._telling.withdraw(event_id)

    def end(self, status: RunStatus, reason: str, now: datetime) -> None:
        """The run is over; the rounds that were under way end with it."""
        still_open = self.open_rounds()
        self._ended = status
        self.waiting.clear()
        self.error = None if status is RunStatus.COMPLETED else reason
        for current in still_open:
            current.completed_at = self._telling.moment(now)
        for current in still_open:
            assert current.completed_at is not None
            outcome = "failed" if current.has_failed else "cancelled"
            self._tasks[current.task_key] = self._task_row(current, outcome, reason)
            ended = payloads.StageEnded(
                stage=current.stage.name, round=current.number, reason=reason, run=self._point()
            )
            kind = events.StageFailed if current.has_failed else events.StageCancelled
            severity = "error" if current.has_failed else "warning"
            self._tell(kind, current.completed_at, ended, current, severity=severity)
        self.completed_at = self._telling.moment(now)
        severity = {RunStatus.COMPLETED: "info", RunStatus.FAILED: "error"}.get(status, "warning")
        changed = payloads.RunChanged(reason=reason, run=self._point())
        self._telling.about_run(_ENDED[status], self.completed_at, changed, severity=severity)

    # --- what is so ---------------------------------------------------------------------------------------------

    @property
    def status(self) -> RunStatus:
        """Where the run is, in one word; a person who is needed goes before stages that still work."""
        if self._ended is not None:
            return self._ended
        if self.waiting:
            return RunStatus.WAITING
        return RunStatus.PAUSED if self.is_paused else RunStatus.RUNNING

    def is_done(self, stage: str) -> bool:
        """Whether nothing more is wanted of the stage."""
        return stage in self._done

    def findings(self, stage: str) -> list[list[FindingMark]]:
        """What each round of a review found, in order."""
        return [
            [FindingMark.parse(mark) for mark in current.notice.metadata.findings or []]
            for current in self.rounds
            if current.stage.name == stage and current.notice is not None
        ]

    def round_count(self, stage: str) -> int:
        """Rounds of the stage so far."""
        return sum(current.stage.name == stage for current in self.rounds)

    def latest(self, stage: str) -> Round | None:
        """The latest round of the stage."""
        return next((current for current in reversed(self.rounds) if current.stage.name == stage), None)

    def open_rounds(self) -> list[Round]:
        """The rounds that are under way, in the order in which they began."""
        return [current for current in self.rounds if current.completed_at is None]

    def reference(self, stage: str) -> StageInputRef:
        """The ticket of the stage's latest deliverable.

        Raises:
            ValueError: the stage has not delivered yet.
        """
        for current in reversed(self.rounds):
            if current.stage.name == stage and current.notice is not None:
                return StageInputRef(stage=stage, ref=current.notice.ref)
        raise ValueError(f"stage {stage!r} has not delivered anything")

    # --- how it looks -------------------------------------------------------------------------------------------

    @property
    def is_recorded(self) -> bool:
        """Whether a step has been taken already."""
        return self._steps > 0

    def take_step(self, now: datetime, budget: Budget | None = None) -> RecordInput:
        """Everything that changed since the last step was confirmed, as one transaction's worth of rows."""
        self._steps += 1
        return RecordInput(
            run=self._run_row(now, budget), tasks=list(self._tasks.values()), events=list(self._telling.untold)
        )

    def confirm_step(self, step: RecordInput) -> None:
        """The step is stored; what changed meanwhile stays for the next one."""
        self._telling.stored({event.event_id for event in step.events})  # another step may have been stored meanwhile
        for row in step.tasks:
            if self._tasks.get(row.task_key) == row:
                del self._tasks[row.task_key]

    def notices(self) -> list[TaskNotice]:
        """Every notice of the run, in order."""
        return [
            TaskNotice(stage=current.stage.name, round=current.number, notice=current.notice)
            for current in self.rounds
            if current.notice is not None
        ]

    def progress(self) -> Progress:
        """The answer to `progress`: one row per stage of the pipeline."""
        return Progress(
            feature=self.request.feature,
            status=self.status,
            run_key=self.run_key,
            stages=[self._stage_progress(stage) for stage in self.request.pipeline.stages],
            waiting=list(self.waiting.values()),
            error=self.error,
        )

    def result(self, status: RunStatus, reason: str) -> PipelineResult:
        """The workflow's result."""
        rows = [row for row in self.progress().stages if row.subject is not None]
        return PipelineResult.model_validate(
            {
                "feature": self.request.feature,
                "status": status,
                "reason": reason,
                "stages": [self._outcome(row) for row in rows],
                "tokens": sum(row.tokens for row in rows),
                "cost_usd": _sum_costs([row.cost_usd for row in rows]),
                "run_key": self.run_key,
            }
        )

    def details(self, trace_note: str = "") -> str:
        """Markdown for the Web UI: what a person needs to see of a run, and where its trace is."""
        lines = ["| stage | agent | state | verdict | deliverable | tokens | cost |", "|---|---|---|---|---|---|---|"]
        for row in self.progress().stages:
            where = f"`{row.subject}` #{row.sequence}" if row.subject else ""
            cost = "unknown" if row.cost_usd is None else f"${row.cost_usd:.4f}"
            state = f"{row.state}, round {row.round}" if row.round else row.state
            lines.append(
                f"| {row.stage} | {row.agent} | {state} | {row.verdict or ''} | {where} | {row.tokens} | {cost} |"
            )
        lines += [f"\n**Waiting for a decision on {item.stage}**: {item.reason}" for item in self.waiting.values()]
        if self.error is not None:
            lines.append(f"\n**{self.status}**: {self.error}")
        if trace_note:
            lines.append(f"\n{trace_note}")
        return "\n".join(lines)

    # --- rows ---------------------------------------------------------------------------------------------------

    def _tell(self, kind: Any, at: datetime, payload: payloads.Payload, about: Round, **options: Any) -> None:
        """Something happened to a round; options as of `Telling.about_round`."""
        stage = about.stage
        self._telling.about_round(
            kind, at, payload, stage=stage.name, number=about.number, agent=stage.agent, **options
        )

    def _inherit(self, item: InheritedRound) -> None:
        stage, now = self.request.pipeline.stage(item.stage), self.started_at
        self.rounds.append(Round(stage, item.round, item.task_key, now, [], "", now, item.notice, is_inherited=True))
        self._done.add(stage.name)
        self._reasons[stage.name] = "inherited"

    def _point(self) -> payloads.RunPoint:
        """The run's row as this moment would write it."""
        return payloads.RunPoint(status=self.status, current_step=self._current_step, completed_steps=len(self._done))

    @property
    def _current_step(self) -> str | None:
        return next(iter([*self.waiting, *(item.stage.name for item in self.open_rounds())]), None)

    def _run_row(self, now: datetime, budget: Budget | None) -> RunRow:
        # After a reset the count starts again below what is recorded, but the time goes on.
        revision = int(now.timestamp() * 1000) * 1000 + self._steps
        return RunRow(
            run_key=self.run_key,
            revision=revision,
            temporal_workflow_id=self.workflow_id,
            namespace=self.namespace,
            feature=self.request.feature,
            tenant=self.request.tenant,
            status=self.status,
            current_step=self._current_step,
            total_steps=len(self.request.pipeline.stages),
            completed_steps=len(self._done),
            step_results={row.stage: _step_result(row) for row in self.progress().stages if row.subject},
            assigned_agents=[stage.agent for stage in self.request.pipeline.stages],
            error=self.error,
            started_at=self.started_at,
            completed_at=self.completed_at,
            brief=self.request.brief if self._steps == 1 else None,
            budget=self.request.budget if self._steps == 1 else budget,
        )

    def _task_row(self, current: Round, status: str, error: str | None = None) -> TaskRow:
        notice = current.notice
        return TaskRow(
            task_key=current.task_key,
            agent=current.stage.agent,
            stage=current.stage.name,
            task_type=current.stage.task_type,
            round=current.number,
            status=status,
            input_data={
                "inputs": [item.model_dump(mode="json") for item in current.inputs],
                "comment": current.comment,
            },
            output_data=notice.model_dump(mode="json", exclude_none=True) if notice else None,
            error=error,
            retry_count=(notice.metadata.attempt or 1) - 1 if notice else 0,
            started_at=current.started_at,
            completed_at=current.completed_at,
            reset=current.reset,
        )

    def _stage_progress(self, stage: Stage) -> StageProgress:
        rounds = [current for current in self.rounds if current.stage.name == stage.name]
        row = StageProgress(stage=stage.name, agent=stage.agent, state=self._stage_state(stage, rounds))
        if not rounds:
            return row
        latest = rounds[-1]
        row.round, row.started_at = latest.number, latest.started_at
        if latest.completed_at is not None:
            row.seconds = (latest.completed_at - latest.started_at) / timedelta(seconds=1)
        if latest.parked_until is not None:
            row.parked_until, row.reason = latest.parked_until, latest.parked_reason
        elif stage.name in self._done:
            row.reason = self._reasons.get(stage.name, "")
        notices = [current.notice for current in rounds if current.notice is not None]
        paid = [current.notice for current in rounds if current.notice is not None and not current.is_inherited]
        row.tokens = sum(notice.metadata.tokens_in + notice.metadata.tokens_out for notice in paid)
        row.cost_usd = _sum_costs([notice.metadata.cost_usd for notice in paid])
        if notices:
            last = notices[-1]
            row.verdict, row.subject, row.summary = last.metadata.verdict, last.nats_channel, last.summary
            row.sequence = last.metadata.sequence
        return row

    def _stage_state(self, stage: Stage, rounds: list[Round]) -> StageState:
        if stage.name in self._done:
            return StageState.DONE
        if stage.name in self.waiting:
            return StageState.WAITING
        if not rounds:
            return StageState.PENDING
        if self._ended is not None:
            return StageState.FAILED
        return StageState.PARKED if rounds[-1].parked_until is not None else StageState.RUNNING

    def _outcome(self, row: StageProgress) -> StageOutcome:
        """One line of the result; what is not set is left out of the history."""
        ticket = self.reference(row.stage).ref
        said = {"verdict": row.verdict, "reason": row.reason}
        return StageOutcome.model_validate(
            {
                "stage": row.stage,
                "agent": row.agent,
                "rounds": row.round,
                "message": f"{ticket.stream}:{ticket.sequence}",
                "tokens": row.tokens,
                "cost_usd": row.cost_usd,
                **{name: value for name, value in said.items() if value},
            }
        )


def _sum_costs(costs: list[Decimal | None]) -> Decimal | None:
    """One unknown price makes the sum unknown: a partial sum would look like the whole."""
    return None if None in costs else sum((cost for cost in costs if cost is not None), Decimal(0))


def _step_result(row: StageProgress) -> dict[str, Any]:
    return {"subject": row.subject, "sequence": row.sequence, "round": row.round, "verdict": row.verdict}
