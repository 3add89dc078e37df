"""How a run is explained: from facts as the sources give them, on one screen, without secrets."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from coatcheck.cli.costs import Filters, cost_table, moment_of
from coatcheck.cli.explanation import LAST_EVENTS, Explanation, Facts, Message, ProducedFile, Wait, compose
from coatcheck.cli.output import cost
from coatcheck.cli.pending import PendingActivity, TemporalView
from coatcheck.cli.screen import HEIGHT, WIDTH, age, screen, size
from coatcheck.cli.voice import MisuseError
from coatcheck.cli.waits import waits_of
from coatcheck.redaction import redacted
from coatcheck.storage.spending import Dimension, Report, Spending
from coatcheck.storage.state import EventRecord, RunRecord, TaskRecord
from schemas.notice import Notice, NoticeMetadata, Verdict
from schemas.pipeline import (
    DEFAULT_PIPELINE,
    Progress,
    RunStatus,
    StageProgress,
    StageState,
    TaskNotice,
    Waiting,
)
from schemas.streams import stream_name
from schemas.subjects import deliverable_subject
from schemas.tracing import trace_id

START = datetime(2026, 11, 21, 8, tzinfo=UTC)
RUN = "feature/customer-search/01a1f91f-32ac-7440-b5fd-e5f64f67bd76"
SHA256 = "abc" * 21 + "d"
SENT_BACK = {"findings": ["F1!3fa9c2", "F2.00ff00"]}
CHECKS = {"passed": 3, "failed": 1, "checks": [{"check": "backend/unit tests", "exit": 1, "seconds": 0.4}]}
ROUNDS: list[tuple[str, int, Verdict | None, dict[str, Any]]] = [
    ("research", 1, None, {}),
    ("critique", 1, Verdict.REVISE, SENT_BACK),
    ("research", 2, None, {}),
    ("critique", 2, Verdict.APPROVE, {}),
    ("backend", 1, None, {}),
    ("frontend", 1, None, {}),
    ("qa", 1, Verdict.FAIL, {"rework": ["backend"], "evidence": CHECKS}),
    ("backend", 2, None, {}),
    ("qa", 2, Verdict.PASS, {"evidence": {"passed": 4, "failed": 0}}),
    ("statistics", 1, None, {}),
]
"""A run of the default pipeline with one revision and one rework."""


def notice(stage: str, number: int, verdict: Verdict | None, more: dict[str, Any]) -> TaskNotice:
    """One round's notice, with a summary as long as they get."""
    agent = DEFAULT_PIPELINE.stage(stage).agent
    fields: dict[str, Any] = {"sequence": number, "sha256": SHA256, "bytes": 20_000, "round": number}
    meta = NoticeMetadata.model_validate({"stream": stream_name(stage), "verdict": verdict, **fields, **more})
    return TaskNotice(
        stage=stage,
        round=number,
        notice=Notice(
            status="complete",
            agent=agent,
            task="customer-search",
            nats_channel=deliverable_subject(agent, stage, "customer-search"),
            summary="s" * 120,
            completion_time=START,
            metadata=meta,
        ),
    )


def spent(label: dict[str, Any], **changed: Any) -> Spending:
    """What a group took."""
    fields: dict[str, Any] = {
        "calls": 12,
        "turns": 11,
        "tokens_in": 123_456,
        "tokens_out": 12_345,
        "tokens_cached": 100_000,
        "cost_usd": Decimal("0.1234"),
        "priced_usd": Decimal("0.1234"),
        "unpriced": 0,
        "models": ["anthropic:claude-sonnet-4-5", "openai:gpt-5-mini", "openai:gpt-5-nano"],
        "first_at": START,
        "last_at": START,
    }
    return Spending(label=label, **(fields | changed))


def event(event_type: str, **payload: Any) -> EventRecord:
    """A line of the audit log."""
    return EventRecord(
        event_id=event_type,
        event_type=event_type,
        entity_type=None,
        entity_id=None,
        run_key=RUN,
        agent="sylvia",
        severity="info",
        payload=payload,
        created_at=START,
    )


