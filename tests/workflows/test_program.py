"""`Program` on a real Temporal server: what is started when, and what became of it."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowUpdateFailedError,
)
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.testing import WorkflowEnvironment

from schemas import errors
from schemas.notice import Notice
from schemas.pipeline import Decision, DecisionAction, FeatureRequest
from schemas.program import FEATURE_WAITS, FeatureWaits, MaxConcurrent, ProgramResult, program_workflow_id
from schemas.task_queues import CORE
from schemas.workflow_ids import feature_workflow_id
from tests.workflows.conftest import FakeTeam, fake_workers, local_temporal
from tests.workflows.programs import (
    AT_ONCE,
    HeldPipeline,
    Programs,
    becomes,
    held_programs,
    most_at_once,
    program_worker,
    starts,
    states,
    timeline,
    until,
)
from workflows.feature_pipeline import FeaturePipelineWorkflow
from workflows.program import ProgramWorkflow

PROGRAMS = "programs"
"""A queue of its own, since the workers of the fake team know no programs."""


@pytest.fixture(scope="module")
async def environment() -> AsyncIterator[WorkflowEnvironment]:
    """A server of this module's own: features are named by their workflow ids."""
    async with local_temporal() as running:
        yield running


@pytest.fixture
async def held(environment: WorkflowEnvironment) -> AsyncIterator[Programs]:
    """Programs whose pipelines end when the test says so."""
    async with held_programs(environment.client) as programs:
        yield programs


@pytest.fixture
def team() -> FakeTeam:
    """The agents behind `real`."""
    return FakeTeam()


@pytest.fixture
async def real(environment: WorkflowEnvironment, team: FakeTeam) -> AsyncIterator[Programs]:
    """Programs with the real pipeline and the fake team."""
    async with fake_workers(environment.client, team), program_worker(environment.client, PROGRAMS):
        yield Programs(environment.client, PROGRAMS)


# --- what is started when -------------------------------------------------------------------------------------------


async def test_the_bound_is_reached_and_never_exceeded(held: Programs) -> None:
    """By the program's own history, not by what it says of itself."""
    names = held.names(20)
    handle = await held.start([{"feature": name, "brief": AT_ONCE} for name in names], max_concurrent=3)
    result = await handle.result()
    assert result.counts == {"completed": 20}
    assert await most_at_once(handle) == 3
    assert await starts(handle) == names


async def test_a_place_is_given_on_only_when_one_is_free(held: Programs) -> None:
    """Two work, the third waits for one of them."""
    first, second, third = held.names(3)
    handle = await held.start([first, second, third], max_concurrent=2)
    await becomes(handle, {first: "running", second: "running", third: "pending"})
    await held.end(second)
    await becomes(handle, {first: "running", second: "completed", third: "running"})
    await held.end(first, third)
    assert (await handle.result()).counts == {"completed": 3}


def two_tenants(ours: list[str], theirs: list[str]) -> list[dict[str, object]]:
    """One tenant stands first in the file, with all of its features."""
    features: list[dict[str, object]] = [{"feature": name, "brief": AT_ONCE, "tenant": "ours"} for name in ours]
    return features + [{"feature": name, "brief": AT_ONCE, "tenant": "theirs"} for name in theirs]


async def test_two_tenants_take_turns_where_one_place_is_free_at_a_time(held: Programs) -> None:
    """Equal shares of the starts, from the first to the last."""
    ours, theirs = held.names(8), held.names(8)
    handle = await held.start(two_tenants(ours, theirs), max_concurrent=1)
    await handle.result()
    assert await starts(handle) == [name for pair in zip(ours, theirs, strict=True) for name in pair]


async def test_two_tenants_have_equal_shares_of_the_places(held: Programs) -> None:
    """Whoever has more at work than the other has to wait, however long the single runs take."""
    ours, theirs = held.names(12), held.names(12)
    handle = await held.start(two_tenants(ours, theirs), max_concurrent=4)
    await handle.result()
    at_work, begun = {True: 0, False: 0}, {True: 0, False: 0}
    for feature, begins in await timeline(handle):
        is_ours = feature in ours
        if begins and begun[not is_ours] < len(ours):
            assert at_work[is_ours] <= at_work[not is_ours], feature
        at_work[is_ours] += 1 if begins else -1
        begun[is_ours] += begins
    assert begun == {True: 12, False: 12}


