"""Stages run when what they wait for is done: side by side where the graph allows, never on work under review."""

import asyncio

import pytest
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError

from schemas import errors
from schemas.notice import Notice, Verdict
from schemas.pipeline import DEFAULT_PIPELINE, DecisionAction, Pipeline, RunStatus, StageState
from tests.workflows.conftest import Pipelines, says
from tests.workflows.test_feature_pipeline import until

_RESEARCH, _CRITIQUE, _BACKEND, _FRONTEND, _QA, _STATISTICS = DEFAULT_PIPELINE.stages
SIDE_BY_SIDE = Pipeline(
    name="side-by-side",
    stages=(_RESEARCH, _CRITIQUE, _BACKEND, _FRONTEND.model_copy(update={"needs": ("critique",)}), _QA, _STATISTICS),
)
"""Backend and frontend both need only what the critique has approved."""


def test_the_default_pipeline_is_a_sequence() -> None:
    """Each stage waits, directly or not, for all before it: the seed's order."""
    waits = {stage.name: DEFAULT_PIPELINE.waits_for(stage) for stage in DEFAULT_PIPELINE.stages}
    assert waits == {
        "research": set(),
        "critique": {"research"},
        "backend": {"research", "critique"},
        "frontend": {"research", "critique", "backend"},
        "qa": {"research", "critique", "backend", "frontend"},
        "statistics": {"critique", "qa"},
    }


def test_nobody_builds_on_what_may_be_sent_back() -> None:
    """A stage that needs the backend waits for the review of the backend, which it does not name."""
    review = _CRITIQUE.model_copy(update={"name": "security", "needs": ("backend",), "reviews": "backend"})
    frontend = _FRONTEND.model_copy(update={"needs": ("backend",)})
    pipeline = Pipeline(stages=(_RESEARCH, _BACKEND.model_copy(update={"needs": ("research",)}), review, frontend))
    assert pipeline.waits_for(frontend) == {"backend", "security"}


async def test_independent_stages_really_overlap(pipelines: Pipelines) -> None:
    """Backend and frontend meet while both are under way; in a sequence they would wait for each other for ever."""
    barrier = asyncio.Barrier(2)

    async def meets(notice: Notice) -> Notice:
        async with asyncio.timeout(20):
            await barrier.wait()
        return notice

    pipelines.team.behave("backend", 1, meets)
    pipelines.team.behave("frontend", 1, meets)
    result = await pipelines.run(pipeline=SIDE_BY_SIDE.model_dump(mode="json"))
    assert result.status is RunStatus.COMPLETED
    assert sum(step.run.completed_steps == 2 for step in pipelines.team.steps) >= 2
    recorded = [event.event_type for event in pipelines.team.stored_events()]
    assert recorded.count("stage.completed") == 6


async def test_two_stages_may_ask_people_at_once(pipelines: Pipelines) -> None:
    """Each question is answered by its stage's name, in any order; the run goes on after both."""
    handle = await pipelines.start(pipeline=SIDE_BY_SIDE.model_dump(mode="json"), gates=["backend", "frontend"])
    progress = await until(handle, lambda progress: len(progress.waiting) == 2)
    for waiting in reversed(progress.waiting):
        decision = {"stage": waiting.stage, "action": DecisionAction.APPROVE, "sha256": waiting.sha256, "by": "ann"}
        await handle.execute_update("decide", decision)
    assert (await handle.result()).status is RunStatus.COMPLETED


async def test_a_failure_ends_what_runs_beside_it(pipelines: Pipelines) -> None:
    """The other stage is cancelled and its row says so; the error names the stage that failed."""
    started = asyncio.Event()

    async def fails(_: Notice) -> Notice:
        await started.wait()
        raise ApplicationError("invalid API key", type=errors.PROVIDER_REJECTED, non_retryable=True)

    async def never_ends(_: Notice) -> Notice:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    pipelines.team.behave("backend", 1, fails)
    pipelines.team.behave("frontend", 1, never_ends)
    with pytest.raises(WorkflowFailureError) as failure:
        await pipelines.run(pipeline=SIDE_BY_SIDE.model_dump(mode="json"))
    assert isinstance(failure.value.cause, ApplicationError)
    assert failure.value.cause.message.startswith("backend, round 1: invalid API key")
    rows = {row.stage: row.status for row in pipelines.team.last_step.tasks}
    assert rows == {"backend": "failed", "frontend": "cancelled"}


