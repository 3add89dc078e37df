"""The rows of a run rebuilt from its events: equal to those in PostgreSQL after every step."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from coatcheck.events.past import rebuild
from coatcheck.messaging.events import StoredEvent
from coatcheck.storage import state
from coatcheck.storage.database import Pool
from schemas.deliverable import DeliverableRef
from schemas.events import SystemEvent
from schemas.notice import Notice, NoticeMetadata
from schemas.pipeline import (
    DEFAULT_PIPELINE,
    Decision,
    DecisionAction,
    FeatureRequest,
    ForkPoint,
    InheritedRound,
    RunStatus,
    Stage,
)
from schemas.subjects import deliverable_subject
from workflows.run_state import RunState

START = datetime(2026, 11, 21, 12, tzinfo=UTC)


def notice(stage: Stage, number: int, attempt: int | None = None) -> Notice:
    """What an agent returns."""
    ref = DeliverableRef(stream=f"agog_features_{stage.task_type}", sequence=number, sha256="a" * 64, bytes=10)
    return Notice(
        status="complete",
        agent=stage.agent,
        task="search",
        nats_channel=deliverable_subject(stage.agent, stage.task_type, "search"),
        summary=f"{stage.name} {number}",
        completion_time=START,
        metadata=NoticeMetadata(**ref.model_dump(), round=number, attempt=attempt),
    )


def fork() -> ForkPoint:
    """A run that begins at its backend."""
    early = [stage for stage in DEFAULT_PIPELINE.stages if stage.name in {"research", "critique"}]
    rounds = [
        InheritedRound(
            stage=stage.name, round=1, task_key=f"feature/search/old/{stage.name}-1", notice=notice(stage, 1)
        )
        for stage in early
    ]
    return ForkPoint(run_key="feature/search/old", stage="backend", rounds=tuple(rounds))


class Walk:
    """A run to which anything happens that may."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        request = FeatureRequest(feature="search", brief="Find it.", fork=fork() if seed % 3 == 0 else None)
        self.now = START
        key = f"feature/search/{seed}"
        self.run = RunState(request=request, run_key=key, workflow_id="feature/search", started_at=START)
        self.run.open()
        self._settled: set[tuple[str, str, int]] = set()

    def _once(self, what: str, stage: Stage, change: Callable[[], None]) -> list[Callable[[], None]]:
        """Each round is accepted once at most, and asked about once."""
        key = what, stage.name, self.run.round_count(stage.name)

        def act() -> None:
            self._settled.add(key)
            change()

        return [] if key in self._settled else [act]

    def step(self) -> None:
        """One thing happens."""
        self.now += timedelta(milliseconds=self.chance.randint(0, 3000))
        self.chance.choice(self._possible())()

    def _possible(self) -> list[Callable[[], None]]:
        run, now = self.run, self.now
        rounds, stages = run.open_rounds(), run.request.pipeline.stages
        idle = [stage for stage in stages if stage.name not in {item.stage.name for item in rounds}]
        done = [stage for stage in idle if (latest := run.latest(stage.name)) is not None and latest.notice]
        possible: list[Callable[[], None]] = [
            lambda: run.set_paused(not run.is_paused, now),
            lambda: run.note_reset(self.chance.getrandbits(40), now),
        ]
        if idle:
            stage = self.chance.choice(idle)
            inputs = [run.reference(item.name) for item in done[:2]]
            possible += [lambda: void(run.start_round(stage, now, inputs, "again, please"))] * 3
        if rounds:
            current = self.chance.choice(rounds)
            told = notice(current.stage, current.number, self.chance.choice([None, 3]))
            possible += [lambda: run.finish_round(current, told, now)] * 4
            possible.append(lambda: run.park(current, "429", now, now + timedelta(minutes=5)))
        if done:
            delivered, limit = self.chance.choice(done), now + timedelta(days=7)
            possible += self._once("accepted", delivered, lambda: run.finish_stage(delivered, "approved", now))
            possible += self._once("asked", delivered, lambda: run.wait(delivered, "a gate", now, limit))
        for name, waiting in run.waiting.items():
            action = self.chance.choice(list(DecisionAction))
            decision = Decision(stage=name, action=action, sha256=waiting.sha256, by="ada", comment="so be it")
            possible.append(lambda decision=decision: run.decided(decision, now))  # type: ignore[misc]
        return possible


def void(_: object) -> None:
    """A change whose result is not wanted."""


@pytest.mark.parametrize("seed", range(12))
async def test_every_step_can_be_rebuilt(owner: Pool, seed: int) -> None:
    """The run's row and its tasks' rows, after each of thirty steps and after the run's end."""
    walk, told = Walk(seed), list[StoredEvent]()
    ends = walk.chance.choice(list(RunStatus)[3:])
    for number in range(31):
        if number == 30:
            for current in walk.run.open_rounds():
                current.has_failed = walk.chance.random() < 0.5
            walk.run.end(ends, "that was it", walk.now)
        elif number:
            walk.step()
        step = walk.run.take_step(walk.now)
        await state.record(owner, step)
        walk.run.confirm_step(step)
        told += [stored(event, len(told) + offset) for offset, event in enumerate(step.events, start=1)]
        past = rebuild(told)
        row = await state.find_run(owner, walk.run.run_key)
        assert past is not None
        assert row is not None
        assert past.run == row.model_copy(update={"updated_at": past.run.updated_at})
        rows = await state.tasks(owner, walk.run.run_key)
        assert past.tasks == rows
        working = sorted(row.task_key for row in rows if row.status == "running")
        assert sorted(task for agent in past.agents for task in agent.tasks) == working
    assert len({item.event.event_id for item in told}) == len(told)


async def test_a_completed_round_stays_so_when_a_reset_begins_it_again(owner: Pool) -> None:
    """As its row does, whatever becomes of the run this time."""
    request = FeatureRequest(feature="search", brief="Find it.")
    research, told = DEFAULT_PIPELINE.stages[0], list[StoredEvent]()
    for seed in (None, 7):
        now = START + timedelta(minutes=seed or 0)
        run = RunState(request=request, run_key="feature/search/1", workflow_id="feature/search", started_at=START)
        if seed is not None:
            run.note_reset(seed, now)
        run.open()
        current = run.start_round(research, now, [], "")
        if seed is None:
            run.finish_round(current, notice(research, 1), now)
        run.end(RunStatus.FAILED, "enough", now)
        step = run.take_step(now)
        await state.record(owner, step)
        told += [stored(event, len(told) + offset) for offset, event in enumerate(step.events, start=1)]
    past = rebuild(told)
    assert past is not None
    assert [task.status for task in past.tasks] == ["completed"]
    assert past.tasks == await state.tasks(owner, "feature/search/1")


def stored(event: SystemEvent, sequence: int) -> StoredEvent:
    """As the audit log has it."""
    return StoredEvent(sequence, event.occurred_at, event.subject, {}, event)


async def test_nothing_is_known_before_the_first_event() -> None:
    """An earlier sequence than the run's first."""
    assert rebuild([]) is None
