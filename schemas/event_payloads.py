"""What each type of event says. `schemas.events` wraps these in the envelope and lists which types there are.

Payloads are absolute, not differences: folding a run's events up to any sequence gives the rows as they were then.
Additions keep the version, since readers ignore what they do not know; any other change makes a new one.
"""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from schemas.budget import Budget
from schemas.deliverable import Artifact, DeliverableRef, Sha256
from schemas.evidence import EvidenceSummary
from schemas.notice import Notice
from schemas.pipeline import DecisionAction, InheritedRound

MAX_REASON_CHARACTERS: Final = 4000


def _cut(text: str) -> str:
    """The beginning, without what no JSON reader takes: an event that cannot be stored would stop its run."""
    return text[:MAX_REASON_CHARACTERS].encode("utf-8", "replace").decode()


Reason = Annotated[str, BeforeValidator(_cut)]
"""Words for people; long ones are cut."""


class Payload(BaseModel):
    """Base of every payload."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class RunPoint(Payload):
    """The run's row right after what happened."""

    status: str
    """One of `schemas.pipeline.RunStatus`."""
    current_step: str | None = None
    completed_steps: int = 0


# --- system: runs ---------------------------------------------------------------------------------------------------


class RunStarted(Payload):
    """A run began."""

    workflow_id: str
    feature: str
    tenant: str
    priority: int = 3
    stages: list[str]
    agents: list[str]
    """Of the stages, in their order."""
    brief_sha256: Sha256
    brief_bytes: int
    forked_from: str | None = None
    """Run key."""
    inherited: list[InheritedRound] = []
    run: RunPoint


class RunChanged(Payload):
    """A run was paused, resumed or ended."""

    reason: Reason = ""
    run: RunPoint


class BudgetSet(Payload):
    """A person has set what the run may spend."""

    budget: Budget
    """In all, what is spent included."""
    by: str
    run: RunPoint


class RunRepaired(Payload):
    """The run's row said something else than Temporal, and was put right."""

    found: str
    """Status of the row before."""
    reason: Reason
    completed_at: datetime | None = None
    """When it ended in Temporal; `None` when it goes on."""
    run: RunPoint


# --- system: stages -------------------------------------------------------------------------------------------------


class StageStarted(Payload):
    """A round of a stage was handed to its agent."""

    stage: str
    task_type: str
    round: int
    inputs: dict[str, str] = {}
    """Stage → ticket (`DeliverableRef.to_ticket`)."""
    comment: Reason = ""
    run: RunPoint


class StageCompleted(Payload):
    """The agent returned its notice."""

    stage: str
    round: int
    notice: Notice
    run: RunPoint


class StageAccepted(Payload):
    """Nothing more is wanted of the stage, unless a later one sends it back."""

    stage: str
    rounds: int
    reason: Reason = ""
    run: RunPoint


class StageEnded(Payload):
    """The round ended without a notice: it failed, or its run ended."""

    stage: str
    round: int
    reason: Reason
    run: RunPoint


class StageParked(Payload):
    """No model can be asked; the round begins again at `until`."""

    stage: str
    round: int
    reason: Reason
    until: datetime
    run: RunPoint


class StageRepaired(Payload):
    """The round's row said `running` although its run had ended, and was put right."""

    stage: str
    round: int
    found: str
    status: Literal["failed", "cancelled"]
    reason: Reason
    completed_at: datetime | None = None
    """`None`: as its run's row said."""


class DecisionRequested(Payload):
    """A person has to decide."""

    stage: str
    round: int
    reason: Reason
    sha256: Sha256
    subject: str
    deadline: datetime
    run: RunPoint


class DecisionMade(Payload):
    """A person has decided."""

    stage: str
    round: int
    action: DecisionAction
    by: str
    comment: Reason = ""
    sha256: Sha256
    run: RunPoint


# --- system: turns --------------------------------------------------------------------------------------------------


class ToolCall(Payload):
    """What a model asked for. The arguments are in the conversation only: they may hold secrets."""

    tool: str
    tool_call_id: str


class TurnCompleted(Payload):
    """A model turn as the LLM proxy's journal has it, told when its round ends."""

    stage: str
    round: int
    turn: int
    model: str
    calls: int
    """Provider calls begun for it."""
    tokens_in: int
    tokens_out: int
    tokens_cached: int = 0
    cost_usd: Decimal | None = None
    """`None`: no price is known."""
    seconds: float
    """Of the call that was answered."""
    messages: int
    """Rows of the conversation that it added."""
    tool_calls: list[ToolCall] = []


# --- agents ---------------------------------------------------------------------------------------------------------


class AttemptStarted(Payload):
    """An attempt after the first began: the earlier one died or could not go on."""

    stage: str
    round: int
    attempt: Annotated[int, Field(ge=2)]


class ToolCompleted(Payload):
    """A tool returned: one of the agent's worker, or of an MCP server through the gateway."""

    stage: str
    round: int
    tool: str
    tool_call_id: str
    outcome: Literal["ok", "error", "unknown"]
    """`unknown`: nobody knows whether the tool did its work, and it is not called again."""
    seconds: float
    result_bytes: int
    error: Reason = ""
    document: DeliverableRef | None = None
    """The deliverable that it read, if that is what it is for."""


class DeliverablePublished(Payload):
    """The deliverable is stored on the agent's stream."""

    stage: str
    round: int
    subject: str
    stream: str
    sequence: int
    sha256: Sha256
    bytes: int
    files: int = 0
    artifacts: list[Artifact] = []
    """The first ones, as many as an event has room for; the deliverable lists all."""


class EvidenceRecorded(Payload):
    """What the declared checks did."""

    stage: str
    round: int
    isolation: str
    summary: EvidenceSummary


# --- judges ---------------------------------------------------------------------------------------------------------


class Scored(Payload):
    """One judge's opinion of one thing by one criterion."""

    judge: str
    kind: Literal["check", "llm", "human"]
    criterion: str
    score: Annotated[float, Field(ge=0, le=1)]
    label: str = ""
    """The judge's own word, such as `correct`."""
    explanation: Reason = ""
    stage: str | None = None
    """`None`: of the whole run."""
    round: int | None = None
    model: str | None = None
    """Of an LLM judge."""
    scenario: str | None = None


class JudgingFailed(Payload):
    """A judge gave no score, which is an error and not a zero."""

    judge: str
    kind: Literal["check", "llm", "human"]
    criterion: str
    error: Reason
    stage: str | None = None
    round: int | None = None
    scenario: str | None = None


class AgreementMeasured(Payload):
    """How far the judges of one criterion agree."""

    criterion: str
    judges: list[str]
    measure: str
    """Such as `cohen_kappa` or `mean_absolute_difference`."""
    value: float | None
    """`None`: not defined for these scores."""
    compared: int
    """Things that all of them scored."""
    scenario: str | None = None
