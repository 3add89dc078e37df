"""Recorded programs replay with today's code; another order of starts does not."""

from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

import schemas.program
from schemas.program import ProgramRequest
from tests.replay.record_program import BRANCHES, HISTORIES
from workers.interceptors import CoatcheckInterceptor
from workers.temporal import DATA_CONVERTER, sandbox_runner
from workflows.program import ProgramWorkflow

FILES = sorted(HISTORIES.glob("*.json"))


async def replay(path: Path) -> Exception | None:
    """What the replay of one history says."""
    replayer = Replayer(
        workflows=[ProgramWorkflow],
        data_converter=DATA_CONVERTER,
        interceptors=[CoatcheckInterceptor()],
        workflow_runner=sandbox_runner(),
    )
    history = WorkflowHistory.from_json(path.stem, path.read_text())
    return (await replayer.replay_workflow(history, raise_on_replay_failure=False)).replay_failure


def test_every_branch_is_recorded() -> None:
    """A branch without a history would be unprotected."""
    assert {path.stem for path in FILES} >= {branch.__name__ for branch in BRANCHES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
async def test_recorded_history_replays(path: Path) -> None:
    """Today's program does what it did then."""
    assert await replay(path) is None


async def test_another_order_of_starts_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is next is persisted; a negative weight turns the order of the tenants round."""
    monkeypatch.setattr(ProgramRequest, "weight", lambda _, tenant: -1.0 if tenant == "finance" else 1.0)
    assert "TMPRL1100" in str(await replay(HISTORIES / "everything.json"))


async def test_another_type_of_pipeline_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """So is what is started."""
    monkeypatch.setattr(schemas.program, "PIPELINE_WORKFLOW", "AnotherPipeline")
    assert "TMPRL1100" in str(await replay(HISTORIES / "everything.json"))
