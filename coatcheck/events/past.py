"""What a run's rows and its agents' states were at an earlier moment, rebuilt from its events alone.

Events say how things are and not how they changed, so folding them up to any sequence gives the rows as they were
then. The rules are those of `record.sql`: a completed round stays completed, and nothing is erased by what is absent.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import singledispatchmethod
from typing import Any

from pydantic import BaseModel

from coatcheck.messaging.events import StoredEvent
from coatcheck.storage.state import RunRecord, TaskRecord
from schemas import events
from schemas.event_payloads import RunPoint
from schemas.notice import Notice


class TurnThen(BaseModel):
    """A model turn whose round had ended."""

    task_key: str
    turn: int
    model: str
    messages: list[str]
    """Keys of the conversation's rows."""


class AgentThen(BaseModel):
    """What an agent did for this run."""

    agent: str
    state: str
    """`working` or `idle`, as in the bucket `agent_state`."""
    tasks: list[str] = []
    """Task keys."""
    since: datetime


class Past(BaseModel):
    """The state of a run after one of its events."""

    sequence: int
    """Of the last event that was looked at."""
    at: datetime
    run: RunRecord
    tasks: list[TaskRecord]
    """By start."""
    turns: list[TurnThen]
    agents: list[AgentThen]
    """The bucket `agent_state`, as far as this run is concerned."""


def rebuild(stored: Iterable[StoredEvent]) -> Past | None:
    """Fold a run's events, given in their order; `None` before the run's first event.

    Events of types that are not known here change nothing.
    """
    fold, last = _Fold(), None
    for item in stored:
        last = item
        if not isinstance(item.event, events.UnknownEvent):
            fold.apply(item.event)
            fold.updated_at = item.event.occurred_at
    if last is None or fold.started is None:
        return None
    return Past(
        sequence=last.sequence,
        at=last.event.occurred_at,
        run=fold.run(),
        tasks=sorted(fold.tasks.values(), key=lambda task: (task.started_at, task.task_key)),
        turns=fold.turns,
        agents=sorted(fold.agents.values(), key=lambda agent: agent.agent),
    )


