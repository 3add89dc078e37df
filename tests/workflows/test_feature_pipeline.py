"""Every branch of the pipeline, on a real Temporal server."""

import asyncio
from collections.abc import Callable

import pytest
from temporalio.client import WorkflowFailureError, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError, CancelledError

from schemas import errors
from schemas.notice import Notice, Verdict
from schemas.pipeline import Decision, DecisionAction, PipelineResult, Progress, RunStatus, StageState
from tests.workflows.conftest import Pipelines, says
from workflows.feature_pipeline import FeaturePipelineWorkflow

Handle = WorkflowHandle[FeaturePipelineWorkflow, PipelineResult]
STAGES = ["research", "critique", "backend", "frontend", "qa", "statistics"]


async def waits(handle: Handle) -> Progress:
    """Wait until a person is asked, and return the progress at that moment."""
    return await until(handle, lambda progress: bool(progress.waiting))


async def until(handle: Handle, condition: Callable[[Progress], bool]) -> Progress:
    """Ask for progress until the condition holds; the test's own time-out bounds it."""
    while not condition(progress := await handle.query(FeaturePipelineWorkflow.progress)):
        await asyncio.sleep(0.02)
    return progress


def decision(progress: Progress, action: DecisionAction, **changes: str) -> Decision:
    """A decision on what waits."""
    [waiting] = progress.waiting
    fields = {"stage": waiting.stage, "action": action, "sha256": waiting.sha256, "by": "ann"}
    return Decision.model_validate({**fields, **changes})


async def test_straight_run_hands_over_references(pipelines: Pipelines) -> None:
    """Each stage runs once and is handed the tickets of what it needs, and of nothing else."""
    result = await pipelines.run()
    assert result.status is RunStatus.COMPLETED
    assert [stage.stage for stage in result.stages] == STAGES
    assert sorted(pipelines.team.rounds()) == sorted(f"{stage}-1" for stage in STAGES)
    [qa] = pipelines.team.orders["qa"]
    assert [item.stage for item in qa.inputs] == ["research", "backend", "frontend"]
    assert result.tokens == 6 * 150


async def test_revise_sends_research_back_with_the_critique(pipelines: Pipelines) -> None:
    """Round 2 of research gets its own round 1 and the critique; critique round 2 sees the new research."""
    pipelines.team.behave("critique", 1, says(Verdict.REVISE))
    result = await pipelines.run()
    assert result.status is RunStatus.COMPLETED
    second = pipelines.team.orders["research"][1]
    assert [item.stage for item in second.inputs] == ["research", "critique"]
    again = pipelines.team.orders["critique"][1]
    assert [(item.stage, item.ref.sequence) for item in again.inputs] == [("research", 2), ("critique", 1)]
    assert [order.round for order in pipelines.team.orders["backend"]] == [1]


async def test_failed_qa_sends_back_what_it_names(pipelines: Pipelines) -> None:
    """QA names frontend: only frontend is done again, then QA looks again."""
    pipelines.team.behave("qa", 1, says(Verdict.FAIL, rework=["frontend"]))
    result = await pipelines.run()
    assert result.status is RunStatus.COMPLETED
    assert [len(pipelines.team.orders[stage]) for stage in ("backend", "frontend", "qa")] == [1, 2, 2]
    assert [item.stage for item in pipelines.team.orders["frontend"][1].inputs] == [
        "research",
        "backend",
        "frontend",
        "qa",
    ]


async def test_unhappy_reviewer_is_bounded_and_a_person_may_approve(pipelines: Pipelines) -> None:
    """After the last round a person is asked; approving takes the work as it is."""
    for number in (1, 2, 3):
        pipelines.team.behave("critique", number, says(Verdict.REVISE))
    handle = await pipelines.start()
    progress = await waits(handle)
    assert progress.status is RunStatus.WAITING
    assert "3 rounds" in progress.waiting[0].reason
    assert len(pipelines.team.orders["research"]) == 3
    text = await handle.execute_update(FeaturePipelineWorkflow.decide, decision(progress, DecisionAction.APPROVE))
    assert "approve" in text
    assert (await handle.result()).status is RunStatus.COMPLETED


async def test_rejecting_review_waits_and_a_person_rejects(pipelines: Pipelines) -> None:
    """A rejection by the reviewer is a person's to confirm; the run ends with its reason."""
    pipelines.team.behave("critique", 1, says(Verdict.REJECT))
    handle = await pipelines.start()
    progress = await waits(handle)
    choice = decision(progress, DecisionAction.REJECT, comment="out of scope")
    await handle.execute_update(FeaturePipelineWorkflow.decide, choice)
    result = await handle.result()
    assert result.status is RunStatus.REJECTED
    assert "out of scope" in result.reason
    assert pipelines.team.last_step.run.status == "rejected"


async def test_gate_is_bound_to_what_was_reviewed(pipelines: Pipelines) -> None:
    """A decision on another stage or another hash is refused and changes nothing; revise asks again."""
    handle = await pipelines.start(gates=["backend"])
    first = await waits(handle)
    for wrong in (
        decision(first, DecisionAction.APPROVE, stage="frontend"),
        decision(first, DecisionAction.APPROVE, sha256="0" * 64),
    ):
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await handle.execute_update(FeaturePipelineWorkflow.decide, wrong)
        assert isinstance(refused.value.cause, ApplicationError)
        assert refused.value.cause.type == errors.REQUEST_INVALID
    revise = decision(first, DecisionAction.REVISE, comment="use pagination")
    await handle.execute_update(FeaturePipelineWorkflow.decide, revise)
    second = await until(handle, lambda progress: progress.waiting not in ([], first.waiting))
    assert pipelines.team.orders["backend"][1].comment == "ann: use pagination"
    with pytest.raises(WorkflowUpdateFailedError):
        await handle.execute_update(FeaturePipelineWorkflow.decide, decision(first, DecisionAction.APPROVE))
    await handle.execute_update(FeaturePipelineWorkflow.decide, decision(second, DecisionAction.APPROVE))
    assert (await handle.result()).status is RunStatus.COMPLETED


