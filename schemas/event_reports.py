"""How agents and judges have their events stored: a request on `agog.svc.events.<reporter>`.

Who reports is known from the subject, never from the body.
"""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from schemas.events import AgentEvent, JudgeEvent

MAX_REPORTED_EVENTS: Final = 100
"""Per request; 6 MB at worst, so that a request always fits into a message."""


class EventReport(BaseModel):
    """The request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    events: Annotated[list[AgentEvent | JudgeEvent], Field(min_length=1, max_length=MAX_REPORTED_EVENTS)]


class EventReply(BaseModel):
    """The answer: all of them are stored, or an error says why not."""

    stored: int = 0
    code: str | None = None
    message: str = ""
    retryable: bool = False
