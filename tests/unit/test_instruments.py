"""What the instruments say of what happens, of what goes wrong above all: a good run is in `tests/deploy`."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from coatcheck.telemetry import instruments
from coatcheck.telemetry.instruments import BackboneInstruments, ModelInstruments, RunInstruments
from schemas import event_payloads as payloads
from schemas import events
from schemas.activities import RecordInput, TaskRow
from schemas.pipeline import DEFAULT_PIPELINE
from schemas.streams import AUDIT_LOG, StreamStatus
from tests.integration.storage_rows import RUN_KEY, run_row, task_row
from tests.unit.measured import Measured

BEGAN = datetime(2026, 11, 1, tzinfo=UTC)
ROUND = f"{RUN_KEY}/backend-1"
POINT = payloads.RunPoint(status="running")


@pytest.fixture
def measured() -> Iterator[Measured]:
    """A meter of the test's own."""
    found = Measured()
    yield found
    found.provider.shutdown()


def told(kind: Any, entity: str, payload: payloads.Payload, *, after: float, agent: str | None = None) -> Any:
    """An event of the run, so many seconds after its beginning."""
    return kind.of(
        entity_id=entity,
        correlation_id=RUN_KEY,
        session_id="feature/search",
        agent=agent,
        occurred_at=BEGAN + timedelta(seconds=after),
        payload=payload,
    )


def failed_task() -> TaskRow:
    """Roy's first round, which began 5 s after its run."""
    began = BEGAN + timedelta(seconds=5)
    return task_row("failed", task_key=ROUND, agent="roy", stage="backend", started_at=began)


def test_a_round_and_a_run_that_fail(measured: Measured) -> None:
    """Both with their time and their outcome; the counters were there before, at 0."""
    runs = RunInstruments(measured.meter, [DEFAULT_PIPELINE])
    assert measured.points(instruments.STAGE_ROUNDS)["roy", "failed", "backend"] == 0
    assert measured.points(instruments.RUNS_ENDED)[("failed",)] == 0
    ended = payloads.StageEnded(stage="backend", round=1, reason="no", run=POINT)
    changed = payloads.RunChanged(run=payloads.RunPoint(status="failed"))
    step = RecordInput(
        run=run_row(1, started_at=BEGAN),
        tasks=[failed_task()],
        events=[
            told(events.StageFailed, ROUND, ended, after=65, agent="roy"),
            told(events.RunFailed, RUN_KEY, changed, after=66),
        ],
    )
    runs.recorded(step, [])
    assert measured.points(instruments.STAGE_ROUNDS)["roy", "failed", "backend"] == 1
    assert measured.points(instruments.STAGE_DURATION) == {("roy", "failed", "backend"): 60}
    assert measured.points(instruments.RUNS_ENDED)[("failed",)] == 1
    assert measured.points(instruments.RUN_DURATION) == {("failed",): 66}


def test_a_turn_without_a_price_is_not_free(measured: Measured) -> None:
    """It is counted, and adds nothing to the cost."""
    runs = RunInstruments(measured.meter)
    said = payloads.TurnCompleted(
        stage="backend",
        round=1,
        turn=1,
        model="openai:x",
        calls=1,
        tokens_in=1,
        tokens_out=1,
        seconds=1,
        messages=2,
        cost_usd=Decimal("0.25"),
    )
    priced = told(events.TurnCompleted, ROUND, said, after=1, agent="roy")
    unpriced = told(events.TurnCompleted, ROUND, said.model_copy(update={"cost_usd": None}), after=2, agent="roy")
    runs.recorded(RecordInput(run=run_row(1)), [priced, unpriced])
    assert measured.points(instruments.TURN_COST) == {("roy", "backend", "openai:x"): 0.25}
    assert measured.points(instruments.TURNS_UNPRICED) == {(): 0, ("roy", "backend", "openai:x"): 1}


def test_a_call_that_fails_says_how(measured: Measured) -> None:
    """Its time counts, its tokens do not exist."""
    models = ModelInstruments(measured.meter, ["openai:x"])
    with pytest.raises(TimeoutError), models.asking("openai:x"):
        raise TimeoutError
    with models.asking("openai:x"):
        pass
    models.answered("openai:x", 10, 5)
    calls = measured.metrics()["gen_ai.client.operation.duration"].data.data_points
    assert [(point.attributes.get("error.type"), point.count) for point in calls] == [("TimeoutError", 1), (None, 1)]
    assert sum(measured.points("gen_ai.client.token.usage").values()) == 15


def test_breakers_and_calls_that_are_paid_again(measured: Measured) -> None:
    """Every model is there from the beginning, closed and with nothing paid twice."""
    models = ModelInstruments(measured.meter, ["anthropic:y", "openai:x"])
    assert measured.points(instruments.BREAKER_STATE) == {("anthropic:y",): 0, ("openai:x",): 0}
    assert sorted(measured.points(instruments.CALLS_PAID_AGAIN).values()) == [0, 0]
    models.breaker("openai:x", "open")
    models.paid_again("openai:x")
    assert measured.points(instruments.BREAKER_STATE)[("openai:x",)] == 2
    models.breaker("openai:x", "half_open")
    assert measured.points(instruments.BREAKER_STATE)[("openai:x",)] == 1
    assert sorted(measured.points(instruments.CALLS_PAID_AGAIN).values()) == [0, 1]


def test_a_backbone_that_is_away_says_nothing_but_that(measured: Measured) -> None:
    """What was seen before is not repeated as if it were so."""
    backbone = BackboneInstruments(measured.meter)
    assert measured.points(instruments.PROJECTOR_LAG) == {}
    status = StreamStatus(
        name=AUDIT_LOG.name, messages=3, bytes=2048, first_seq=1, last_seq=3, consumer_count=1, age_seconds=7.5
    )
    backbone.looked(lag=4, dead_letters=1, streams=[(AUDIT_LOG, status)])
    assert measured.points(instruments.PROJECTOR_LAG) == {(): 4}
    assert measured.points(instruments.DEAD_LETTERS) == {(): 1}
    assert measured.points(instruments.STREAM_SIZE) == {("audit_log",): 2048}
    assert measured.points(instruments.STREAM_SIZE_LIMIT) == {("audit_log",): AUDIT_LOG.max_bytes}
    assert measured.points(instruments.STREAM_AGE) == {("audit_log",): 7.5}
    assert measured.points(instruments.STREAM_AGE_LIMIT) == {("audit_log",): AUDIT_LOG.max_age_seconds}
    backbone.away()
    assert measured.points(instruments.PROJECTOR_LAG) == {}
    assert measured.points(instruments.STREAM_SIZE) == {}
    assert measured.points(instruments.BACKBONE_UP) == {(): 0}


def test_names_and_units(measured: Measured) -> None:
    """Ours under `coatcheck.`, UCUM units, a description; seconds to an hour."""
    RunInstruments(measured.meter, [DEFAULT_PIPELINE])
    ModelInstruments(measured.meter, ["scripted"])
    BackboneInstruments(measured.meter).away()
    for name, metric in measured.metrics().items():
        assert re.fullmatch(r"(coatcheck|gen_ai)\.[a-z_.]+", name)
        assert metric.unit in {"s", "By", "1"} or re.fullmatch(r"\{[A-Za-z]+\}", metric.unit)
        assert metric.description.endswith((".", "open."))
    assert max(instruments.LLM_SECONDS) == 3600
    assert list(instruments.LLM_SECONDS) == sorted(instruments.LLM_SECONDS)