def progress(status: RunStatus = RunStatus.RUNNING, **states: StageState) -> Progress:
    """Every stage is pending unless the test says otherwise."""
    rows = [
        StageProgress(
            stage=stage.name,
            agent=stage.agent,
            state=states.get(stage.name, StageState.PENDING),
            round=1 if stage.name in states else 0,
            started_at=START if stage.name in states else None,
            sequence=7,
        )
        for stage in DEFAULT_PIPELINE.stages
    ]
    return Progress(feature="customer-search", status=status, run_key=RUN, stages=rows)


def view(*pending: PendingActivity, **changed: Any) -> TemporalView:
    """A run as Temporal describes it."""
    fields: dict[str, Any] = {
        "workflow_type": "FeaturePipeline",
        "status": "running",
        "feature": "customer-search",
        "started_at": START,
        "ended_at": None,
        "core_pollers": 1,
    }
    return TemporalView(pending=list(pending), **(fields | changed))


def pending(**changed: Any) -> PendingActivity:
    """Roy at work."""
    fields: dict[str, Any] = {
        "activity_id": "backend-2",
        "activity": "roy.backend",
        "is_started": True,
        "attempt": 1,
        "max_attempts": 60,
        "scheduled_at": START,
        "started_at": START,
        "last_heartbeat_at": START,
        "next_attempt_at": None,
        "last_failure": None,
        "last_failure_code": None,
        "queue": "agent-roy",
        "pollers": 1,
    }
    return PendingActivity(**(fields | changed))


def facts(**changed: Any) -> Facts:
    """Facts of an open run that answers."""
    known: dict[str, Any] = {"view": view(), "progress": progress(), "has_answered": True}
    return Facts("feature/customer-search", RUN, **(known | changed))


def only(found: list[Wait]) -> Wait:
    """The one thing that is waited for."""
    [wait] = found
    return wait


# --- one screen ---------------------------------------------------------------------------------------------------


def full() -> Explanation:
    """Everything at once: a run of the default pipeline that stands still, with all that can be told of it."""
    known = facts(
        progress=progress(
            **dict.fromkeys([stage.name for stage in DEFAULT_PIPELINE.stages], StageState.DONE)
        ).model_copy(update={"status": RunStatus.WAITING, "waiting": [waiting()]}),
        view=view(pending()),
        notices=[notice(*item) for item in ROUNDS],
        events=[event("stage.completed", stage="critique", round=1, verdict="revise", reason="r" * 200)] * 30,
        stages=Report(
            by=Dimension.STAGE,
            rows=[spent({"stage": stage.name}) for stage in DEFAULT_PIPELINE.stages],
            total=spent({}, cost_usd=None, unpriced=3),
        ),
        messages=[
            Message(
                stage=stage.name,
                task=f"{stage.name}-2",
                message=f"{stream_name(stage.task_type)}:123",
                bytes=20_000,
                files=[ProducedFile(path=f"src/some/folder/module_{number}.py", bytes=2048) for number in range(40)],
            )
            for stage in DEFAULT_PIPELINE.stages
        ],
        missing=["NATS gave no answer: " + "n" * 200],
        ui_url="http://127.0.0.1:8233/namespaces/default/workflows/feature%2Fcustomer-search/" + RUN[-36:] + "/history",
        has_traces=True,
    )
    return compose(known, waits_of(known))


def waiting() -> Waiting:
    """A person is asked."""
    return Waiting(
        stage="critique",
        round=2,
        reason="the same findings came back: " + "w" * 300,
        sha256=SHA256,
        subject=deliverable_subject("sylvia", "critique", "customer-search"),
        deadline=START + timedelta(days=7),
    )


