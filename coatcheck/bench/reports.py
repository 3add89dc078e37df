"""Puts together what is told of a run. Pure."""

from collections.abc import Sequence

from coatcheck.bench.findings import Violation
from coatcheck.bench.recording import ENDINGS, Recording
from coatcheck.bench.results import RunReport
from coatcheck.bench.spending import spending
from coatcheck.bench.timeline import lanes, seconds, spans
from schemas.events import JudgeFailed, JudgeScored
from schemas.scenario import Scenario


def report_of(
    recording: Recording, found: Sequence[Violation], *, scenario: Scenario | None = None, repeat: int = 1
) -> RunReport:
    """The report of one run."""
    spent, events = spending(recording), recording.events
    endings = [event.event_type.partition(".")[2] for event in events if event.event_type in ENDINGS]
    return RunReport(
        scenario=scenario.id if scenario else "-",
        title=scenario.title if scenario else "",
        repeat=repeat,
        workflow_id=recording.run_key.rpartition("/")[0],
        run_key=recording.run_key,
        status=endings[0] if endings else None,
        started_at=min((event.occurred_at for event in events), default=None),
        seconds=seconds(recording),
        events=len(recording.messages),
        tokens=spent.tokens,
        usd=spent.usd,
        calls=spent.calls,
        scores=[event.payload for _, event in recording.of(JudgeScored)],
        judging_failures=[event.payload for _, event in recording.of(JudgeFailed)],
        violations=list(found),
        lanes=lanes(recording),
        spans=spans(recording),
    )