async def test_cancellation_ends_all_that_runs(pipelines: Pipelines) -> None:
    """Nothing goes on behind a cancelled run."""
    both = asyncio.Barrier(3)

    async def never_ends(_: Notice) -> Notice:
        await both.wait()
        await asyncio.Event().wait()
        raise AssertionError

    pipelines.team.behave("backend", 1, never_ends)
    pipelines.team.behave("frontend", 1, never_ends)
    handle = await pipelines.start(pipeline=SIDE_BY_SIDE.model_dump(mode="json"))
    await both.wait()
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert {row.status for row in pipelines.team.last_step.tasks} == {"cancelled"}
    assert pipelines.team.last_step.run.status == "cancelled"


async def test_a_parked_round_waits_outside_the_worker_and_begins_again(pipelines: Pipelines) -> None:
    """The first attempt is refused for 1 s, the second is the same round's first attempt again: none is used up."""
    attempts: list[int] = []

    def parks_once(notice: Notice) -> Notice:
        attempts.append(len(attempts) + 1)
        if len(attempts) == 1:
            raise ApplicationError("openai: closed", 0.6, type=errors.PROVIDER_PARKED, non_retryable=True)
        return notice

    pipelines.team.behave("backend", 1, parks_once)
    handle = await pipelines.start()
    parked = await until(handle, lambda progress: progress.stages[2].state is StageState.PARKED)
    assert parked.stages[2].reason == "openai: closed"
    assert parked.stages[2].parked_until is not None
    result = await handle.result()
    assert [order.round for order in pipelines.team.orders["backend"]] == [1, 1]
    assert (result.stages[2].rounds, result.status) == (1, RunStatus.COMPLETED)
    history = await handle.fetch_history()
    started = [event.activity_task_started_event_attributes for event in history.events]
    assert {item.attempt for item in started if item.scheduled_event_id} == {1}
    assert "stage.parked" in pipelines.team.events()


async def test_a_parked_run_can_be_cancelled(pipelines: Pipelines) -> None:
    """The timer is no prison."""

    def parks(_: Notice) -> Notice:
        raise ApplicationError("openai: closed", 600, type=errors.PROVIDER_PARKED, non_retryable=True)

    pipelines.team.behave("research", 1, parks)
    handle = await pipelines.start()
    await until(handle, lambda progress: progress.stages[0].state is StageState.PARKED)
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert pipelines.team.last_step.run.status == "cancelled"


async def test_rework_beside_a_running_stage(pipelines: Pipelines) -> None:
    """QA sends the frontend back while nothing else depends on it; every round is recorded once."""
    pipelines.team.behave("qa", 1, says(Verdict.FAIL, rework=["frontend", "backend"]))
    result = await pipelines.run(pipeline=SIDE_BY_SIDE.model_dump(mode="json"))
    rounds = {stage.stage: stage.rounds for stage in result.stages}
    assert rounds == {"research": 1, "critique": 1, "backend": 2, "frontend": 2, "qa": 2, "statistics": 1}
    ids = [event.event_id for event in pipelines.team.stored_events()]
    assert len(ids) == len(set(ids))


async def test_priority_reaches_the_queue(pipelines: Pipelines) -> None:
    """Temporal's own priority decides who waits when workers are scarce."""
    handle = await pipelines.start(priority=1, tenant="acme")
    await handle.result()
    history = await handle.fetch_history()
    scheduled = [event.activity_task_scheduled_event_attributes for event in history.events]
    priorities = [item.priority for item in scheduled if item.activity_id]
    assert {(item.priority_key, item.fairness_key) for item in priorities} == {(1, "acme")}