def test_the_default_pipeline_fits_on_one_screen() -> None:
    """Whatever there is to tell; what people copy is whole."""
    text = screen(full(), START + timedelta(minutes=4))
    lines = text.splitlines()
    whole = [line for line in lines if "coatcheck " in line or line.startswith(("run ", "Temporal: "))]
    assert all(len(line) <= WIDTH for line in lines if line not in whole)
    assert sum(-(-max(len(line), 1) // WIDTH) for line in lines) <= HEIGHT
    assert f"coatcheck decide feature/customer-search critique approve --sha256 {SHA256[:12]}" in text
    assert sum("stage.completed" in line for line in lines) >= 3


def test_the_screen_says_why_work_went_back_and_which_message_has_which_file() -> None:
    """Findings and checks by name; many files by their first ones and a count."""
    lines = screen(full(), START).splitlines()
    [critique] = [line for line in lines if line.startswith("critique-1")]
    assert "revise" in critique
    assert "findings F1! F2" in critique
    [qa] = [line for line in lines if line.startswith("qa-1")]
    assert "back to backend; checks: 3 passed, 1 failed (backend/unit tests)" in qa
    [backend] = [line for line in lines if "agog_features_backend:123" in line]
    assert "40: src/some/folder/module_0.py (2.0 KB)" in backend
    [total] = [line for line in lines if line.startswith("total")]
    assert "unknown" in total
    assert "3 turns unpriced" in total
    assert f"Trace: {trace_id(RUN)}" in lines


def test_a_trace_that_nobody_makes_is_not_named() -> None:
    """Neither on the screen nor as data."""
    told = compose(facts(), [])
    assert told.trace_id is None
    assert "Trace:" not in screen(told, START)


def test_a_short_answer_has_air() -> None:
    """Blocks are apart where there is room."""
    known = facts()
    assert "\n\nWAITS FOR\n" in screen(compose(known, waits_of(known)), START)
    known.events = [event("stage.completed", stage="critique", round=1)] * 40
    text = screen(compose(known, waits_of(known)), START)
    assert "\n\nWAITS FOR\n" in text
    assert text.count("stage.completed") == LAST_EVENTS


def test_events_that_other_parts_sum_up_are_left_out() -> None:
    """Calls and tools have columns of their own; a verdict is read from the notice that gave it."""
    known = facts()
    completed = event("stage.completed", stage="critique", round=1, notice={"metadata": {"verdict": "revise"}})
    known.events = [
        completed,
        *(event(name, stage="critique", round=1) for name in ("turn.completed", "tool.completed")),
    ]
    [happening] = compose(known, waits_of(known)).events
    assert (happening.event, happening.stage, happening.reason) == ("stage.completed", "critique-1", "revise")


# --- what it waits for --------------------------------------------------------------------------------------------


def test_a_decision_goes_before_work_and_names_its_command() -> None:
    """Since it was asked, until its deadline."""
    states = {"research": StageState.RUNNING, "critique": StageState.WAITING}
    asked = progress(RunStatus.WAITING, **states).model_copy(update={"waiting": [waiting()]})
    known = facts(progress=asked, view=view(pending()), events=[event("decision.requested", stage="critique")])
    decision, work = waits_of(known)
    assert decision.remedies[1] == "coatcheck fetch agog_features_critique:7"
    assert (decision.since, decision.until) == (START, START + timedelta(days=7))
    assert work.stage == "backend"
    told = compose(known, [decision, work])
    assert (told.stage, told.since) == ("critique", START)


def test_a_recorded_question_is_told_when_nobody_answers() -> None:
    """With the sha256 of what was recorded as the latest of that stage."""
    record = RunRecord(
        run_key=RUN,
        temporal_workflow_id="feature/customer-search",
        feature="customer-search",
        tenant="default",
        status="waiting",
        current_step="critique",
        total_steps=6,
        completed_steps=1,
        step_results={},
        assigned_agents=[],
        error=None,
        started_at=START,
        completed_at=None,
        updated_at=START,
    )
    known = facts(
        view=None,
        has_answered=False,
        record=record,
        notices=[notice(*ROUNDS[1])],
        events=[event("decision.requested", stage="critique", reason="this stage waits for an approval")],
    )
    wait = only(waits_of(known))
    assert wait.what == "a decision on critique: this stage waits for an approval"
    assert "decide feature/customer-search critique approve --sha256 abcabcabcabc" in wait.remedies[0]


def test_a_parked_stage_says_until_when_and_why() -> None:
    """It holds no worker, so nothing else is waited for."""
    parked = progress(backend=StageState.PARKED)
    parked.stages[2].parked_until, parked.stages[2].reason = START, "openai:m is closed for now"
    wait = only([item for item in waits_of(facts(progress=parked)) if item.stage])
    assert (wait.what, wait.until) == ("backend-1 is parked: openai:m is closed for now", START)


@pytest.mark.parametrize(
    ("activity", "said"),
    [
        (pending(), ["roy, who works on backend-2"]),
        (pending(is_started=False, pollers=0), ["roy's worker to take backend-2", "nobody polls agent-roy"]),
        (
            pending(attempt=3, last_failure="no NATS", last_failure_code="messaging.unavailable"),
            ["attempt 3 of 60", "the last attempt failed: no NATS (messaging.unavailable)"],
        ),
        (pending(queue="coatcheck", activity="evidence.check"), ["the core worker, who works on backend-2"]),
    ],
)
def test_a_pending_activity_says_who_and_how_often(activity: PendingActivity, said: list[str]) -> None:
    """With what starts its worker where nobody polls."""
    wait = only(waits_of(facts(view=view(activity))))
    for text in said:
        assert text in wait.what
    assert bool(wait.remedies) is not bool(activity.pollers)


def test_the_next_attempt_is_told() -> None:
    """Until then nobody has it."""
    later = START + timedelta(seconds=3)
    assert only(waits_of(facts(view=view(pending(next_attempt_at=later))))).until == later


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("in_flight", "turn 2 is with openai:m since 08:00:00"),
        ("failed", "turn 2 failed at openai:m (provider.unavailable), 12 calls so far"),
        ("done", "2 turns done, the last by openai:m"),
    ],
)
def test_the_journal_tells_of_the_latest_turn(status: str, said: str) -> None:
    """Of that round, and of no other."""
    turns = [
        spent({"task": f"{RUN}/{task}", "turn": turn, "model": "openai:m", "status": how, "error": error})
        for task, turn, how, error in (
            ("backend-2", 1, "done", None),
            ("backend-2", 2, status, "provider.unavailable"),
            ("backend-1", 9, "failed", "x"),
        )
    ]
    known = facts(view=view(pending()), calls=Report(by=Dimension.CALL, rows=turns, total=spent({})))
    assert said in only(waits_of(known)).what


