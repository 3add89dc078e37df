"""A run's budget in the workflow: in its first step, changed by a person, and what goes on with it."""

import pytest
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from schemas import errors
from schemas.budget import Budget, BudgetChange
from schemas.notice import Notice, Verdict
from schemas.pipeline import DecisionAction, RunStatus
from tests.workflows.conftest import Pipelines
from tests.workflows.test_feature_pipeline import decision, waits
from workflows.feature_pipeline import FeaturePipelineWorkflow

MORE = BudgetChange(budget=Budget.model_validate({"usd": "2.00"}), by="ann")


def out_of_money(notice: Notice) -> Notice:
    """A round that had to stop."""
    changes = {"status": "blocked", "blockers": "budget: the run has $0.01 left", "ready_for_next_stage": False}
    return notice.model_copy(update=changes)


async def test_the_first_step_alone_has_the_budget(pipelines: Pipelines) -> None:
    """As the request says it, by name or in amounts; a run without one says nothing of it."""
    for budget in ({"usd": 0.5, "calls": 40}, "small", None):
        pipelines.team.steps.clear()
        await pipelines.run(**({} if budget is None else {"budget": budget}))
        first, *others = [step.run.budget for step in pipelines.team.steps]
        assert first == (Budget.model_validate(budget) if isinstance(budget, dict) else budget)
        assert set(others) == {None}


async def test_a_budget_that_cannot_be_paid_fails_the_run(pipelines: Pipelines) -> None:
    """With a code and a reason, before any agent is asked; the row says so."""
    pipelines.team.can_pay = False
    with pytest.raises(WorkflowFailureError) as failure:
        await pipelines.run(budget={"usd": 1})
    cause = failure.value.cause
    assert isinstance(cause, ApplicationError)
    assert (cause.type, cause.non_retryable) == (errors.BUDGET_REFUSED, True)
    assert "cannot be paid" in cause.message
    assert pipelines.team.orders == {}
    assert pipelines.team.last_step.run.status == "failed"


@pytest.mark.parametrize("stage", ["critique", "backend", "qa"])
async def test_more_money_lets_the_stage_go_on(pipelines: Pipelines, stage: str) -> None:
    """A review or a test that stopped sends nothing back: it is done again itself, with what it had."""
    pipelines.team.behave(stage, 1, out_of_money)
    handle = await pipelines.start(budget={"usd": "0.50"})
    [waiting] = (await waits(handle)).waiting
    assert (waiting.stage, waiting.reason) == (stage, "blocked: budget: the run has $0.01 left")
    said = await handle.execute_update(FeaturePipelineWorkflow.set_budget, MORE)
    assert said == f"the run may spend $2.00 in all; {stage} goes on"
    assert (await handle.result()).status is RunStatus.COMPLETED
    assert [step.run.budget for step in pipelines.team.steps if step.run.budget][1:] == [MORE.budget]
    rounds = {name: len(orders) for name, orders in pipelines.team.orders.items()}
    assert rounds == {name: 1 + (name == stage) for name in rounds}
    second = pipelines.team.orders[stage][1]
    assert "the run may now spend $2.00 in all" in second.comment
    assert stage in [item.stage for item in second.inputs]


async def test_a_person_may_take_the_partial_work(pipelines: Pipelines) -> None:
    """Approving it needs no money."""
    pipelines.team.behave("backend", 1, out_of_money)
    handle = await pipelines.start(budget={"calls": 7})
    await handle.execute_update(FeaturePipelineWorkflow.decide, decision(await waits(handle), DecisionAction.APPROVE))
    assert (await handle.result()).status is RunStatus.COMPLETED


async def test_what_cannot_be_paid_changes_nothing(pipelines: Pipelines) -> None:
    """The update fails with the reason, and the run still waits for whoever has the money or decides."""
    pipelines.team.behave("backend", 1, out_of_money)
    handle = await pipelines.start(budget={"usd": 1})
    progress = await waits(handle)
    pipelines.team.can_pay = False
    with pytest.raises(WorkflowUpdateFailedError) as refusal:
        await handle.execute_update(FeaturePipelineWorkflow.set_budget, MORE)
    cause = refusal.value.cause
    assert isinstance(cause, ApplicationError)
    assert (cause.type, "cannot be paid" in cause.message) == (errors.BUDGET_REFUSED, True)
    await handle.execute_update(FeaturePipelineWorkflow.decide, decision(progress, DecisionAction.REVISE))
    assert (await handle.result()).status is RunStatus.COMPLETED


async def test_only_what_stopped_for_money_goes_on(pipelines: Pipelines) -> None:
    """A stage that waits for an approval goes on waiting."""
    handle = await pipelines.start(gates=["research"])
    progress = await waits(handle)
    said = await handle.execute_update(FeaturePipelineWorkflow.set_budget, MORE)
    assert said == "the run may spend $2.00 in all"
    assert (await waits(handle)).waiting == progress.waiting
    await handle.execute_update(FeaturePipelineWorkflow.decide, decision(progress, DecisionAction.APPROVE))
    assert (await handle.result()).stages[1].verdict is Verdict.APPROVE