async def test_a_higher_priority_goes_first_and_then_the_file_decides(held: Programs) -> None:
    """1 is the highest; 3 is what a feature has that says nothing."""
    late, middle, early, also_early = held.names(4)
    features: list[dict[str, object]] = [
        {"feature": late, "priority": 5},
        {"feature": middle},
        {"feature": early, "priority": 1},
        {"feature": also_early, "priority": 1},
    ]
    handle = await held.start([{**feature, "brief": AT_ONCE} for feature in features], max_concurrent=1)
    await handle.result()
    assert await starts(handle) == [early, also_early, middle, late]


async def test_pipelines_are_given_priority_and_fairness(held: Programs) -> None:
    """Temporal's own, for the workflow tasks of the runs; defaults are left out."""
    plain, urgent = held.names(2)
    features: list[dict[str, object]] = [
        {"feature": plain, "brief": AT_ONCE},
        {"feature": urgent, "brief": AT_ONCE, "tenant": "sales", "priority": 2},
    ]
    handle = await held.start(features, tenants={"sales": {"weight": 2.5}})
    await handle.result()
    found = {}
    for name in (plain, urgent):
        described = await held.client.get_workflow_handle(feature_workflow_id(name)).describe()
        found[name] = described.raw_info.priority
    assert (found[plain].priority_key, found[plain].fairness_key, found[plain].fairness_weight) == (0, "default", 0)
    assert (found[urgent].priority_key, found[urgent].fairness_key) == (2, "sales")
    assert found[urgent].fairness_weight == 2.5


async def test_who_waits_for_a_person_gives_the_place_away_and_takes_it_back(held: Programs) -> None:
    """While both work there is one more than the bound, and nothing new is started until it is kept again."""
    asking, next_one, last = held.names(3)
    handle = await held.start([asking, next_one, last], max_concurrent=1)
    await becomes(handle, {asking: "running", next_one: "pending"})
    await held.ask(asking, "critique")
    progress = await becomes(handle, {asking: "waiting", next_one: "running", last: "pending"})
    assert progress.features[0].reason == "critique: this stage waits for an approval"
    await held.ask(asking, "")
    progress = await becomes(handle, {asking: "running", next_one: "running", last: "pending"})
    assert progress.features[0].reason == ""
    await held.end(asking)
    await becomes(handle, {asking: "completed", next_one: "running", last: "pending"})
    await held.end(next_one)
    await becomes(handle, {next_one: "completed", last: "running"})
    await held.end(last)
    assert (await handle.result()).counts == {"completed": 3}


async def test_pause_starts_nothing_and_resume_goes_on(held: Programs) -> None:
    """What has begun is finished."""
    first, second = held.names(2)
    handle = await held.start([first, second], max_concurrent=1)
    await becomes(handle, {first: "running"})
    await handle.signal(ProgramWorkflow.pause)
    await held.end(first)
    progress = await becomes(handle, {first: "completed"})
    assert progress.is_paused
    assert states(progress)[second] == "pending"
    await handle.signal(ProgramWorkflow.resume)
    await becomes(handle, {second: "running"})
    await held.end(second)
    await handle.result()


async def test_a_program_can_be_started_paused(held: Programs) -> None:
    """The signal arrives before the first task."""
    [name] = held.names(1)
    handle = await held.client.start_workflow(
        "Program",
        {"name": name, "features": [{"feature": name, "brief": AT_ONCE}]},
        id=program_workflow_id(name),
        task_queue=CORE,
        start_signal="pause",
    )
    typed = held.client.get_workflow_handle_for(ProgramWorkflow.run, handle.id)
    assert (await becomes(typed, {name: "pending"})).is_paused
    await typed.signal(ProgramWorkflow.resume)
    assert (await typed.result()).counts == {"completed": 1}