def test_a_core_worker_that_is_missed_is_told() -> None:
    """Nobody polls, or the same step fails again and again."""
    assert "nobody polls coatcheck" in only(waits_of(facts(view=view(core_pollers=0)))).what
    assert "failed to take the next step 4 times" in only(waits_of(facts(view=view(workflow_task_attempt=5)))).what
    assert "the core worker, which takes the next step" in only(waits_of(facts())).what


def test_a_run_that_has_ended_waits_for_nothing() -> None:
    """Whatever is down; the error names the round."""
    failed = TaskRecord(
        task_key=f"{RUN}/backend-2",
        run_key=RUN,
        agent="roy",
        stage="backend",
        task_type="backend",
        round=2,
        status="failed",
        output_data=None,
        error="quota",
        retry_count=0,
        execution_time_ms=None,
        started_at=START,
        completed_at=START,
    )
    ended = progress(RunStatus.FAILED, backend=StageState.FAILED).model_copy(update={"error": "quota"})
    known = facts(view=view(ended_at=START), progress=ended, tasks=[failed], troubles=[Wait(what="x")])
    assert waits_of(known) == []
    told = compose(known, [])
    assert (told.error, told.stage, told.ended_at) == ("backend-2 (roy): quota", "backend", START)


def test_without_progress_the_pending_activity_says_where() -> None:
    """PostgreSQL is down and no worker answers."""
    told = compose(facts(view=view(pending()), progress=None, has_answered=False), [])
    assert (told.stage, told.round, told.since) == ("backend", 2, START)


