"""Records one history per branch of `FeaturePipeline` that has none: `python -m tests.replay.record [BRANCH …]`.

Name branches to record them anew, when a change to the workflow is meant to start new histories, and say so in the
CHANGELOG; the old ones stay until no run of that age can still be open.
"""

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError

from schemas import errors
from schemas.budget import Budget, BudgetChange
from schemas.notice import Notice, Verdict
from schemas.pipeline import Decision, DecisionAction, PipelineResult, RunStatus
from schemas.review import FindingMark
from tests.workflows.conftest import FakeTeam, Pipelines, fake_workers, local_temporal, says
from tests.workflows.test_stage_graph import SIDE_BY_SIDE
from workflows.feature_pipeline import FeaturePipelineWorkflow

HISTORIES = Path(__file__).parent / "histories"
Handle = WorkflowHandle[FeaturePipelineWorkflow, PipelineResult]
Branch = Callable[[Pipelines], Awaitable[Handle]]


async def straight(pipelines: Pipelines) -> Handle:
    """Every stage is accepted at once."""
    return await pipelines.start()


async def revise(pipelines: Pipelines) -> Handle:
    """The critique sends research back once."""
    pipelines.team.behave("critique", 1, says(Verdict.REVISE))
    return await pipelines.start()


async def qa_rework(pipelines: Pipelines) -> Handle:
    """QA sends backend and frontend back once."""
    pipelines.team.behave("qa", 1, says(Verdict.FAIL, rework=["backend", "frontend"]))
    return await pipelines.start()


async def gate_approved(pipelines: Pipelines) -> Handle:
    """A person approves at a gate."""
    handle = await pipelines.start(gates=["backend"])
    await _decide(handle, DecisionAction.APPROVE)
    return handle


async def gate_timed_out(pipelines: Pipelines) -> Handle:
    """Nobody decides in time."""
    return await pipelines.start(gates=["research"], decision_timeout_seconds=1)


async def rejected(pipelines: Pipelines) -> Handle:
    """The reviewer rejects, and a person agrees."""
    pipelines.team.behave("critique", 1, says(Verdict.REJECT))
    handle = await pipelines.start()
    await _decide(handle, DecisionAction.REJECT)
    return handle


async def paused(pipelines: Pipelines) -> Handle:
    """Paused at a gate, resumed later."""
    handle = await pipelines.start(gates=["research"])
    await handle.signal(FeaturePipelineWorkflow.pause)
    await _decide(handle, DecisionAction.APPROVE)
    while (await handle.query(FeaturePipelineWorkflow.progress)).status is not RunStatus.PAUSED:
        await asyncio.sleep(0.02)
    await handle.signal(FeaturePipelineWorkflow.resume)
    return handle


async def cancelled(pipelines: Pipelines) -> Handle:
    """Cancelled while a person is asked."""
    handle = await pipelines.start(gates=["critique"])
    await _waiting(handle)
    await handle.cancel()
    return handle


async def failed(pipelines: Pipelines) -> Handle:
    """A provider refuses for good."""

    def fails(_: Notice) -> Notice:
        raise ApplicationError("invalid API key", type=errors.PROVIDER_REJECTED, non_retryable=True)

    pipelines.team.behave("backend", 1, fails)
    return await pipelines.start()


async def side_by_side(pipelines: Pipelines) -> Handle:
    """Backend and frontend at the same time; QA sends both back."""
    pipelines.team.behave("qa", 1, says(Verdict.FAIL, rework=["backend", "frontend"]))
    return await pipelines.start(pipeline=SIDE_BY_SIDE.model_dump(mode="json"))


async def parked(pipelines: Pipelines) -> Handle:
    """No model can be asked for half a second."""
    refusals = iter([0.5])

    def parks_once(notice: Notice) -> Notice:
        for seconds in refusals:
            raise ApplicationError("openai: closed", seconds, type=errors.PROVIDER_PARKED, non_retryable=True)
        return notice

    pipelines.team.behave("backend", 1, parks_once)
    return await pipelines.start()


async def standstill(pipelines: Pipelines) -> Handle:
    """The reviewer repeats itself, and a person takes the work as it is."""
    mark = str(FindingMark.of("F1", is_major=True, where="R1", claim="no limit"))
    for number in (1, 2):
        pipelines.team.behave("critique", number, says(Verdict.REVISE, findings=[mark]))
    handle = await pipelines.start()
    await _decide(handle, DecisionAction.APPROVE)
    return handle


async def over_budget(pipelines: Pipelines) -> Handle:
    """The backend stops for want of money, and a person gives the run more."""

    def stops(notice: Notice) -> Notice:
        return notice.model_copy(update={"status": "blocked", "blockers": "budget: the run has $0.01 left"})

    pipelines.team.behave("backend", 1, stops)
    handle = await pipelines.start(budget={"usd": "0.50"})
    await _waiting(handle)
    change = BudgetChange(budget=Budget.model_validate({"usd": "2"}), by="ann")
    await handle.execute_update(FeaturePipelineWorkflow.set_budget, change)
    return handle


BRANCHES: tuple[Branch, ...] = (
    straight,
    revise,
    qa_rework,
    gate_approved,
    gate_timed_out,
    rejected,
    paused,
    cancelled,
    failed,
    side_by_side,
    parked,
    standstill,
    over_budget,
)


async def _waiting(handle: Handle) -> tuple[str, str]:
    while True:
        waiting = (await handle.query(FeaturePipelineWorkflow.progress)).waiting
        if waiting:
            return waiting[0].stage, waiting[0].sha256
        await asyncio.sleep(0.02)


async def _decide(handle: Handle, action: DecisionAction) -> None:
    stage, sha256 = await _waiting(handle)
    decision = Decision(stage=stage, action=action, sha256=sha256, by="ann", comment="")
    await handle.execute_update(FeaturePipelineWorkflow.decide, decision)


def without_traces(history: str) -> str:
    """The history without what names the machine that recorded it; a replay reads neither."""
    return re.sub(r'"(stackTrace|identity)": "(?:[^"\\]|\\.)*"', r'"\1": ""', history)


async def record(names: list[str]) -> None:
    """Run the named branches, or those that have no history yet, and write their histories."""
    async with local_temporal() as environment:
        for branch in BRANCHES:
            if branch.__name__ not in names and (names or _path(branch).exists()):
                continue
            team = FakeTeam()
            async with fake_workers(environment.client, team):
                handle = await branch(Pipelines(environment.client, team))
                try:
                    await handle.result()
                except WorkflowFailureError as failure:
                    print(f"{branch.__name__}: {failure.cause}")
                history = await handle.fetch_history()
            _path(branch).write_text(without_traces(history.to_json()) + "\n")


def _path(branch: Branch) -> Path:
    return HISTORIES / f"{branch.__name__}.json"


if __name__ == "__main__":
    asyncio.run(record(sys.argv[1:]))
