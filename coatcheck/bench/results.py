"""What a benchmark found: one report per run, with all that a table, JUnit XML or a picture of it needs."""

from datetime import datetime
from decimal import Decimal
from typing import Literal

from pydantic import BaseModel, ConfigDict

from coatcheck.bench.findings import Violation
from schemas.event_payloads import JudgingFailed, Scored

SpanKind = Literal["completed", "failed", "cancelled", "open", "waiting", "parked", "paused", "turn"]


class Span(BaseModel):
    """Something that took time; seconds since the run's start."""

    model_config = ConfigDict(frozen=True)

    lane: str
    """A stage, or `run`."""
    kind: SpanKind
    start: float
    end: float
    label: str = ""


class Lane(BaseModel):
    """One row of the picture."""

    model_config = ConfigDict(frozen=True)

    name: str
    agent: str = ""


class RunReport(BaseModel):
    """One run, held against a scenario or against the invariants alone."""

    model_config = ConfigDict(frozen=True)

    scenario: str
    """`-` when there was none."""
    title: str = ""
    repeat: int = 1
    workflow_id: str
    run_key: str
    status: str | None
    """How the run ended; `None` when its end was not seen."""
    started_at: datetime | None
    seconds: float
    """From its first event to its end."""
    events: int
    tokens: int
    usd: Decimal | None
    calls: int
    scores: list[Scored] = []
    judging_failures: list[JudgingFailed] = []
    violations: list[Violation] = []
    lanes: list[Lane] = []
    spans: list[Span] = []

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.violations


class BenchReport(BaseModel):
    """Everything that one command ran or replayed."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    started_at: datetime
    seconds: float
    runs: list[RunReport]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong with any run."""
        return all(run.passed for run in self.runs)