async def test_the_bound_can_be_changed_while_it_runs(held: Programs) -> None:
    """More begin at once; fewer only when some have ended. A bound that makes no sense is refused."""
    names = held.names(5)
    handle = await held.start(names, max_concurrent=1)
    await becomes(handle, {names[0]: "running", names[1]: "pending"})
    answer = await handle.execute_update(ProgramWorkflow.set_max_concurrent, MaxConcurrent(max_concurrent=3))
    assert answer == "at most 3 features at once"
    await becomes(handle, {names[2]: "running", names[3]: "pending"})
    await handle.execute_update(ProgramWorkflow.set_max_concurrent, MaxConcurrent(max_concurrent=1))
    for bad in (0, 101, "2", None):
        with pytest.raises(WorkflowUpdateFailedError):
            await handle.execute_update("set_max_concurrent", {"max_concurrent": bad})
    await held.end(names[0], names[1])
    progress = await becomes(handle, {names[0]: "completed", names[1]: "completed"})
    assert (progress.max_concurrent, states(progress)[names[3]]) == (1, "pending")
    await held.end(names[2])
    await becomes(handle, {names[3]: "running", names[4]: "pending"})
    await held.end(names[3])
    await becomes(handle, {names[4]: "running"})
    await held.end(names[4])
    await handle.result()


# --- what became of it ----------------------------------------------------------------------------------------------


async def test_the_summary_says_what_went_through_and_why_the_rest_did_not(held: Programs) -> None:
    """A feature that fails does not fail the program; what a failed run took is not known, and said so."""
    good, bad, refused, forgotten, ended, gone = names = held.names(6)
    handle = await held.start(names, max_concurrent=6)
    await until(handle, lambda found: set(found.values()) == {"running"})
    await held.end(good)
    await held.end(bad, status="failed")
    await held.end(refused, status="rejected")
    await held.end(forgotten, status="expired")
    await (await held.pipeline(ended)).cancel()
    await (await held.pipeline(gone)).terminate()
    result = await handle.result()
    assert [(line.state, line.reason) for line in result.features] == [
        ("completed", ""),
        ("failed", "backend, round 1: no such model (provider.rejected)"),
        ("rejected", "as the test said"),
        ("expired", "as the test said"),
        ("cancelled", "the run was cancelled"),
        ("failed", "the run was terminated"),
    ]
    assert result.counts == {"completed": 1, "rejected": 1, "expired": 1, "failed": 2, "cancelled": 1}
    assert (result.tokens, result.cost_usd) == (300, Decimal("0.75"))
    assert [line.tokens for line in result.features] == [100, None, 100, 100, None, None]


async def test_a_feature_that_runs_already_is_blocked_and_left_alone(held: Programs) -> None:
    """It is neither joined nor ended, and the others go on."""
    busy, free = held.names(2)
    mine = await held.client.start_workflow(
        HeldPipeline.run,
        FeatureRequest(feature=busy, brief="hold"),
        id=feature_workflow_id(busy),
        task_queue=CORE,
    )
    handle = await held.start([busy, {"feature": free, "brief": AT_ONCE}], max_concurrent=1)
    result = await handle.result()
    assert [(line.state, line.reason) for line in result.features] == [
        ("blocked", f"already runs as feature/{busy}"),
        ("completed", ""),
    ]
    assert (await mine.describe()).status is WorkflowExecutionStatus.RUNNING
    await held.end(busy)
    await mine.result()


async def test_cancelling_the_program_cancels_its_pipelines_and_waits_for_them(held: Programs) -> None:
    """Those that work, those that wait, and those that have not begun."""
    working, asking, pending = held.names(3)
    handle = await held.start([working, asking, pending], max_concurrent=2)
    await becomes(handle, {asking: "running"})
    await handle.signal(ProgramWorkflow.pause)
    await held.ask(asking, "qa")
    await becomes(handle, {working: "running", asking: "waiting", pending: "pending"})
    await handle.cancel()
    with pytest.raises(WorkflowFailureError) as failure:
        await handle.result()
    assert isinstance(failure.value.cause, CancelledError)
    for name in (working, asking):
        described = await held.client.get_workflow_handle(feature_workflow_id(name)).describe()
        assert described.status is WorkflowExecutionStatus.CANCELED
    progress = await handle.query(ProgramWorkflow.progress)
    assert [(line.state, line.reason) for line in progress.features] == [
        ("cancelled", "the run was cancelled"),
        ("cancelled", "the run was cancelled"),
        ("cancelled", "not started: the program was cancelled"),
    ]


