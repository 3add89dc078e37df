"""The pipeline's request, its stage graph as data, decisions of people, progress and result."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Final, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from schemas.budget import Budget
from schemas.deliverable import Sha256
from schemas.notice import Notice, Verdict
from schemas.subjects import Slug

MAX_BRIEF_BYTES: Final = 256 * 1024
DEFAULT_TENANT: Final = "default"
DECISION_TIMEOUT_SECONDS: Final = int(timedelta(days=7).total_seconds())
"""As long as the streams keep what was reviewed."""


def check_brief(value: str) -> str:
    """Return the brief when it says something and fits.

    Raises:
        ValueError: it is blank or longer than 256 KB in UTF-8.
    """
    if not value.strip():
        raise ValueError("the brief is empty")
    if (size := len(value.encode("utf-8", "surrogatepass"))) > MAX_BRIEF_BYTES:
        raise ValueError(f"the brief is {size:,} bytes, at most {MAX_BRIEF_BYTES:,} are allowed")
    return value


class StageKind(StrEnum):
    """How the pipeline treats a stage's notice."""

    WORK = "work"
    """Produces; goes on when complete."""
    REVIEW = "review"
    """Gives a verdict on the stage it `reviews`: approve, revise or reject."""
    TEST = "test"
    """Passes, or names the stages to be reworked."""


class Stage(BaseModel):
    """One node of the stage graph."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: Slug
    agent: Slug
    task_type: Slug
    kind: StageKind = StageKind.WORK
    needs: tuple[Slug, ...] = ()
    """Stages whose latest deliverable the agent is handed, as references; it starts when they are done."""
    reviews: Slug | None = None
    """For a review: the stage that a `revise` sends back."""
    reworks: tuple[Slug, ...] = ()
    """For a test: the stages that a failure may send back; a failure that names none sends back the first."""
    gate: bool = False
    """A person decides before the pipeline goes on."""
    max_rounds: Annotated[int, Field(ge=1, le=20)] = 3
    """Rounds of this stage before a person is asked."""

    @property
    def sends_back(self) -> tuple[str, ...]:
        """The stages that this one may order to do their work again."""
        return (self.reviews,) if self.reviews is not None else self.reworks


class GraphFault(NamedTuple):
    """What is wrong with a stage's place in the graph."""

    position: int
    """Of the stage."""
    field: str
    """The field of `Stage` that says it."""
    message: str


def graph_faults(stages: Sequence[Stage]) -> list[GraphFault]:
    """Everything that keeps `stages` from being a graph in which each stage builds on earlier ones."""
    faults: list[GraphFault] = []
    seen: set[str] = set()
    for index, stage in enumerate(stages):
        name = f"stage {stage.name!r}"
        if stage.name in seen:
            faults.append(GraphFault(index, "name", f"two stages are named {stage.name!r}"))
        for field, others in (("needs", stage.needs), ("reviews", stage.reviews), ("reworks", stage.reworks)):
            for other in (others,) if isinstance(others, str) else others or ():
                if other not in seen:
                    told = f"{name} refers to {other!r}, which is not an earlier stage"
                    faults.append(GraphFault(index, field, told))
        if (stage.kind is StageKind.REVIEW) != (stage.reviews is not None):
            faults.append(GraphFault(index, "reviews", f"{name}: a review, and only a review, names what it reviews"))
        if (stage.kind is StageKind.TEST) != bool(stage.reworks):
            told = f"{name}: a test, and only a test, names what it may send back"
            faults.append(GraphFault(index, "reworks", told))
        seen.add(stage.name)
    return faults


