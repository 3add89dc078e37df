"""Recorded histories of every branch replay with today's code; a changed order of things does not."""

from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

import schemas.activities
import schemas.workflow_ids
from schemas.pipeline import DEFAULT_PIPELINE, FeatureRequest, Pipeline
from tests.replay.record import BRANCHES, HISTORIES
from workers.interceptors import CoatcheckInterceptor
from workers.temporal import DATA_CONVERTER, sandbox_runner
from workflows.feature_pipeline import FeaturePipelineWorkflow

FILES = sorted(HISTORIES.glob("*.json"))


async def replay(path: Path) -> Exception | None:
    """What the replay of one history says."""
    replayer = Replayer(
        workflows=[FeaturePipelineWorkflow],
        data_converter=DATA_CONVERTER,
        interceptors=[CoatcheckInterceptor()],
        workflow_runner=sandbox_runner(),
    )
    history = WorkflowHistory.from_json(path.stem, path.read_text())
    result = await replayer.replay_workflow(history, raise_on_replay_failure=False)
    return result.replay_failure


def test_every_branch_is_recorded() -> None:
    """A branch without a history would be unprotected."""
    assert {path.stem for path in FILES} >= {branch.__name__ for branch in BRANCHES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
async def test_recorded_history_replays(path: Path) -> None:
    """Today's workflow does what it did then."""
    assert await replay(path) is None


async def test_renamed_activity_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """An activity type is persisted data."""
    monkeypatch.setattr(schemas.activities, "stage_activity", lambda agent, task_type: f"{agent}.do_{task_type}")
    assert "TMPRL1100" in str(await replay(HISTORIES / "straight.json"))


async def test_renamed_state_activity_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """So is the local activity's."""
    monkeypatch.setattr(schemas.activities, "RECORD_STATE", "state.write")
    assert "TMPRL1100" in str(await replay(HISTORIES / "straight.json"))


async def test_swapped_stages_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frontend before backend is another workflow."""
    research, critique, backend, frontend, qa, statistics = DEFAULT_PIPELINE.stages
    lone_frontend = frontend.model_copy(update={"needs": ("research",)})
    swapped = Pipeline(stages=(research, critique, lone_frontend, backend, qa, statistics))
    monkeypatch.setattr(FeatureRequest.model_fields["pipeline"], "default", swapped)
    FeatureRequest.model_rebuild(force=True)
    try:
        failure = await replay(HISTORIES / "straight.json")
    finally:
        monkeypatch.undo()
        FeatureRequest.model_rebuild(force=True)
    assert "TMPRL1100" in str(failure)