async def test_gate_times_out(pipelines: Pipelines) -> None:
    """Nobody decides: the run ends as expired and says for how long it waited."""
    result = await pipelines.run(gates=["research"], decision_timeout_seconds=1)
    assert result.status is RunStatus.EXPIRED
    assert "research" in result.reason
    assert pipelines.team.events()[-1] == "run.expired"


async def test_blocked_stage_waits(pipelines: Pipelines) -> None:
    """An agent that is blocked says why, and a person decides."""

    def blocked(notice: Notice) -> Notice:
        return notice.model_copy(update={"status": "blocked", "blockers": "no access to the customer table"})

    pipelines.team.behave("backend", 1, blocked)
    handle = await pipelines.start()
    progress = await waits(handle)
    assert "customer table" in progress.waiting[0].reason
    await handle.execute_update(FeaturePipelineWorkflow.decide, decision(progress, DecisionAction.REVISE))
    assert (await handle.result()).status is RunStatus.COMPLETED
    assert len(pipelines.team.orders["backend"]) == 2


async def test_pause_stops_before_the_next_stage(pipelines: Pipelines) -> None:
    """While paused nothing new starts; resume goes on where it was."""
    handle = await pipelines.start(gates=["research"])
    progress = await waits(handle)
    await handle.signal(FeaturePipelineWorkflow.pause)
    await handle.execute_update(FeaturePipelineWorkflow.decide, decision(progress, DecisionAction.APPROVE))
    await until(handle, lambda progress: progress.status is RunStatus.PAUSED)
    assert "critique" not in pipelines.team.orders
    await handle.signal(FeaturePipelineWorkflow.resume)
    assert (await handle.result()).status is RunStatus.COMPLETED
    assert [event for event in pipelines.team.events() if event.startswith("run.")] == [
        "run.started",
        "run.paused",
        "run.resumed",
        "run.completed",
    ]


async def test_cancel_leaves_rows_that_say_so(pipelines: Pipelines) -> None:
    """A cancelled run is CANCELLED in Temporal and `cancelled` in the rows and events."""
    handle = await pipelines.start(gates=["research"])
    await waits(handle)
    await handle.cancel()
    with pytest.raises(WorkflowFailureError) as failure:
        await handle.result()
    assert isinstance(failure.value.cause, CancelledError)
    assert pipelines.team.last_step.run.status == "cancelled"
    assert pipelines.team.events()[-1] == "run.cancelled"


async def test_failed_stage_fails_the_run_with_its_reason(pipelines: Pipelines) -> None:
    """The failure names stage and round, carries the code, and the rows say the same."""

    def fails(_: Notice) -> Notice:
        raise ApplicationError("invalid API key", type=errors.PROVIDER_REJECTED, non_retryable=True)

    pipelines.team.behave("backend", 1, fails)
    handle = await pipelines.start()
    with pytest.raises(WorkflowFailureError) as failure:
        await handle.result()
    cause = failure.value.cause
    assert isinstance(cause, ApplicationError)
    assert cause.message == "backend, round 1: invalid API key"
    assert cause.type == errors.PROVIDER_REJECTED
    [task] = pipelines.team.last_step.tasks
    assert (task.stage, task.status, task.error) == ("backend", "failed", "backend, round 1: invalid API key")
    assert (await handle.query(FeaturePipelineWorkflow.progress)).stages[2].state is StageState.FAILED


async def test_verdict_of_the_wrong_kind_fails(pipelines: Pipelines) -> None:
    """A reviewer without a verdict has not reviewed."""

    def silent(notice: Notice) -> Notice:
        return notice.model_copy(update={"metadata": notice.metadata.model_copy(update={"verdict": None})})

    pipelines.team.behave("critique", 1, silent)
    with pytest.raises(WorkflowFailureError) as failure:
        await pipelines.run()
    assert isinstance(failure.value.cause, ApplicationError)
    assert failure.value.cause.type == errors.AGENT_INVALID_OUTPUT
    assert pipelines.team.last_step.run.status == "failed"


async def test_result_over_the_claim_check_limit_is_refused(pipelines: Pipelines) -> None:
    """An agent that returns a body instead of a ticket fails at once and is not run again."""

    def body(notice: Notice) -> Notice:
        return notice.model_copy(update={"summary": "x" * 9000})

    pipelines.team.behave("research", 1, body)
    with pytest.raises(WorkflowFailureError) as failure:
        await pipelines.run()
    assert isinstance(failure.value.cause, ApplicationError)
    assert failure.value.cause.type == errors.RESULT_TOO_LARGE
    assert len(pipelines.team.orders["research"]) == 1


async def test_history_stays_small(pipelines: Pipelines) -> None:
    """The demo's run (one revise round) stays below 20 KB, with realistic summaries."""
    pipelines.team.behave("critique", 1, says(Verdict.REVISE))
    handle = await pipelines.start()
    await handle.result()
    size = (await handle.describe()).raw_description.workflow_execution_info.history_size_bytes
    assert size <= 20 * 1024, size
