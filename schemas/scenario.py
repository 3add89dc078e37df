"""A benchmark scenario: what a run is given, and what its events have to look like.

Written by people as JSON, or recorded from a good run. Everything here can be judged from the audit log alone, so a
scenario holds for a run of last week as for one that has just ended, without a model and without a database.
"""

from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, JsonValue, Tag, model_validator

from schemas.pipeline import FeatureRequest
from schemas.rehearsal import Cue
from schemas.subjects import Slug

Seconds = Annotated[float, Field(gt=0)]
EventName = Annotated[str, Field(pattern=r"^[a-z]+\.[a-z]+$")]

Invariant: TypeAlias = Literal[
    "readable",
    "ids",
    "correlation",
    "speakers",
    "causation",
    "order",
    "clock",
    "beginning",
    "end",
    "rounds",
    "status",
    "acceptance",
    "inputs",
    "decisions",
    "deliverables",
    "evidence",
    "turns",
    "tools",
    "calls",
    "attempts",
]
"""What must be so in any run, whatever it was given; `coatcheck.bench.invariants` says each in full."""
INVARIANTS: Final[tuple[Invariant, ...]] = get_args(Invariant)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


# --- one event ------------------------------------------------------------------------------------------------------


class Condition(_Part):
    """What a value has to be; every given test must hold. A bare value means `equals`."""

    equals: JsonValue = None
    one_of: list[JsonValue] | None = None
    at_least: float | None = None
    at_most: float | None = None
    matches: str | None = None
    """A regular expression (RE2) that occurs in the text."""
    exists: bool | None = None
    """Whether there has to be a value; `null` is none."""

    @model_validator(mode="after")
    def _says_something(self) -> "Condition":
        if not self.model_fields_set:
            raise ValueError("a condition needs a test: equals, one_of, at_least, at_most, matches or exists")
        return self


def _bare_value(value: Any) -> Any:
    return value if isinstance(value, dict | Condition) else {"equals": value}


class EventMatcher(_Part):
    """Tells whether an event is meant; what is not given may be anything."""

    event: EventName | Literal["*"]
    """Event type, such as `stage.completed`."""
    stage: str | None = None
    round: int | None = None
    agent: str | None = None
    source: str | None = None
    where: dict[str, Annotated[Condition, BeforeValidator(_bare_value)]] = {}
    """Dotted path in the payload → condition: `{"notice.metadata.verdict": "revise"}`. A number is an index."""

    def __str__(self) -> str:
        about = [str(part) for part in (self.stage, self.round, self.agent, self.source) if part is not None]
        said = [f"{path} {_spelled(test)}" for path, test in self.where.items()]
        return self.event + (f"({', '.join([*about, *said])})" if about or said else "")


def _spelled(test: Condition) -> str:
    given = test.model_dump(exclude_unset=True)
    return " and ".join(f"= {value}" if name == "equals" else f"{name} {value}" for name, value in given.items())


# --- the sequence ---------------------------------------------------------------------------------------------------


class Repeat(_Part):
    """How often; `max` without a value for any number."""

    min: Annotated[int, Field(ge=0)] = 1
    max: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _is_a_range(self) -> "Repeat":
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max {self.max} is less than min {self.min}")
        return self


class _Step(_Part):
    optional: bool = False
    repeat: Repeat | None = None


class EventStep(EventMatcher, _Step):
    """One event, in its place."""

    label: Slug | None = None
    """A name for `expect.within`."""
    within_seconds: Seconds | None = None
    """Since the run started."""
    after_previous_seconds: Seconds | None = None
    """At most, since the event of the step before."""


class SequenceStep(_Step):
    """Steps in order; to make several optional or repeated together."""

    steps: Annotated[list["Step"], Field(min_length=1)]


class UnorderedStep(_Step):
    """Things that happen at the same time: each in its own order, mixed in any way."""

    unordered: Annotated[list["Step"], Field(min_length=2)]


class AnyOfStep(_Step):
    """One of several."""

    any_of: Annotated[list["Step"], Field(min_length=2)]


def _kind_of_step(value: Any) -> str:
    for name in ("unordered", "any_of", "steps"):
        if (name in value) if isinstance(value, dict) else hasattr(value, name):
            return name
    return "event"


