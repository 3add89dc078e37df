"""Many features as one program: request, progress and result of `Program`, and what its pipelines tell it.

A feature's run has the default workflow id `feature/<slug>`, the one of `coatcheck run`: so Temporal itself refuses a
second run of a feature that is already under way, and every command finds it by its slug.
"""

from collections import Counter
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.config import Tenant
from schemas.pipeline import FeatureRequest
from schemas.subjects import Slug

PIPELINE_WORKFLOW: Final = "FeaturePipeline"
"""Workflow Type of the children."""
FEATURE_WAITS: Final = "feature_waits"
"""Signal of a pipeline to the program that started it."""
MAX_FEATURES: Final = 500
"""Each costs the program's history some 6 events, 2.5 KB and its brief twice, so that one history is enough for all:
Temporal allows 51,200 events and 50 MB."""
MAX_CONCURRENT: Final = 5
"""Unless the request says otherwise: one agent worker's six queues are busy with about as many runs."""
MOST_CONCURRENT: Final = 100
"""What a core worker takes at once by Temporal's default; 500 begun in one moment made workflow tasks time out."""
MAX_REASON_CHARACTERS: Final = 200
"""Enough for a sentence; 500 of them are 100 KB, far below Temporal's 2 MiB for a result."""


def program_workflow_id(name: str) -> str:
    """The workflow id of a program."""
    return f"program/{name}"


class FeatureWaits(BaseModel):
    """Argument of `feature_waits`: the pipeline begins to wait for a person, or goes on."""

    workflow_id: str
    stage: str | None
    """What a person is asked about; `None` when it goes on."""
    reason: str


class MaxConcurrent(BaseModel):
    """Argument of the update `set_max_concurrent`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_concurrent: Annotated[int, Field(strict=True, ge=1, le=MOST_CONCURRENT)]


class ProgramRequest(BaseModel):
    """Input of `Program`; `{"name": "spring", "features": [{"feature": "search", "brief": "…"}]}` is enough."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[Slug, Field(strict=True)]
    features: Annotated[tuple[FeatureRequest, ...], Field(min_length=1, max_length=MAX_FEATURES)]
    max_concurrent: Annotated[int, Field(strict=True, ge=1, le=MOST_CONCURRENT)] = MAX_CONCURRENT
    """How many features are worked on at once; those that wait for a person do not count."""
    tenants: dict[Slug, Tenant] = {}
    """Shares of the tenants; one that is not named has the weight 1."""

    @model_validator(mode="after")
    def _features_differ(self) -> Self:
        counts = Counter(request.feature for request in self.features)
        if twice := [feature for feature, count in counts.items() if count > 1]:
            raise ValueError(f"the same feature is named more than once: {', '.join(twice)}")
        return self

    def weight(self, tenant: str) -> float:
        """The share of a tenant."""
        return self.tenants[tenant].weight if tenant in self.tenants else 1.0


class FeatureState(StrEnum):
    """Where one feature of a program is."""

    PENDING = "pending"
    """Not started yet."""
    RUNNING = "running"
    WAITING = "waiting"
    """A person has to decide; its place is given to another feature meanwhile."""
    COMPLETED = "completed"
    REJECTED = "rejected"
    EXPIRED = "expired"
    FAILED = "failed"
    CANCELLED = "cancelled"
    BLOCKED = "blocked"
    """Not started, because it already runs outside this program."""


class FeatureLine(BaseModel):
    """One feature in the progress and in the result; short, since there may be 500. What is unset is left out."""

    feature: str
    state: FeatureState
    reason: str = ""
    """Why it waits, or why it did not go through; at most 200 characters on one line."""
    workflow_id: str = ""
    """Empty while it has not been started."""
    tenant: str = "default"
    priority: int = 3
    tokens: int | None = None
    """In and out; `None` until the run has ended with a result: a failed run does not say what it took."""
    cost_usd: Decimal | None = None
    """`None` as for `tokens`, and when a price is unknown."""


class ProgramProgress(BaseModel):
    """Answer of the query `progress`, in the order of the file."""

    name: str
    max_concurrent: int
    is_paused: bool = False
    features: list[FeatureLine]


class ProgramResult(BaseModel):
    """What `Program` returns, whatever became of its features."""

    name: str
    counts: dict[FeatureState, int]
    """Without the states that no feature ended in."""
    tokens: int
    """Of the features that say it."""
    cost_usd: Decimal | None
    """Of the features that say their tokens; `None` when the price of one of those is unknown."""
    features: list[FeatureLine]
