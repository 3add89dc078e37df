"""A run's bookkeeping: what is stored is let go, what happened meanwhile is kept."""

from datetime import UTC, datetime, timedelta

from schemas.budget import Budget, BudgetChange
from schemas.events import BudgetSet, RunStarted, StageStarted, SystemEvent
from schemas.pipeline import DEFAULT_PIPELINE, FeatureRequest, RunStatus
from schemas.workflow_ids import event_id
from tests.integration.test_past import notice
from workflows.run_state import RunState

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def test_steps_of_parallel_stages_lose_no_event() -> None:
    """Two steps are under way at once, and something more happens before either is confirmed."""
    request = FeatureRequest(feature="search", brief="Find it.")
    run = RunState(request=request, run_key="feature/search/1", workflow_id="feature/search", started_at=NOW)
    run.open()
    first = run.take_step(NOW)
    run.set_paused(paused=True, now=NOW + timedelta(seconds=1))
    second = run.take_step(NOW)
    run.set_paused(paused=False, now=NOW + timedelta(seconds=2))
    run.confirm_step(first)
    run.confirm_step(second)
    last = run.take_step(NOW)
    assert [event.event_type for event in second.events] == ["run.started", "run.paused"]
    assert [event.event_type for event in last.events] == ["run.resumed"]


def new_run() -> RunState:
    """A run that has begun."""
    request = FeatureRequest(feature="search", brief="Find it.")
    run = RunState(request=request, run_key="feature/search/1", workflow_id="feature/search", started_at=NOW)
    run.open()
    return run


def told(run: RunState) -> list[SystemEvent]:
    """Everything that is to be told."""
    return list(run.take_step(NOW).events)


def test_each_event_names_what_led_to_it() -> None:
    """A round is caused by what sent it: the run's start, the work that it needs, or the verdict."""
    run, [research, critique, *_] = new_run(), DEFAULT_PIPELINE.stages
    first = run.start_round(research, NOW, [], "")
    run.finish_round(first, notice(research, 1), NOW)
    run.finish_stage(research, "", NOW)
    review = run.start_round(critique, NOW, [run.reference("research")], "")
    run.finish_round(review, notice(critique, 1), NOW)
    run.start_round(research, NOW, [run.reference("research"), run.reference("critique")], "")
    run.end(RunStatus.FAILED, "enough", NOW)
    names = {event.event_id: f"{event.event_type} {event.entity_id.rpartition('/')[2]}" for event in told(run)}
    causes = {names[event.event_id]: names.get(event.causation_id or "") for event in told(run)}
    assert causes == {
        "run.started 1": None,
        "stage.started research-1": "run.started 1",
        "stage.completed research-1": "stage.started research-1",
        "stage.accepted research-1": "stage.completed research-1",
        "stage.started critique-1": "stage.accepted research-1",
        "stage.completed critique-1": "stage.started critique-1",
        "stage.started research-2": "stage.completed critique-1",
        "stage.cancelled research-2": "stage.started research-2",
        "run.failed 1": "stage.cancelled research-2",
    }


def test_an_id_names_what_happened_and_not_when_it_was_told() -> None:
    """An attempt that is made again may tell two things in the other order, under the same ids."""
    ids = []
    for is_paused_first in (True, False):
        run, [research, *_] = new_run(), DEFAULT_PIPELINE.stages
        if is_paused_first:
            run.set_paused(paused=True, now=NOW)
        run.start_round(research, NOW, [], "")
        if not is_paused_first:
            run.set_paused(paused=True, now=NOW)
        ids.append({event.event_id for event in told(run)})
    assert ids[0] == ids[1]


def test_what_happens_again_after_a_reset_is_told_again() -> None:
    """Under other ids; the agent and the journal are told which start of the round caused what they tell."""
    run, [research, *_] = new_run(), DEFAULT_PIPELINE.stages
    run.note_reset(0xBEE, NOW)
    current = run.start_round(research, NOW, [], "")
    started, reset, again = told(run)
    assert isinstance(started, RunStarted)
    assert (reset.event_type, reset.occurrence) == ("run.reset", "@bee")
    assert isinstance(again, StageStarted)
    assert again.event_id == event_id(current.task_key, "stage.started", "@bee")
    assert [task.reset for task in run.take_step(NOW).tasks] == ["@bee"]


def test_a_budget_that_was_refused_was_not_set() -> None:
    """Its event is withdrawn, and causes nothing; the next one is told, with who set it."""
    run = new_run()
    [started] = told(run)
    change = BudgetChange(budget=Budget.model_validate({"usd": "2", "agents": {"roy": {"usd": "0.5"}}}), by="ann")
    run.withdraw(run.budget_set(change, NOW))
    assert told(run) == [started]
    run.budget_set(change, NOW)
    event = told(run)[-1]
    assert (event.event_type, event.occurrence, event.causation_id) == ("budget.set", "2", started.event_id)
    assert isinstance(event, BudgetSet)
    assert (event.payload.by, str(event.payload.budget)) == ("ann", "$2.00, roy $0.50")