Step: TypeAlias = Annotated[
    Annotated[EventStep, Tag("event")]
    | Annotated[SequenceStep, Tag("steps")]
    | Annotated[UnorderedStep, Tag("unordered")]
    | Annotated[AnyOfStep, Tag("any_of")],
    Discriminator(_kind_of_step),
]
for _model in (SequenceStep, UnorderedStep, AnyOfStep):
    _model.model_rebuild()


# --- the whole run --------------------------------------------------------------------------------------------------


class Count(_Part):
    """How often an event may be in the run."""

    match: EventMatcher
    min: Annotated[int, Field(ge=0)] = 0
    max: Annotated[int, Field(ge=0)] | None = None


class Within(_Part):
    """How long it may take from one labelled step to another; of repeated ones from the first to the last."""

    first: Slug
    last: Slug
    seconds: Seconds


class Budget(_Part):
    """What the whole run may take at most, by its turns."""

    tokens: Annotated[int, Field(ge=0)] | None = None
    """In and out."""
    usd: Annotated[float, Field(ge=0)] | None = None
    """An unknown price keeps no budget."""
    calls: Annotated[int, Field(ge=0)] | None = None
    """Of providers, those that failed included."""


class Threshold(_Part):
    """What the judges have to say by one criterion."""

    criterion: str
    judge: str | None = None
    """Every judge when absent."""
    stage: str | None = None
    at_least: Annotated[float, Field(ge=0, le=1)]


class Expect(_Part):
    """What the events of the run have to be."""

    sequence: Annotated[list[Step], Field(min_length=1)]
    """In the order of the audit log."""
    allow_other: Literal["none", "agents", "all"] = "agents"
    """Events that no step takes: none, those of agents, judges and turns, or any."""
    forbidden: list[EventMatcher] = []
    counts: list[Count] = []
    within: list[Within] = []
    max_seconds: Seconds | None = None
    """From the start of the run to its end."""
    budget: Budget = Budget()
    invariants: list[Invariant] = list(INVARIANTS)
    """All, unless some are given."""
    skew_seconds: Seconds = 5.0
    """How far clocks may differ."""
    late_seconds: Seconds = 60.0
    """How long after it happened something may be told: a flush at the end of a round, an outage of NATS."""
    judges: list[Threshold] = []


class Action(_Part):
    """What a person does as soon as something is told."""

    when: EventMatcher
    do: Literal["approve", "revise", "reject", "pause", "resume", "cancel"]
    """The first three answer the question about the event's stage."""
    comment: str = ""
    by: str = "bench"

    @model_validator(mode="after")
    def _answers_a_question(self) -> "Action":
        if self.do in {"approve", "revise", "reject"} and self.when.event != "decision.requested":
            raise ValueError(f"{self.do!r} answers a question: it waits for decision.requested, not {self.when.event}")
        return self


class ScenarioInput(_Part):
    """What the run is given."""

    request: FeatureRequest
    rehearsal: list[Cue] = []
    """What the scripted author does on purpose; without it, any model will do."""
    people: list[Action] = []
    """Each is done once, at the first event that it waits for; several on one event in this order."""
    patience_seconds: Seconds = 120.0
    """How long the runner waits for the end."""


class Scenario(_Part):
    """One benchmark."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9]+(_[a-z0-9]+)*$", max_length=60)]
    title: Annotated[str, Field(min_length=1, max_length=200)]
    alone: bool = False
    """Whether no other run may be under way: for what all runs feel, such as a provider over its limit."""
    input: ScenarioInput
    expect: Expect

    @model_validator(mode="after")
    def _labels_are_sound(self) -> "Scenario":
        labels = [step.label for step in event_steps(self.expect.sequence) if step.label is not None]
        if twice := {label for label in labels if labels.count(label) > 1}:
            raise ValueError(f"more than one step has the label {', '.join(sorted(twice))}")
        for bound in self.expect.within:
            for label in (bound.first, bound.last):
                if label not in labels:
                    raise ValueError(f"no step has the label {label!r}")
        return self


def event_steps(steps: list[Step]) -> list[EventStep]:
    """Every event step, wherever it is nested, in the order of the text."""
    found: list[EventStep] = []
    for step in steps:
        match step:
            case EventStep():
                found.append(step)
            case SequenceStep():
                found += event_steps(step.steps)
            case UnorderedStep():
                found += event_steps(step.unordered)
            case AnyOfStep():
                found += event_steps(step.any_of)
    return found
