"""A run's bookkeeping: what is stored is let go, what happened meanwhile is kept."""

from datetime import UTC, datetime, timedelta

from schemas.pipeline import FeatureRequest
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