class Pipeline(BaseModel):
    """Stages, each of which starts as soon as those that it waits for are done; so some may run at the same time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Slug = "default"
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=32)]

    @model_validator(mode="after")
    def _graph_is_sound(self) -> Self:
        if faults := graph_faults(self.stages):
            raise ValueError("; ".join(fault.message for fault in faults))
        return self

    def stage(self, name: str) -> Stage:
        """Look a stage up.

        Raises:
            KeyError: no stage has that name.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def waits_for(self, stage: Stage) -> frozenset[str]:
        """Names of the stages that must be done before `stage` starts.

        What it needs or judges, and each earlier stage that may still send one of those back: nobody builds on a
        text that a review is about to change, and no two stages send the same one back at once.
        """
        waits = {*stage.needs, *stage.sends_back}
        for earlier in self.stages[: self.stages.index(stage)]:
            if waits.intersection(earlier.sends_back):
                waits.add(earlier.name)
        return frozenset(waits)

    def downstream(self, stage: str) -> frozenset[str]:
        """Names of the stage and of all that wait for it, directly or not.

        Raises:
            ValueError: no stage has that name.
        """
        if stage not in {item.name for item in self.stages}:
            raise ValueError(f"no stage is named {stage!r}; there are {', '.join(item.name for item in self.stages)}")
        found = {stage}
        for item in self.stages:  # in an order in which each comes after those that it waits for
            if found.intersection(self.waits_for(item)):
                found.add(item.name)
        return frozenset(found)


DEFAULT_PIPELINE: Final = Pipeline(
    stages=(
        Stage(name="research", agent="cynthia", task_type="research"),
        Stage(
            name="critique",
            agent="sylvia",
            task_type="critique",
            kind=StageKind.REVIEW,
            needs=("research",),
            reviews="research",
        ),
        Stage(name="backend", agent="roy", task_type="backend", needs=("research", "critique")),
        Stage(name="frontend", agent="jen", task_type="frontend", needs=("research", "backend")),
        Stage(
            name="qa",
            agent="billy",
            task_type="qa",
            kind=StageKind.TEST,
            needs=("research", "backend", "frontend"),
            reworks=("backend", "frontend"),
        ),
        Stage(name="statistics", agent="priya", task_type="statistics", needs=("critique", "qa")),
    )
)
"""The seed's sequence (003, Complete Feature Workflow; statistics is the sixth stream)."""


MAX_INHERITED_ROUNDS: Final = 40
"""Of 1 KB each: they are in the run's first event."""


class InheritedRound(BaseModel):
    """A round that a forked run takes over as it was; nothing of it is paid again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: Slug
    round: Annotated[int, Field(ge=1)]
    task_key: str
    """Of the run that did it."""
    notice: Notice


class ForkPoint(BaseModel):
    """Where a forked run begins: the rounds before it are another run's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_key: str
    """Of the run that was forked."""
    stage: Slug
    """The first stage that is done anew; so are those that wait for it."""
    rounds: Annotated[tuple[InheritedRound, ...], Field(max_length=MAX_INHERITED_ROUNDS)] = ()
    """Of the stages that are not, in the order in which they were done."""


class FeatureRequest(BaseModel):
    """Input of `FeaturePipeline`; `{"feature": "customer-search", "brief": "…"}` is enough."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    feature: Annotated[Slug, Field(strict=True)]
    brief: Annotated[str, Field(strict=True), AfterValidator(check_brief)]
    """What is wanted, in the requester's words."""
    tenant: Annotated[Slug, Field(strict=True)] = DEFAULT_TENANT
    priority: Annotated[int, Field(strict=True, ge=1, le=5)] = 3
    """1 goes first; Temporal's own priority for the run's activities."""
    gates: tuple[Slug, ...] = ()
    """Stages after which a person decides, besides those that the pipeline marks."""
    decision_timeout_seconds: Annotated[int, Field(strict=True, ge=1, le=90 * 86_400)] = DECISION_TIMEOUT_SECONDS
    budget: Slug | Budget | None = None
    """At most so much is spent, or one of `[budgets]` in `coatcheck.toml` by name; its tenant's when absent."""
    pipeline: Pipeline = DEFAULT_PIPELINE
    fork: ForkPoint | None = None
    """Set by `coatcheck bench fork`: begin with another run's rounds instead of doing them."""

    @model_validator(mode="after")
    def _fork_is_of_this_pipeline(self) -> Self:
        if self.fork is None:
            return self
        anew = self.pipeline.downstream(self.fork.stage)
        given = {item.stage for item in self.fork.rounds}
        wanted = {stage.name for stage in self.pipeline.stages} - anew
        if given != wanted:
            raise ValueError(
                f"a fork at {self.fork.stage!r} takes over {', '.join(sorted(wanted)) or 'nothing'}, "
                f"not {', '.join(sorted(given)) or 'nothing'}"
            )
        return self

    @model_validator(mode="after")
    def _gates_exist(self) -> Self:
        names = [stage.name for stage in self.pipeline.stages]
        for gate in self.gates:
            if gate not in names:
                raise ValueError(f"gate {gate!r} is not a stage; the stages are {', '.join(names)}")
        return self


