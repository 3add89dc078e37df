"""The event taxonomy: one registry of types, their envelope, and how an event is read.

`Event` is a discriminated union on `event_type`; a type that is not in it cannot be built, and so not be emitted. What
a newer release wrote is read as an `UnknownEvent`, which keeps everything; what is no event at all is refused.

Ids are deterministic: `uuid5` of what the event is about, its type, and which occurrence it is. The id is the
JetStream message id and the primary key in PostgreSQL, so an activity that runs again tells nothing twice. The
occurrence counts what happened (the second pause), not what was told (the seventh event), since an attempt that is made
again may tell things in another order.
"""

import json
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeAlias, cast, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from schemas import event_payloads as payloads
from schemas.subjects import PREFIX, encode_token
from schemas.workflow_ids import event_id

Family = Literal["system", "agent", "judge"]
Severity = Literal["debug", "info", "warning", "error", "critical"]

CORE: Final = "core"
"""Source of every system event."""
JUDGE: Final = "judge"
"""The identity under which judges report; each names itself in its payload."""
VERSION: Final = 1
"""Of the envelope and every payload so far; a type whose payload changes shape overrides it."""
SCHEMA: Final = "coatcheck.event/1"
"""Value of the header `Coatcheck-Schema`."""
MAX_EVENT_BYTES: Final = 60 * 1024


class Envelope(BaseModel):
    """What every event has, whatever it says."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    event_id: str
    """`schemas.workflow_ids.event_id(entity_id, event_type, occurrence)`."""
    event_type: str
    version: int = VERSION
    occurrence: str = ""
    """Tells events of one type about one entity apart; empty for what happens once."""
    source: str
    """Who says it: `core`, an agent, or `judge`."""
    entity_id: str
    """What it is about: a task key, or the run key."""
    correlation_id: str
    """The run key: everything that one run caused."""
    causation_id: str | None = None
    """The event that led to this one."""
    session_id: str
    """The Temporal workflow id: the runs of one feature, one after the other."""
    agent: str | None = None
    severity: Severity = "info"
    occurred_at: AwareDatetime
    traceparent: str | None = None
    """W3C trace context; travels in the message's header and is filled in from there."""

    @property
    def entity_type(self) -> Literal["workflow", "task"]:
        """`task` when it is about a round."""
        return "workflow" if self.entity_id == self.correlation_id else "task"

    def to_wire(self) -> bytes:
        """JSON without absent values and without those that every reader fills in: a run tells some seventy events."""
        return self.model_dump_json(exclude_none=True, exclude_defaults=True).encode()


class _Typed(Envelope):
    """An event of a registered type."""

    family: ClassVar[Family]
    teller: ClassVar[str | None] = None
    """The one source of the family, if it has one."""

    @classmethod
    def of(cls, *, entity_id: str, occurrence: str = "", **fields: Any) -> Self:
        """Build the event; its id follows from the rest."""
        event_type = get_args(cls.model_fields["event_type"].annotation)[0]
        identity = event_id(entity_id, event_type, occurrence)
        if cls.teller is not None:
            fields["source"] = cls.teller
        return cls(event_id=identity, event_type=event_type, entity_id=entity_id, occurrence=occurrence, **fields)

    @model_validator(mode="after")
    def _is_itself(self) -> Self:
        """An id that is not its own would hide another event, and a foreign task would be counted to this run."""
        if self.event_id != event_id(self.entity_id, self.event_type, self.occurrence):
            raise ValueError("event_id does not follow from entity_id, event_type and occurrence")
        if self.entity_id != self.correlation_id and not self.entity_id.startswith(f"{self.correlation_id}/"):
            raise ValueError(f"{self.entity_id!r} is no task of the run {self.correlation_id!r}")
        return self

    @property
    def subject(self) -> str:
        """Where it is stored: `agog.events.<family>.<source>.<event>.<correlation id>`."""
        return event_subject(self.family, self.source, self.event_type, self.correlation_id)


