"""A deliverable: what an agent checks in. The full body lives on its stream, a reference travels."""

from datetime import datetime
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field

HEADER_MESSAGE_ID: Final = "Nats-Msg-Id"
HEADER_SCHEMA: Final = "Coatcheck-Schema"
HEADER_TASK: Final = "Coatcheck-Task"
HEADER_SHA256: Final = "Content-SHA256"
SCHEMA: Final = "deliverable/1"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class DeliverableMetadata(BaseModel):
    """The seed's metadata (003, Published Message Structure); custom fields are kept."""

    model_config = ConfigDict(extra="allow")

    agent: str
    taskType: str  # noqa: N815  the seed's wire name
    feature: str
    timestamp: datetime
    files_analyzed: int = 0
    duration_minutes: float = 0


class Artifact(BaseModel):
    """A file that belongs to a deliverable; its bytes are stored under their sha256."""

    model_config = ConfigDict(frozen=True)

    path: str
    sha256: Sha256
    bytes: int
    media_type: str


class Deliverable(BaseModel):
    """The message body on the stream: JSON in exactly the seed's shape, plus `artifacts`."""

    content: str
    """Full markdown, 5k to 15k tokens as a rule."""
    metadata: DeliverableMetadata
    artifacts: list[Artifact] = []


class DeliverableRef(BaseModel):
    """The ticket: names one stored message for ever, so that two runs of one feature never mix.

    `(stream, sequence)` is immutable on JetStream; `sha256` is over the message body and is checked on every read.
    """

    model_config = ConfigDict(frozen=True)

    stream: str
    sequence: int
    sha256: Sha256
    bytes: int

    def to_ticket(self) -> str:
        """The reference as `stream:sequence:sha256:bytes`, the short form that histories keep."""
        return f"{self.stream}:{self.sequence}:{self.sha256}:{self.bytes}"

    @classmethod
    def from_ticket(cls, ticket: str) -> Self:
        """Read what `to_ticket` wrote.

        Raises:
            ValueError: it is not a ticket.
        """
        stream, sequence, sha256, size = ticket.split(":")
        return cls(stream=stream, sequence=int(sequence), sha256=sha256, bytes=int(size))


class StoredDeliverable(BaseModel):
    """A deliverable as read back, with the ticket that names it."""

    subject: str
    ref: DeliverableRef
    task_key: str | None
    deliverable: Deliverable