class DecisionAction(StrEnum):
    """What a person can say of a waiting stage."""

    APPROVE = "approve"
    """Take it as it is and go on."""
    REVISE = "revise"
    """One more round, with the comment."""
    REJECT = "reject"
    """End the run."""


class Decision(BaseModel):
    """Argument of the update `decide`. Bound to what was looked at: approving round 1 cannot release round 2."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: Slug
    action: DecisionAction
    sha256: Sha256
    """Of the deliverable that the person reviewed; shown in `progress`."""
    by: Annotated[str, Field(min_length=1, max_length=100)]
    comment: Annotated[str, Field(max_length=2000)] = ""
    """Handed to the agent when the action is `revise`."""


class RunStatus(StrEnum):
    """Where a run is; the seed's four (004) and the reasons to stand still or to end early."""

    RUNNING = "running"
    PAUSED = "paused"
    WAITING = "waiting"
    """A person has to decide."""
    COMPLETED = "completed"
    REJECTED = "rejected"
    EXPIRED = "expired"
    """Nobody decided in time."""
    CANCELLED = "cancelled"
    FAILED = "failed"


class StageState(StrEnum):
    """Where a stage is."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    PARKED = "parked"
    """No model can be asked for a while; a durable timer starts the round again."""
    DONE = "done"
    FAILED = "failed"


class Waiting(BaseModel):
    """What a person is asked."""

    stage: str
    round: int
    reason: str
    sha256: str
    """To be repeated in the decision."""
    subject: str
    deadline: datetime


class StageProgress(BaseModel):
    """One row of the progress table."""

    stage: str
    agent: str
    state: StageState
    round: int = 0
    """0 before the first round starts."""
    verdict: Verdict | None = None
    subject: str | None = None
    sequence: int | None = None
    tokens: int = 0
    """In and out, over all rounds."""
    cost_usd: Decimal | None = Decimal(0)
    """Over all rounds; `None` when a price is unknown."""
    summary: str = ""
    reason: str = ""
    """Why it is parked, or why it was accepted, when it did not simply finish."""
    parked_until: datetime | None = None
    started_at: datetime | None = None
    seconds: float | None = None
    """Duration of the latest round."""


class Progress(BaseModel):
    """Answer of the query `progress`."""

    feature: str
    status: RunStatus
    run_key: str
    stages: list[StageProgress]
    waiting: list[Waiting] = []
    """What people are asked; more than one only where stages run at the same time."""
    error: str | None = None


class StageOutcome(BaseModel):
    """One line of the result: the last notice of a stage and what all its rounds took."""

    stage: str
    agent: str
    rounds: int
    verdict: Verdict | None = None
    message: str
    """`STREAM:SEQUENCE`, as `coatcheck fetch` takes it."""
    reason: str = ""
    """Why a review or a test was over: approved, passed on evidence, only minor findings left, or a person's word."""
    tokens: int
    cost_usd: Decimal | None


class PipelineResult(BaseModel):
    """What `FeaturePipeline` returns: short, typed, readable in `temporal workflow result`."""

    feature: str
    status: Literal[RunStatus.COMPLETED, RunStatus.REJECTED, RunStatus.EXPIRED]
    reason: str
    stages: list[StageOutcome]
    tokens: int
    cost_usd: Decimal | None
    run_key: str


class TaskNotice(BaseModel):
    """Answer of the query `notices`: every notice of the run in order, with the round that gave it."""

    stage: str
    round: int
    notice: Notice
