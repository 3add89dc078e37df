"""Recorded looks replay with today's code; another activity does not."""

from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from schemas import reconcile
from tests.replay.record_reconcile import BRANCHES, HISTORIES
from workers.interceptors import CoatcheckInterceptor
from workers.temporal import DATA_CONVERTER, sandbox_runner
from workflows.reconcile import ReconcileWorkflow

FILES = sorted(HISTORIES.glob("*.json"))


async def replay(path: Path) -> Exception | None:
    """What the replay of one history says."""
    replayer = Replayer(
        workflows=[ReconcileWorkflow],
        data_converter=DATA_CONVERTER,
        interceptors=[CoatcheckInterceptor()],
        workflow_runner=sandbox_runner(),
    )
    history = WorkflowHistory.from_json(path.stem, path.read_text())
    return (await replayer.replay_workflow(history, raise_on_replay_failure=False)).replay_failure


def test_every_branch_is_recorded() -> None:
    """A branch without a history would be unprotected."""
    assert {path.stem for path in FILES} >= set(BRANCHES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
async def test_recorded_history_replays(path: Path) -> None:
    """Today's workflow does what it did then."""
    assert await replay(path) is None


async def test_another_activity_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is in every history."""
    monkeypatch.setattr(reconcile, "COMPARE", "reconcile.look")
    assert "TMPRL1100" in str(await replay(HISTORIES / "repaired.json"))
