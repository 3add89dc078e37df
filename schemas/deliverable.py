"""A deliverable: what an agent checks in. The full body lives on its stream, a reference travels."""

import unicodedata
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from schemas.streams import stream_name

HEADER_MESSAGE_ID: Final = "Nats-Msg-Id"
HEADER_SCHEMA: Final = "Coatcheck-Schema"
HEADER_TASK: Final = "Coatcheck-Task"
HEADER_SHA256: Final = "Content-SHA256"
HEADER_SIGNATURE: Final = "Coatcheck-Signature"
"""`<public NKey> <Ed25519 signature in base64url>`; over what: `coatcheck.messaging.signatures`."""
SCHEMA: Final = "deliverable/1"
_STREAM_PREFIX: Final = stream_name("")

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


MAX_ARTIFACTS: Final = 10_000
"""Files of one deliverable: their list has to fit into the message."""
MAX_ARTIFACT_BYTES: Final = 256 * 1024 * 1024
"""All files of one deliverable together."""
MAX_PATH_BYTES: Final = 240


def check_artifact_path(value: str) -> str:
    """Return a path that means the same file below any folder, on any system.

    Raises:
        ValueError: it is empty, absolute, too long, not in NFC, has `..`, `.`, an empty or a `.git` part, a backslash,
            a colon, a control character, or a part that ends with a dot or a space.
    """
    if not value or len(value.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        raise ValueError(f"a path has 1 to {MAX_PATH_BYTES} bytes")
    if any(unicodedata.category(character) == "Cc" or character in "\\:" for character in value):
        raise ValueError(f"the path {value!r} has a control character, a backslash or a colon")
    if value.encode("utf-8", "replace").decode() != value or unicodedata.normalize("NFC", value) != value:
        raise ValueError(f"the path {value!r} is not composed Unicode (NFC)")
    for part in value.split("/"):
        if part in {"", ".", ".."} or part[-1] in ". " or part.casefold() == ".git":
            raise ValueError(f"the path {value!r} is not a plain relative path such as 'src/app.py'")
    return str(PurePosixPath(value))


ArtifactPath = Annotated[str, AfterValidator(check_artifact_path)]
"""A plain relative POSIX path, such as `src/app.py`."""


class Artifact(BaseModel):
    """A file that belongs to a deliverable; its bytes are stored under their sha256."""

    model_config = ConfigDict(frozen=True)

    path: ArtifactPath
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
        """The reference as `research:42:<sha256 in base64url>:20000`, the short form that histories keep."""
        digest = urlsafe_b64encode(bytes.fromhex(self.sha256)).decode().rstrip("=")
        return f"{self.stream.removeprefix(_STREAM_PREFIX)}:{self.sequence}:{digest}:{self.bytes}"

    @classmethod
    def from_ticket(cls, ticket: str) -> Self:
        """Read what `to_ticket` wrote.

        Raises:
            ValueError: it is not a ticket.
        """
        task_type, sequence, digest, size = ticket.split(":")
        sha256 = urlsafe_b64decode(f"{digest}=").hex()
        return cls(stream=stream_name(task_type), sequence=int(sequence), sha256=sha256, bytes=int(size))


class StoredDeliverable(BaseModel):
    """A deliverable as read back, with the ticket that names it."""

    subject: str
    ref: DeliverableRef
    task_key: str | None
    deliverable: Deliverable
    source: Literal["stream", "archive"] = Field("stream", serialization_alias="from")
    """Where it was read: retention has dropped what comes from the archive."""
