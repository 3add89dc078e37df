"""Records one history per branch of `FeaturePipeline`: `python -m tests.replay.record`.

Run it when a change to the workflow is meant to start new histories, and say so in the CHANGELOG; the old ones stay
until no run of that age can still be open.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError

from schemas import errors
from schemas.notice import Notice, Verdict
from schemas.pipeline import Decision, DecisionAction, PipelineResult, RunStatus
from tests.workflows.conftest import FakeTeam, Pipelines, fake_workers, local_temporal, says
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
)


async def _waiting(handle: Handle) -> tuple[str, str]:
    while True:
        waiting = (await handle.query(FeaturePipelineWorkflow.progress)).waiting
        if waiting is not None:
            return waiting.stage, waiting.sha256
        await asyncio.sleep(0.02)


async def _decide(handle: Handle, action: DecisionAction) -> None:
    stage, sha256 = await _waiting(handle)
    decision = Decision(stage=stage, action=action, sha256=sha256, by="ann", comment="")
    await handle.execute_update(FeaturePipelineWorkflow.decide, decision)


def without_traces(history: str) -> str:
    """The history without what names the machine that recorded it; a replay reads neither."""
    return re.sub(r'"(stackTrace|identity)": "(?:[^"\\]|\\.)*"', r'"\1": ""', history)


async def record() -> None:
    """Run every branch and write its history."""
    async with local_temporal() as environment:
        for branch in BRANCHES:
            team = FakeTeam()
            async with fake_workers(environment.client, team):
                handle = await branch(Pipelines(environment.client, team))
                try:
                    await handle.result()
                except WorkflowFailureError as failure:
                    print(f"{branch.__name__}: {failure.cause}")
                history = await handle.fetch_history()
            (HISTORIES / f"{branch.__name__}.json").write_text(without_traces(history.to_json()) + "\n")


if __name__ == "__main__":
    asyncio.run(record())