class _SystemEvent(_Typed):
    family: ClassVar[Family] = "system"
    teller: ClassVar[str | None] = CORE
    source: Literal["core"]


class _AgentEvent(_Typed):
    """Said by an agent's worker about its own task; nobody vouches for it but the agent."""

    family: ClassVar[Family] = "agent"
    agent: str

    @model_validator(mode="after")
    def _speaks_for_itself(self) -> Self:
        if self.source != self.agent:
            raise ValueError(f"{self.source!r} cannot speak for the agent {self.agent!r}")
        return self


class _JudgeEvent(_Typed):
    family: ClassVar[Family] = "judge"
    teller: ClassVar[str | None] = JUDGE
    source: Literal["judge"]


class RunStarted(_SystemEvent):
    """A run began."""

    event_type: Literal["run.started"]
    payload: payloads.RunStarted


class RunPaused(_SystemEvent):
    """The run stands still between stages."""

    event_type: Literal["run.paused"]
    payload: payloads.RunChanged


class RunResumed(_SystemEvent):
    """The run goes on."""

    event_type: Literal["run.resumed"]
    payload: payloads.RunChanged


class RunCompleted(_SystemEvent):
    """Every stage is done."""

    event_type: Literal["run.completed"]
    payload: payloads.RunChanged


class RunRejected(_SystemEvent):
    """A person rejected the work."""

    event_type: Literal["run.rejected"]
    payload: payloads.RunChanged


class RunExpired(_SystemEvent):
    """Nobody decided in time."""

    event_type: Literal["run.expired"]
    payload: payloads.RunChanged


class RunCancelled(_SystemEvent):
    """The run was cancelled."""

    event_type: Literal["run.cancelled"]
    payload: payloads.RunChanged


class RunFailed(_SystemEvent):
    """A stage failed for good."""

    event_type: Literal["run.failed"]
    payload: payloads.RunChanged


class RunReset(_SystemEvent):
    """Temporal took the run back to an earlier point; what happened after that point happens again."""

    event_type: Literal["run.reset"]
    payload: payloads.RunChanged


class RunRepaired(_SystemEvent):
    """Reconcile put the run's row right."""

    event_type: Literal["run.repaired"]
    payload: payloads.RunRepaired


class StageStarted(_SystemEvent):
    """A round was handed to its agent."""

    event_type: Literal["stage.started"]
    payload: payloads.StageStarted


class StageCompleted(_SystemEvent):
    """A round returned its notice."""

    event_type: Literal["stage.completed"]
    payload: payloads.StageCompleted


class StageAccepted(_SystemEvent):
    """Nothing more is wanted of a stage."""

    event_type: Literal["stage.accepted"]
    payload: payloads.StageAccepted


class StageFailed(_SystemEvent):
    """A round failed for good."""

    event_type: Literal["stage.failed"]
    payload: payloads.StageEnded


class StageCancelled(_SystemEvent):
    """A round ended with its run."""

    event_type: Literal["stage.cancelled"]
    payload: payloads.StageEnded


class StageParked(_SystemEvent):
    """A round waits for a model."""

    event_type: Literal["stage.parked"]
    payload: payloads.StageParked


class StageRepaired(_SystemEvent):
    """Reconcile put a round's row right."""

    event_type: Literal["stage.repaired"]
    payload: payloads.StageRepaired


class DecisionRequested(_SystemEvent):
    """A person has to decide."""

    event_type: Literal["decision.requested"]
    payload: payloads.DecisionRequested


class DecisionMade(_SystemEvent):
    """A person has decided."""

    event_type: Literal["decision.made"]
    payload: payloads.DecisionMade


class BudgetSet(_SystemEvent):
    """A person has set what the run may spend."""

    event_type: Literal["budget.set"]
    payload: payloads.BudgetSet


class TurnCompleted(_SystemEvent):
    """A model turn, from the LLM proxy's journal."""

    event_type: Literal["turn.completed"]
    payload: payloads.TurnCompleted


