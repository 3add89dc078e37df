"""How a run looks: from the workflow's answer, and from its rows when no worker answers."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from coatcheck.cli.output import columns, cost, one_line
from coatcheck.cli.progress import HEADER, from_rows, headline, question, stage_rows
from coatcheck.cli.reading import split_message
from coatcheck.cli.runs import split_run_key
from coatcheck.cli.watching import changes
from coatcheck.storage.state import RunRecord, TaskRecord
from schemas.notice import Notice, NoticeMetadata
from schemas.pipeline import DEFAULT_PIPELINE, Progress, RunStatus, StageProgress, StageState, Waiting
from schemas.streams import stream_name
from schemas.subjects import deliverable_subject

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RUN = "feature/x/01a1f91f-32ac-7440-b5fd-e5f64f67bd76"


def record(**changed: object) -> RunRecord:
    """A recorded run of the default pipeline."""
    fields: dict[str, object] = {
        "run_key": RUN,
        "temporal_workflow_id": "feature/x",
        "feature": "x",
        "tenant": "default",
        "status": "running",
        "current_step": "critique",
        "total_steps": 6,
        "completed_steps": 1,
        "step_results": {},
        "assigned_agents": [stage.agent for stage in DEFAULT_PIPELINE.stages],
        "error": None,
        "started_at": START,
        "completed_at": None,
        "updated_at": START,
    }
    return RunRecord.model_validate(fields | changed)


def task(stage: str, round_number: int, status: str, *, price: Decimal | None = Decimal("0.5")) -> TaskRecord:
    """One recorded round that took two seconds."""
    agent = DEFAULT_PIPELINE.stage(stage).agent
    done = status == "completed"
    notice = Notice(
        status="complete",
        agent=agent,
        task="x",
        nats_channel=deliverable_subject(agent, stage, "x"),
        summary="did it",
        completion_time=START,
        metadata=NoticeMetadata(
            stream=stream_name(stage),
            sequence=round_number,
            sha256="a" * 64,
            bytes=9,
            round=round_number,
            tokens_in=3,
            tokens_out=4,
            cost_usd=price,
        ),
    )
    return TaskRecord(
        task_key=f"{RUN}/{stage}-{round_number}",
        run_key=RUN,
        agent=agent,
        stage=stage,
        task_type=stage,
        round=round_number,
        status=status,
        output_data=notice.model_dump(mode="json", exclude_none=True) if done else None,
        error=None,
        retry_count=0,
        execution_time_ms=None,
        started_at=START + timedelta(seconds=10 * round_number),
        completed_at=START + timedelta(seconds=10 * round_number + 2) if done else None,
    )


def test_rows_give_the_progress_of_every_stage() -> None:
    """Also of those that have not begun, in the pipeline's order, with the rounds summed up."""
    rounds = [task("research", 1, "completed"), task("research", 2, "completed"), task("critique", 1, "running")]
    progress = from_rows(record(), rounds)
    assert [row.state for row in progress.stages[:3]] == [StageState.DONE, StageState.RUNNING, StageState.PENDING]
    assert [row.stage for row in progress.stages] == [stage.name for stage in DEFAULT_PIPELINE.stages]
    research = progress.stages[0]
    assert (research.round, research.tokens, research.cost_usd) == (2, 14, Decimal("1.0"))
    assert (research.sequence, research.seconds) == (2, 2.0)
    assert headline(progress) == "x: running, 1 of 6 stages, 14 tokens, $1.0000"


def test_an_unknown_price_makes_the_sum_unknown() -> None:
    """A partial sum would look like the whole."""
    progress = from_rows(record(), [task("research", 1, "completed", price=None)])
    assert headline(progress).endswith("unknown")


def test_a_waiting_and_a_failed_stage_are_seen_in_the_rows() -> None:
    """The run's row says who waits, the task's row who failed."""
    rounds = [task("research", 1, "completed"), task("critique", 1, "completed")]
    waiting = from_rows(record(status="waiting"), rounds)
    assert waiting.stages[1].state is StageState.WAITING
    failed = from_rows(record(status="failed", error="no"), [task("research", 1, "failed")])
    assert failed.stages[0].state is StageState.FAILED
    assert headline(failed).endswith("\nno")


def test_a_pipeline_of_ones_own_shows_what_has_begun() -> None:
    """Rows do not know the names of later stages."""
    progress = from_rows(record(assigned_agents=["cynthia"]), [task("research", 1, "running")])
    assert [row.stage for row in progress.stages] == ["research"]


def test_the_question_can_be_answered_by_copying() -> None:
    """It names the exact message and the exact decision."""
    waiting = Waiting(
        stage="critique",
        round=2,
        reason="this stage waits for an approval",
        sha256="abc" * 21 + "d",
        subject="agog.deliverables.sylvia.critique.x",
        deadline=START,
    )
    row = StageProgress(stage="critique", agent="sylvia", state=StageState.WAITING, round=2, sequence=7)
    progress = Progress(feature="x", status=RunStatus.WAITING, run_key=RUN, stages=[row], waiting=[waiting])
    said, hint = question(progress)
    assert "critique, round 2, waits for a decision until 2026-01-02 03:04 UTC" in said
    assert "`coatcheck fetch agog_features_critique:7`" in hint
    assert f"`coatcheck decide {RUN} critique approve --sha256 abcabcabcabc`" in hint


def test_changes_are_told_in_order_of_time() -> None:
    """Research's second round began after the critique of its first had ended."""
    critique = StageProgress(
        stage="critique", agent="sylvia", state=StageState.RUNNING, round=1, started_at=START, seconds=1
    )
    research = StageProgress(
        stage="research", agent="cynthia", state=StageState.RUNNING, round=2, started_at=START + timedelta(seconds=2)
    )
    progress = Progress(feature="x", status=RunStatus.RUNNING, run_key=RUN, stages=[research, critique])
    lines = [line for _, line in changes(progress, START)]
    assert lines == [
        "critique: sylvia works on round 1",
        "critique: round 1 done in 1.0 s",
        "research: cynthia works on round 2",
    ]


def test_every_row_fits_the_header() -> None:
    """Columns are matched by position."""
    progress = from_rows(record(), [task("research", 1, "running")])
    rows = stage_rows(progress, START + timedelta(seconds=15))
    assert {len(row) for row in rows} == {len(HEADER)}
    assert rows[0][HEADER.index("seconds")] == "5…"


def test_small_words() -> None:
    """Columns, costs, lines and names."""
    assert columns(("a", "bb"), [["x", ""], ["yyy", "z"]]) == "A    BB\nx\nyyy  z\n"
    assert cost(None) == "unknown"
    assert one_line("\n  first \nsecond") == "first"
    assert one_line("x" * 10, 5) == "xxxx…"
    assert split_run_key(RUN) == ("feature/x", RUN.rpartition("/")[2])
    assert split_run_key("feature/x") is None
    assert split_message("agog_features_backend:12") == ("agog_features_backend", 12)
    assert split_message("agog.deliverables.roy.backend.x") is None