async def test_cancelling_when_all_have_begun(held: Programs) -> None:
    """The program then waits for the pipelines alone."""
    first, second = held.names(2)
    handle = await held.start([first, second])
    await becomes(handle, {first: "running", second: "running"})
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert set(states(await handle.query(ProgramWorkflow.progress)).values()) == {"cancelled"}


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        (None, "Program takes one JSON object"),
        ({}, "name: Field required"),
        ({"name": "p", "features": []}, "features: Tuple should have at least 1 item"),
        ({"name": "A B", "features": [{"feature": "x", "brief": "b"}]}, "name: a slug is"),
        ({"name": "p", "features": [{"feature": "x", "brief": " "}]}, "features.0.brief: the brief is empty"),
        ({"name": "p", "features": [{"feature": "x", "brief": "b"}] * 2}, "named more than once: x"),
        ({"name": "p", "features": [{"feature": "x", "brief": "b"}], "max_concurrent": 0}, "max_concurrent: "),
        (
            {"name": "p", "features": [{"feature": f"x{number}", "brief": "b"} for number in range(501)]},
            "at most 500 items",
        ),
    ],
)
async def test_bad_input_fails_with_its_reason(held: Programs, document: object, complaint: str) -> None:
    """It never hangs, and nothing is started."""
    [name] = held.names(1)
    handle = await held.client.start_workflow(
        "Program", args=[] if document is None else [document], id=program_workflow_id(name), task_queue=CORE
    )
    with pytest.raises(WorkflowFailureError) as failure:
        await handle.result()
    cause = failure.value.cause
    assert isinstance(cause, ApplicationError)
    assert (cause.type, complaint in cause.message) == (errors.REQUEST_INVALID, True), cause.message
    assert not [event async for event in handle.fetch_history_events() if "CHILD" in str(event.event_type)]


async def test_signals_that_make_no_sense_change_nothing(held: Programs) -> None:
    """Anyone may send one: of a run that is not ours, of one that has ended, or something else altogether."""
    done, working = held.names(2)
    handle = await held.start([{"feature": done, "brief": AT_ONCE}, working])
    await becomes(handle, {done: "completed", working: "running"})
    for feature in ("somebody-elses", done):
        waits = FeatureWaits(workflow_id=feature_workflow_id(feature), stage="qa", reason="x")
        await handle.signal(FEATURE_WAITS, waits)
    await handle.signal(FEATURE_WAITS, "nonsense")
    await held.ask(working, "qa")
    progress = await becomes(handle, {working: "waiting"})
    assert states(progress)[done] == "completed"
    await held.end(working)
    assert (await handle.result()).counts == {"completed": 2}


async def test_a_signal_that_comes_before_the_first_task_is_ignored(held: Programs) -> None:
    """Nobody waits yet; the program must not fail of it."""
    [name] = held.names(1)
    handle = await held.client.start_workflow(
        "Program",
        {"name": name, "features": [{"feature": name, "brief": AT_ONCE}]},
        id=program_workflow_id(name),
        task_queue=CORE,
        start_signal=FEATURE_WAITS,
        start_signal_args=[FeatureWaits(workflow_id=feature_workflow_id(name), stage="qa", reason="x")],
        result_type=ProgramResult,
    )
    assert (await handle.result()).counts == {"completed": 1}


async def test_the_table_for_people_is_bounded_and_begins_with_what_they_must_do(held: Programs) -> None:
    """50 rows of 60; the one that waits is the first."""
    names = held.names(60)
    handle = await held.start(names, max_concurrent=60)
    await until(handle, lambda found: set(found.values()) == {"running"})
    await held.ask(names[59], "qa")
    await becomes(handle, {names[59]: "waiting"})
    details = (await handle.query("__temporal_workflow_metadata")).current_details
    rows = [line for line in details.splitlines() if line.startswith("| f") and "feature |" not in line]
    assert len(rows) == 50
    assert rows[0] == f"| {names[59]} | default | 3 | waiting | qa: this stage waits for an approval |"
    assert "and 10 more" in details
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()


