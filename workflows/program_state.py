"""What a run of `Program` knows about its features: which one is next, and how that looks to others.

Owns the choice and the bookkeeping; starting and awaiting pipelines is `program`. The choice is made here rather than
left to Temporal's fairness, since that orders tasks, and a feature that has begun keeps its place for hours.
"""

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from schemas.pipeline import FeatureRequest, PipelineResult
from schemas.program import (
    MAX_REASON_CHARACTERS,
    FeatureLine,
    FeatureState,
    FeatureWaits,
    ProgramProgress,
    ProgramRequest,
    ProgramResult,
)
from schemas.workflow_ids import feature_workflow_id

SHOWN_ROWS: Final = 50
"""Of the table in the Web UI, which is read by people."""
_OPEN: Final = frozenset({FeatureState.RUNNING, FeatureState.WAITING})
_NEVER_BEGUN: Final = frozenset({FeatureState.PENDING, FeatureState.BLOCKED})
_SHOWN_FIRST: Final = (
    FeatureState.WAITING,
    FeatureState.BLOCKED,
    FeatureState.FAILED,
    FeatureState.EXPIRED,
    FeatureState.REJECTED,
    FeatureState.CANCELLED,
    FeatureState.RUNNING,
    FeatureState.PENDING,
    FeatureState.COMPLETED,
)
"""What a person may have to do something about comes first."""


@dataclass
class Feature:
    """One feature of the program."""

    index: int
    """Its place in the request, from 0."""
    request: FeatureRequest
    state: FeatureState = FeatureState.PENDING
    reason: str = ""
    result: PipelineResult | None = None

    @property
    def workflow_id(self) -> str:
        """Of its run."""
        return feature_workflow_id(self.request.feature)


@dataclass
class ProgramState:
    """The whole state of a program; plain data, changed only by its methods."""

    request: ProgramRequest
    max_concurrent: int
    is_paused: bool = False
    features: list[Feature] = field(init=False)

    def __post_init__(self) -> None:
        self.features = [Feature(index, request) for index, request in enumerate(self.request.features)]

    # --- which one is next --------------------------------------------------------------------------------------

    @property
    def has_pending(self) -> bool:
        """Whether a feature has not been started."""
        return any(feature.state is FeatureState.PENDING for feature in self.features)

    def choose(self) -> Feature | None:
        """The feature to start now; `None` when there is none, no place is free, or the program is paused.

        The highest priority goes first (1 is the highest). Inside a priority it is the turn of the tenant that has the
        fewest features at work for its weight; then of the one that had the fewest starts, so that shares are equal
        also where only one place is free at a time; then of the first in the file.
        """
        working = [feature for feature in self.features if feature.state is FeatureState.RUNNING]
        if self.is_paused or len(working) >= self.max_concurrent:
            return None
        in_flight = Counter(feature.request.tenant for feature in working)
        begun = Counter(feature.request.tenant for feature in self.features if feature.state not in _NEVER_BEGUN)

        def turn(feature: Feature) -> tuple[int, float, float, int]:
            tenant = feature.request.tenant
            weight = self.request.weight(tenant)
            return feature.request.priority, in_flight[tenant] / weight, begun[tenant] / weight, feature.index

        pending = (feature for feature in self.features if feature.state is FeatureState.PENDING)
        return min(pending, key=turn, default=None)

    # --- what happens -------------------------------------------------------------------------------------------

    def start(self, feature: Feature) -> None:
        """Its pipeline is being started."""
        feature.state = FeatureState.RUNNING

    def note_waiting(self, waits: FeatureWaits) -> None:
        """A pipeline waits for a person, or goes on; one that has ended, or is not ours, is ignored.

        One that goes on takes its place back at once, so that for a while more may work than the bound says.
        """
        for feature in self.features:
            if feature.workflow_id == waits.workflow_id and feature.state in _OPEN:
                feature.state = FeatureState.RUNNING if waits.stage is None else FeatureState.WAITING
                feature.reason = "" if waits.stage is None else _short(f"{waits.stage}: {waits.reason}")

    def finish(self, feature: Feature, result: PipelineResult) -> None:
        """Its pipeline returned a result: completed, rejected or expired."""
        feature.result, feature.state = result, FeatureState(result.status)
        feature.reason = "" if feature.state is FeatureState.COMPLETED else _short(result.reason)

    def end(self, feature: Feature, state: FeatureState, reason: str) -> None:
        """It ended without a result."""
        feature.state, feature.reason = state, _short(reason)

    def end_pending(self, state: FeatureState, reason: str) -> None:
        """What has not been started never will be."""
        for feature in self.features:
            if feature.state is FeatureState.PENDING:
                self.end(feature, state, reason)

    # --- how it looks -------------------------------------------------------------------------------------------

    def progress(self) -> ProgramProgress:
        """The answer to `progress`."""
        return ProgramProgress(
            name=self.request.name,
            max_concurrent=self.max_concurrent,
            is_paused=self.is_paused,
            features=[_line(feature) for feature in self.features],
        )

    def result(self) -> ProgramResult:
        """The workflow's result."""
        results = [feature.result for feature in self.features if feature.result is not None]
        return ProgramResult(
            name=self.request.name,
            counts=self._counts(),
            tokens=sum(result.tokens for result in results),
            cost_usd=_sum_costs([result.cost_usd for result in results]),
            features=[_line(feature) for feature in self.features],
        )

    def details(self) -> str:
        """Markdown for the Web UI: what is to be done comes first, at most 50 rows."""
        counts = ", ".join(f"{count} {state}" for state, count in self._counts().items())
        lines = [
            f"**{counts}**; at most {self.max_concurrent} at once{', paused' if self.is_paused else ''}\n",
            "| feature | tenant | priority | state | reason |",
            "|---|---|---|---|---|",
        ]
        rows = sorted(self.features, key=lambda feature: (_SHOWN_FIRST.index(feature.state), feature.index))
        for feature in rows[:SHOWN_ROWS]:
            request, reason = feature.request, feature.reason.replace("|", "\\|")
            lines.append(f"| {request.feature} | {request.tenant} | {request.priority} | {feature.state} | {reason} |")
        if len(rows) > SHOWN_ROWS:
            lines.append(f"\n… and {len(rows) - SHOWN_ROWS} more; the query `progress` has all of them")
        return "\n".join(lines)

    def _counts(self) -> dict[FeatureState, int]:
        counts = Counter(feature.state for feature in self.features)
        return {state: counts[state] for state in FeatureState if counts[state]}


def _line(feature: Feature) -> FeatureLine:
    """Only what says something is set, so that only that is sent."""
    request, result = feature.request, feature.result
    line = FeatureLine(feature=request.feature, state=feature.state)
    if feature.reason:
        line.reason = feature.reason
    if feature.state is not FeatureState.PENDING:
        line.workflow_id = feature.workflow_id
    if "tenant" in request.model_fields_set:
        line.tenant = request.tenant
    if "priority" in request.model_fields_set:
        line.priority = request.priority
    if result is not None:
        line.tokens, line.cost_usd = result.tokens, result.cost_usd
    return line


def _short(reason: str) -> str:
    """One line of at most 200 characters."""
    line = " ".join(reason.split())
    return line if len(line) <= MAX_REASON_CHARACTERS else line[: MAX_REASON_CHARACTERS - 1] + "…"


def _sum_costs(costs: list[Decimal | None]) -> Decimal | None:
    """One unknown price makes the sum unknown: a partial sum would look like the whole."""
    return None if None in costs else sum((cost for cost in costs if cost is not None), Decimal(0))