@dataclass
class _Fold:
    started: events.RunStarted | None = None
    point: RunPoint = field(default_factory=lambda: RunPoint(status="pending"))
    error: str | None = None
    completed_at: datetime | None = None
    updated_at: datetime | None = None
    tasks: dict[str, TaskRecord] = field(default_factory=dict)
    turns: list[TurnThen] = field(default_factory=list)
    agents: dict[str, AgentThen] = field(default_factory=dict)
    _rounds: dict[str, int] = field(default_factory=dict)
    _notices: dict[str, Notice] = field(default_factory=dict)

    def run(self) -> RunRecord:
        """The run's row."""
        assert self.started is not None
        assert self.updated_at is not None
        said = self.started.payload
        return RunRecord(
            run_key=self.started.correlation_id,
            temporal_workflow_id=said.workflow_id,
            feature=said.feature,
            tenant=said.tenant,
            status=self.point.status,
            current_step=self.point.current_step,
            total_steps=len(said.stages),
            completed_steps=self.point.completed_steps,
            step_results={stage: self._step_result(stage) for stage in said.stages if stage in self._notices},
            assigned_agents=said.agents,
            error=self.error,
            started_at=self.started.occurred_at,
            completed_at=self.completed_at,
            updated_at=self.updated_at,
        )

    def _step_result(self, stage: str) -> dict[str, Any]:
        notice = self._notices[stage]
        return {
            "subject": notice.nats_channel,
            "sequence": notice.metadata.sequence,
            "round": self._rounds[stage],
            "verdict": notice.metadata.verdict,
        }

    @singledispatchmethod
    def apply(self, event: events.Event) -> None:
        """Let one event happen; most change only where the run is."""
        point = getattr(event.payload, "run", None)
        if isinstance(point, RunPoint):
            self.point = point

    @apply.register
    def _(self, event: events.RunStarted) -> None:
        self.started, self.point = event, event.payload.run
        for item in event.payload.inherited:
            self._rounds[item.stage], self._notices[item.stage] = item.round, item.notice

    @apply.register(events.RunCompleted)
    @apply.register(events.RunRejected)
    @apply.register(events.RunExpired)
    @apply.register(events.RunCancelled)
    @apply.register(events.RunFailed)
    def _(self, event: Any) -> None:
        self.point, self.completed_at = event.payload.run, event.occurred_at
        self.error = None if isinstance(event, events.RunCompleted) else event.payload.reason

    @apply.register
    def _(self, event: events.RunReset) -> None:
        self.point, self.error, self.completed_at = event.payload.run, None, None

    @apply.register
    def _(self, event: events.StageStarted) -> None:
        said, key = event.payload, event.entity_id
        self.point = said.run
        self._rounds[said.stage] = said.round
        self._work(event.agent, key, event.occurred_at)
        earlier = self.tasks.get(key)
        if earlier is not None:
            if earlier.status != "completed":
                self.tasks[key] = earlier.model_copy(update={"status": "running", "started_at": event.occurred_at})
            return
        self.tasks[key] = TaskRecord(
            task_key=key,
            run_key=event.correlation_id,
            agent=event.agent or "",
            stage=said.stage,
            task_type=said.task_type,
            round=said.round,
            status="running",
            output_data=None,
            error=None,
            retry_count=0,
            execution_time_ms=None,
            started_at=event.occurred_at,
            completed_at=None,
        )

    @apply.register
    def _(self, event: events.StageCompleted) -> None:
        notice = event.payload.notice
        self.point, self._notices[event.payload.stage] = event.payload.run, notice
        self._end(
            event,
            status="completed",
            output_data=notice.model_dump(mode="json", exclude_none=True),
            retry_count=(notice.metadata.attempt or 1) - 1,
        )

    @apply.register(events.StageFailed)
    @apply.register(events.StageCancelled)
    def _(self, event: Any) -> None:
        self.point = event.payload.run
        self._end(event, status=event.event_type.rpartition(".")[2], error=event.payload.reason)

    @apply.register
    def _(self, event: events.RunRepaired) -> None:
        said = event.payload
        self.point, self.completed_at = said.run, said.completed_at
        self.error = None if said.run.status in {"running", "completed"} else said.reason

    @apply.register
    def _(self, event: events.StageRepaired) -> None:
        said = event.payload
        self._end(event, said.completed_at or self.completed_at, status=said.status, error=said.reason)

    @apply.register
    def _(self, event: events.TurnCompleted) -> None:
        said = event.payload
        keys = [f"{event.entity_id}/{said.turn:03d}/{number:02d}" for number in range(said.messages)]
        self.turns.append(TurnThen(task_key=event.entity_id, turn=said.turn, model=said.model, messages=keys))

    def _end(self, event: events.Event, at: datetime | None = None, **changes: Any) -> None:
        self._rest(event.agent, event.entity_id, event.occurred_at)
        task = self.tasks.get(event.entity_id)
        if task is None or task.status == "completed":
            return
        at = at or event.occurred_at
        took = (at - task.started_at) / timedelta(milliseconds=1)
        ended = {"completed_at": at, "execution_time_ms": took}
        self.tasks[event.entity_id] = task.model_copy(update=ended | changes)

    def _work(self, agent: str | None, task: str, at: datetime) -> None:
        if agent is not None:
            known = self.agents.get(agent)
            tasks = [*(known.tasks if known else []), task]
            self.agents[agent] = AgentThen(agent=agent, state="working", tasks=tasks, since=at)

    def _rest(self, agent: str | None, task: str, at: datetime) -> None:
        if agent is not None and (known := self.agents.get(agent)) is not None:
            tasks = [item for item in known.tasks if item != task]
            self.agents[agent] = AgentThen(agent=agent, state="working" if tasks else "idle", tasks=tasks, since=at)