async def test_a_worker_that_comes_anew_goes_on_where_the_other_was(environment: WorkflowEnvironment) -> None:
    """The second worker has nothing but the history: it replays the program in the middle."""
    async with held_programs(environment.client) as held:
        first, second, third, fourth = held.names(4)
        handle = await held.start([first, second, third, fourth], max_concurrent=2)
        await becomes(handle, {first: "running", second: "running"})
        await held.ask(second, "qa")
        await held.end(first)
        await becomes(handle, {first: "completed", second: "waiting", third: "running", fourth: "running"})
    async with held_programs(environment.client) as held:
        await becomes(handle, {first: "completed", second: "waiting", third: "running", fourth: "running"})
        await held.end(second, third, fourth)
        assert (await handle.result()).counts == {"completed": 4}
    assert await starts(handle) == [first, second, third, fourth]


# --- with the real pipeline -----------------------------------------------------------------------------------------


async def decide(client: Client, feature: str, action: DecisionAction) -> None:
    """Decide on what the feature's pipeline asks."""
    handle = client.get_workflow_handle_for(FeaturePipelineWorkflow.run, feature_workflow_id(feature))
    while not (waiting := (await handle.query(FeaturePipelineWorkflow.progress)).waiting):
        await asyncio.sleep(0.02)
    decision = Decision(stage=waiting[0].stage, action=action, sha256=waiting[0].sha256, by="ann")
    await handle.execute_update(FeaturePipelineWorkflow.decide, decision)


async def test_real_pipelines_wait_fail_and_go_through(real: Programs, team: FakeTeam) -> None:
    """One place: the gate of the first one frees it, so that the others pass by."""
    asking, refused, bad, good = real.names(4)

    def fails(notice: Notice) -> Notice:
        if notice.task == bad:
            raise ApplicationError("invalid API key", type=errors.PROVIDER_REJECTED, non_retryable=True)
        return notice

    team.behave("backend", 1, fails)
    features: list[dict[str, object]] = [
        {"feature": asking, "gates": ["critique"]},
        {"feature": refused, "gates": ["research"]},
        {"feature": bad},
        {"feature": good},
    ]
    handle = await real.start(features, max_concurrent=1)
    await becomes(handle, {asking: "waiting", refused: "waiting", bad: "failed", good: "completed"})
    await decide(real.client, asking, DecisionAction.APPROVE)
    await becomes(handle, {asking: "completed"})
    await decide(real.client, refused, DecisionAction.REJECT)
    result = await handle.result()
    assert [(line.state, line.reason) for line in result.features] == [
        ("completed", ""),
        ("rejected", "ann rejected research: -"),
        ("failed", "backend, round 1: invalid API key (provider.rejected)"),
        ("completed", ""),
    ]
    assert [line.tokens for line in result.features] == [900, 150, None, 900]


async def test_a_terminated_program_leaves_its_pipelines_alone(real: Programs) -> None:
    """They have paid for their work and go on to their end, although nobody hears them any more."""
    [name] = real.names(1)
    handle = await real.start([{"feature": name, "gates": ["research", "backend"]}])
    await becomes(handle, {name: "waiting"})
    await handle.terminate("by mistake")
    await decide(real.client, name, DecisionAction.APPROVE)
    await decide(real.client, name, DecisionAction.APPROVE)
    run = real.client.get_workflow_handle_for(FeaturePipelineWorkflow.run, feature_workflow_id(name))
    assert (await run.result()).status == "completed"


async def test_the_history_grows_by_a_few_events_and_kilobytes_for_each_feature(real: Programs) -> None:
    """So 500 features need no second history (Temporal allows 51,200 events and 50 MB)."""
    names = real.names(20)
    handle = await real.start([{"feature": name} for name in names], max_concurrent=10)
    result = await handle.result()
    assert result.counts == {"completed": 20}
    description = await handle.describe()
    assert description.history_length / 20 <= 10
    assert description.raw_info.history_size_bytes / 20 <= 6_000
    assert len(result.model_dump_json(exclude_unset=True)) / 20 <= 200
