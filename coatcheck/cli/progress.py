"""How far a run is: asked of the workflow, or read from the recorded rows when no worker can answer."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.service import RPCError

from coatcheck.cli.output import columns, cost
from coatcheck.cli.runs import FoundRun, RunNotFoundError, find_record
from coatcheck.cli.session import open_database
from coatcheck.settings import Settings
from coatcheck.storage.database import Pool
from coatcheck.storage.state import RunRecord, TaskRecord, tasks
from schemas.budget import BLOCKED_BY_BUDGET
from schemas.notice import Notice
from schemas.pipeline import DEFAULT_PIPELINE, Progress, RunStatus, StageProgress, StageState, Waiting
from schemas.streams import stream_name
from workflows.feature_pipeline import FeaturePipelineWorkflow

QUERY_TIMEOUT: Final = timedelta(seconds=2)
"""A worker answers in milliseconds; without one the server keeps the query waiting."""
WORKFLOW: Final = "workflow"
"""Source of an answer that the workflow itself gave."""
HEADER: Final = ("stage", "agent", "state", "round", "verdict", "tokens", "cost", "seconds", "deliverable")
ENDED: Final = frozenset(
    {RunStatus.COMPLETED, RunStatus.REJECTED, RunStatus.EXPIRED, RunStatus.CANCELLED, RunStatus.FAILED}
)


@dataclass(frozen=True)
class Seen:
    """What could be seen of a run."""

    progress: Progress | None
    """`None` when it has neither answered nor recorded anything (yet)."""
    source: str
    """`WORKFLOW`, or why the rows were read instead."""


class ProgressReader:
    """Reads one run's progress again and again; opens PostgreSQL only when it has to."""

    def __init__(self, client: Client, found: FoundRun, settings: Settings, resources: AsyncExitStack) -> None:
        self._handle = found.handle(client)
        self._run_key = found.run_key
        self._settings = settings
        self._resources = resources
        self._pool: Pool | None = None

    async def read(self) -> Seen:
        """The workflow's own answer, or what is recorded.

        Raises:
            StorageUnavailableError: neither the workflow nor PostgreSQL answers.
        """
        try:
            answer = await self._handle.query(FeaturePipelineWorkflow.progress, rpc_timeout=QUERY_TIMEOUT)
        except RPCError:
            return Seen(await self._recorded(), "no worker answers; these are the recorded rows")
        except WorkflowQueryFailedError:
            return Seen(await self._recorded(), "the run has not got to its first stage")
        return Seen(answer, WORKFLOW)

    async def _recorded(self) -> Progress | None:
        if self._pool is None:
            self._pool = await self._resources.enter_async_context(open_database(self._settings))
        try:
            return await recorded_progress(self._pool, self._run_key)
        except RunNotFoundError:
            return None


async def recorded_progress(pool: Pool, run: str) -> Progress:
    """The progress of a run as its rows have it.

    Raises:
        RunNotFoundError: the run is not recorded.
    """
    record = await find_record(pool, run)
    return from_rows(record, await tasks(pool, record.run_key))


def from_rows(record: RunRecord, rounds: Sequence[TaskRecord]) -> Progress:
    """Progress from rows; they know the stages that have begun, and the later ones of the default pipeline."""
    names = list(dict.fromkeys(task.stage for task in rounds))
    agents = {task.stage: task.agent for task in rounds}
    if record.assigned_agents == [stage.agent for stage in DEFAULT_PIPELINE.stages]:
        names = [stage.name for stage in DEFAULT_PIPELINE.stages]
        agents = {stage.name: stage.agent for stage in DEFAULT_PIPELINE.stages}
    status = RunStatus(record.status)
    return Progress(
        feature=record.feature,
        status=status,
        run_key=record.run_key,
        stages=[_stage(name, agents[name], [task for task in rounds if task.stage == name], record) for name in names],
        error=record.error,
    )