# --- secrets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-Abcdefgh12345678",
        "sk-ant-api03-abc_DEF-123456",
        "AKIAIOSFODNN7EXAMPLE",
        "SUAM" + "A" * 54,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc",
    ],
)
def test_what_looks_like_a_secret_is_hidden(secret: str) -> None:
    """In texts, however deep, and nothing around it."""
    assert redacted({"a": [f"the key {secret}: wrong", 5, None]}) == {"a": ["the key ***: wrong", 5, None]}


def test_known_secrets_and_those_in_addresses_are_hidden() -> None:
    """A password of any form, when it is known; what is too short to be one stays."""
    assert redacted("postgresql://me:pa55word@db:5432/x") == "postgresql://***@db:5432/x"
    assert redacted("it is hunter22, he said", ["hunter22", "he"]) == "it is ***, he said"
    assert redacted("Authorization: Bearer abcdef") == "Authorization: Bearer ***"
    assert redacted("api_key=abc password: 'secret1'") == "api_key=*** password: '***'"
    plain = "backend-2 (roy): task skipped, risk-based, http://127.0.0.1:8233/a@b"
    assert redacted(plain) == plain


# --- words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T12:00+02:00", datetime(2026, 11, 1, 10, tzinfo=UTC)),
        ("7d", START - timedelta(days=7)),
        ("12h", START - timedelta(hours=12)),
        ("30m", START - timedelta(minutes=30)),
    ],
)
def test_since_when(text: str, moment: datetime) -> None:
    """A day, a time, or so long ago."""
    assert moment_of(text, START) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "7", "0d", "-7d", "2026-13-01", "7w"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """With what a time looks like."""
    with pytest.raises(MisuseError, match="is no time") as caught:
        moment_of(text, START)
    assert "7d" in str(caught.value.hint)


@pytest.mark.parametrize(
    "given",
    [{"model": "openai:m"}, {"prices": True, "run": "x"}, {"prices": True, "since": "7d"}, {"since": "soon"}],
)
def test_options_that_do_not_go_together_are_refused(given: dict[str, Any]) -> None:
    """Before anything connects."""
    options: dict[str, Any] = {"by": "run", "run": None, "tenant": None, "since": None, "prices": False, "model": None}
    with pytest.raises(MisuseError):
        Filters.of(**(options | given))


def test_the_table_of_costs() -> None:
    """Calls have several columns; unknown is neither 0 nor blank."""
    rows = [spent({"task": "t", "turn": 1, "agent": "roy", "model": "m", "status": "done", "error": None})]
    table = cost_table(Report(by=Dimension.CALL, rows=rows, total=spent({}, cost_usd=None, unpriced=2)))
    header, line, total = table.splitlines()
    assert header.split()[:5] == ["TASK", "TURN", "AGENT", "MODEL", "STATUS"]
    assert line.split()[:5] == ["t", "1", "roy", "m", "done"]
    assert total.split()[-2:] == ["unknown", "2"]


def test_small_words() -> None:
    """Ages, sizes and costs."""
    assert [age(START, START + timedelta(seconds=count)) for count in (5, 65, 7260, 90_000)] == [
        "5 s",
        "1 min 5 s",
        "2 h 1 min",
        "1 d 1 h",
    ]
    assert [size(count) for count in (999, 1500, 2_500_000)] == ["999 B", "1.5 KB", "2.5 MB"]
    assert [cost(value) for value in (None, Decimal(0), Decimal("0.00001"))] == ["unknown", "$0.0000", "<$0.0001"]
