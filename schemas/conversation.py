"""Request-reply between an agent and the LLM proxy: one model turn.

Bodies of deliverables and the brief never cross this wire. The agent puts a *claim* into its prompt, a marker text
that is listed in `claims`; the proxy replaces it by the body, fetched and verified, just before the provider call.
So the journal stores the marker, a retried turn is the same turn, and a 9 MB deliverable costs a prompt 120 bytes.
"""

from decimal import Decimal
from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from schemas.deliverable import DeliverableRef
from schemas.notice import Notice


class Claim(BaseModel):
    """A marker in the messages and what the proxy puts in its place.

    Only markers listed by the agent's own code are replaced, so text that a user or a model wrote cannot claim. The
    brief is that of the task's own run. A deliverable may be any that is stored: every agent may read them all.
    """

    marker: str
    deliverable: DeliverableRef | None = None
    """`None` claims the run's brief."""
    offset: int = 0
    """First character of the content that is shown."""
    limit: int
    """Most characters of the content that are shown; what is cut is said in the text."""


class TurnRequest(BaseModel):
    """Ask for turn `turn` of the task; idempotent by (`task_key`, `turn`).

    Who asks is told by the subject and not by the body. The task must be recorded as that agent's and as running.
    """

    task_key: str
    """It has the run key in it, and with it the brief that may be claimed."""
    turn: int = Field(ge=1)
    models: list[str] = []
    """`provider:model` in order of preference; the proxy's own chain when empty."""
    messages: list[dict[str, Any]]
    """pydantic-ai messages since the last answer; the proxy has the earlier ones."""
    parameters: dict[str, Any]
    """pydantic-ai `ModelRequestParameters`: the role's instructions, the tools and the form of the answer."""
    settings: dict[str, Any] = {}
    """pydantic-ai `ModelSettings`."""
    claims: list[Claim] = []
    """Of all turns so far."""
    wrap_up: str = ""
    """Why nothing more fits, if so: the agent hands in what it has, in a small last call that is kept free."""


class RedeemRequest(BaseModel):
    """Ask for a text with its claims replaced, for an agent that is no model of ours: a command.

    The task must be recorded as the asking agent's, and as running or complete.
    """

    task_key: str
    text: str
    claims: list[Claim]


class RedeemReply(BaseModel):
    """The text, or the notice of a task that needs none any more, or why neither."""

    text: str | None = None
    notice: Notice | None = None
    """The task is already recorded as complete, for instance before a reset: take its notice."""
    code: str | None = None
    message: str = ""
    retryable: bool = False


OVER_BUDGET: Final = "over_budget"
"""In the `metadata` of a `ModelResponse` that was a last one: why."""


class TurnAnswer(BaseModel):
    """The model's message, from the provider or from the journal."""

    kind: Literal["answer"] = "answer"
    message: dict[str, Any]
    """A pydantic-ai `ModelResponse`, with usage."""
    model: str
    """`provider:model` that wrote it."""
    cost_usd: Decimal | None
    """`None` when no price is known."""
    replayed: bool = False
    """From the journal: nothing was paid for this request."""


class TurnPending(BaseModel):
    """The call is still under way; ask again with the same key to join it."""

    kind: Literal["pending"] = "pending"


class TurnFinished(BaseModel):
    """The task is already recorded as complete, for instance before a reset: take its notice."""

    kind: Literal["finished"] = "finished"
    notice: Notice


class TurnParked(BaseModel):
    """No model of the chain can be asked now: nothing was called and nothing failed; the stage waits elsewhere."""

    kind: Literal["parked"] = "parked"
    reason: str
    """Which models are closed and why, for people."""
    retry_after_seconds: float
    """Until the first of them may be asked again, with jitter."""


class TurnOverBudget(BaseModel):
    """The call does not fit into what may still be spent, and was not made: ask again with `wrap_up`, or stop."""

    kind: Literal["over_budget"] = "over_budget"
    reason: str
    """What is left of what, for the agent and for people."""


class TurnError(BaseModel):
    """A typed refusal."""

    kind: Literal["error"] = "error"
    code: str
    message: str
    retryable: bool
    retry_after_seconds: float | None = None


class TurnReply(BaseModel):
    """The proxy's reply."""

    reply: TurnAnswer | TurnPending | TurnFinished | TurnParked | TurnOverBudget | TurnError = Field(
        discriminator="kind"
    )