def _stage(name: str, agent: str, rounds: Sequence[TaskRecord], record: RunRecord) -> StageProgress:
    row = StageProgress(stage=name, agent=agent, state=_state(name, rounds, record))
    if not rounds:
        return row
    latest = rounds[-1]
    row.round, row.started_at = latest.round, latest.started_at
    if latest.completed_at is not None:
        row.seconds = (latest.completed_at - latest.started_at) / timedelta(seconds=1)
    notices = [Notice.model_validate(task.output_data) for task in rounds if task.output_data]
    row.tokens = sum(notice.metadata.tokens_in + notice.metadata.tokens_out for notice in notices)
    costs = [notice.metadata.cost_usd for notice in notices]
    row.cost_usd = None if None in costs else sum((value for value in costs if value is not None), Decimal(0))
    if notices:
        last = notices[-1]
        row.verdict, row.subject, row.summary = last.metadata.verdict, last.nats_channel, last.summary
        row.sequence = last.metadata.sequence
    return row


def _state(name: str, rounds: Sequence[TaskRecord], record: RunRecord) -> StageState:
    if not rounds:
        return StageState.PENDING
    if record.status == RunStatus.WAITING and record.current_step == name:
        return StageState.WAITING
    return {
        "completed": StageState.DONE,
        "failed": StageState.FAILED,
        "cancelled": StageState.FAILED,
    }.get(rounds[-1].status, StageState.RUNNING)


def stage_rows(progress: Progress, now: datetime | None = None) -> list[list[str]]:
    """One row per stage, as `HEADER` names them; with `now`, a round under way shows the seconds so far."""
    return [
        [
            row.stage,
            row.agent,
            row.state,
            str(row.round or ""),
            row.verdict or "",
            f"{row.tokens:,}" if row.round else "",
            cost(row.cost_usd) if row.round else "",
            _seconds(row, now),
            f"{row.subject} #{row.sequence}" if row.subject else "",
        ]
        for row in progress.stages
    ]


def _seconds(row: StageProgress, now: datetime | None) -> str:
    if row.seconds is not None:
        return f"{row.seconds:.1f}"
    if now is None or row.started_at is None or row.state is not StageState.RUNNING:
        return ""
    return f"{max(0.0, (now - row.started_at) / timedelta(seconds=1)):.0f}…"


def table(progress: Progress) -> str:
    """The stages and, below, where the run as a whole is."""
    return columns(HEADER, stage_rows(progress, datetime.now(UTC))) + f"\n{headline(progress)}\n"


def headline(progress: Progress) -> str:
    """`customer-search: completed, 6 of 6 stages, 12,345 tokens, $0.0123`."""
    done = sum(row.state is StageState.DONE for row in progress.stages)
    costs = [row.cost_usd for row in progress.stages]
    total = None if None in costs else sum((value for value in costs if value is not None), Decimal(0))
    tokens = sum(row.tokens for row in progress.stages)
    line = f"{progress.feature}: {progress.status}, {done} of {len(progress.stages)} stages, {tokens:,} tokens, "
    return line + cost(total) + (f"\n{progress.error}" if progress.error else "")


def question(progress: Progress) -> list[str]:
    """What a waiting run asks, and the commands that look and answer; empty when it does not wait."""
    return [line for waiting in progress.waiting for line in _question(progress, waiting)]


def _question(progress: Progress, waiting: Waiting) -> list[str]:
    answer = f"coatcheck decide {progress.run_key} {waiting.stage} approve --sha256 {waiting.sha256[:12]}"
    sequence = next((row.sequence for row in progress.stages if row.stage == waiting.stage), None)
    until = f"{waiting.deadline:%Y-%m-%d %H:%M}"
    message = f"{stream_name(waiting.subject.split('.')[3])}:{sequence}"
    lines = [
        f"{waiting.stage}, round {waiting.round}, waits for a decision until {until} UTC: {waiting.reason}",
        f"hint: read it with `coatcheck fetch {message}`, then `{answer}` (or revise, or reject)",
    ]
    if BLOCKED_BY_BUDGET in waiting.reason:
        lines.append(f"hint: `coatcheck set-budget {progress.run_key} USD` lets it spend more, and go on")
    return lines