class AttemptStarted(_AgentEvent):
    """A round began again."""

    event_type: Literal["attempt.started"]
    payload: payloads.AttemptStarted


class ToolCompleted(_AgentEvent):
    """A tool returned."""

    event_type: Literal["tool.completed"]
    payload: payloads.ToolCompleted


class DeliverablePublished(_AgentEvent):
    """A deliverable is stored."""

    event_type: Literal["deliverable.published"]
    payload: payloads.DeliverablePublished


class EvidenceRecorded(_AgentEvent):
    """The declared checks ran."""

    event_type: Literal["evidence.recorded"]
    payload: payloads.EvidenceRecorded


class JudgeScored(_JudgeEvent):
    """A judge gave a score."""

    event_type: Literal["judge.scored"]
    payload: payloads.Scored


class JudgeFailed(_JudgeEvent):
    """A judge gave none."""

    event_type: Literal["judge.failed"]
    payload: payloads.JudgingFailed


class JudgesCompared(_JudgeEvent):
    """How far judges agree."""

    event_type: Literal["judges.compared"]
    payload: payloads.AgreementMeasured


SystemEvent: TypeAlias = Annotated[
    RunStarted
    | RunPaused
    | RunResumed
    | RunCompleted
    | RunRejected
    | RunExpired
    | RunCancelled
    | RunFailed
    | RunReset
    | RunRepaired
    | StageStarted
    | StageCompleted
    | StageAccepted
    | StageFailed
    | StageCancelled
    | StageParked
    | StageRepaired
    | DecisionRequested
    | DecisionMade
    | BudgetSet
    | TurnCompleted,
    Field(discriminator="event_type"),
]
"""Said by the core worker, from the workflows' state and the journal."""
AgentEvent: TypeAlias = Annotated[
    AttemptStarted | ToolCompleted | DeliverablePublished | EvidenceRecorded, Field(discriminator="event_type")
]
"""Said by an agent about itself."""
JudgeEvent: TypeAlias = Annotated[JudgeScored | JudgeFailed | JudgesCompared, Field(discriminator="event_type")]
"""Said by a judge about a run."""
Event: TypeAlias = SystemEvent | AgentEvent | JudgeEvent


class UnknownEvent(Envelope):
    """An event that a newer release wrote: its type or version is not known here. Kept as it is."""

    model_config = ConfigDict(frozen=True, extra="allow")

    payload: dict[str, Any] = {}


class EventInvalidError(ValueError):
    """Not an event, or not what its type must be."""


_REGISTERED: Final[tuple[type[_Typed], ...]] = tuple(
    kind for family in (SystemEvent, AgentEvent, JudgeEvent) for kind in get_args(get_args(family)[0])
)
EVENT_TYPES: Final[dict[str, type[_Typed]]] = {
    get_args(kind.model_fields["event_type"].annotation)[0]: kind for kind in _REGISTERED
}
"""The registry: event type → class."""


def read_event(data: bytes) -> Event | UnknownEvent:
    """Read one event as it was stored.

    Raises:
        EventInvalidError: it is not JSON, lacks part of the envelope, or a known type says what it cannot.
    """
    try:
        fields = json.loads(data)
        if not isinstance(fields, dict):
            raise EventInvalidError("not a JSON object")
        kind = EVENT_TYPES.get(str(fields.get("event_type")))
        if kind is None or fields.get("version", VERSION) != VERSION:
            return UnknownEvent.model_validate(fields)
        return cast("Event", kind.model_validate(fields))
    except ValueError as error:
        raise EventInvalidError(str(error)) from error


def event_subject(family: str, source: str, event_type: str, correlation_id: str) -> str:
    """The subject of an event; `*` for any of the four."""
    correlation = correlation_id if correlation_id == "*" else encode_token(correlation_id)
    return f"{PREFIX}.events.{family}.{source}.{event_type.replace('.', '-')}.{correlation}"


def run_events(correlation_id: str) -> str:
    """Every event of one run: the pattern by which the server filters."""
    return event_subject("*", "*", "*", correlation_id)
