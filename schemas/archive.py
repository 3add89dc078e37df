"""The archive's messages: what it keeps of a stream's message, and how it is asked for over NATS."""

import re
from datetime import datetime
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from schemas.deliverable import Sha256

CHUNK_BYTES: Final = 4 * 1024 * 1024
"""Of a content in one reply; a third more in base64, which fits well into a message of 10 MB."""

_SUBJECT: Final = r"[a-z0-9-]{1,64}(\.[a-z0-9-]{1,64}){0,4}"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,255}$")]
Subject = Annotated[str, Field(pattern=f"^{_SUBJECT}$")]
"""Of a deliverable: slugs and dots, so it is a plain folder's name too."""


def is_plain(subject: str) -> bool:
    """Whether it is a subject that can be asked for; a client of its own may have published under others."""
    return re.fullmatch(_SUBJECT, subject) is not None


class ArchivedMessage(BaseModel):
    """The record of one message of a stream; its body is the content with that sha256.

    It is a function of the message alone: whoever archives a message again writes the same bytes.
    """

    model_config = ConfigDict(frozen=True)

    stream: str
    sequence: int
    subject: str
    headers: dict[str, str]
    stored_at: datetime
    """By the NATS server's clock."""
    sha256: Sha256
    bytes: int


class ArchiveRequest(BaseModel):
    """One question: a message by sequence, the last one by subject, a part of a content, or just where the archive is.

    Fields of several questions together are answered by the first in this order.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    stream: Name | None = None
    sequence: int = 0
    sha256: Sha256 | None = None
    """With `stream`: of the body, if it is known, since a stream that was made anew counts from 1 again.

    Alone: a content."""
    subject: Subject | None = None
    offset: Annotated[int, Field(ge=0)] = 0


class ArchiveReply(BaseModel):
    """The answer; neither `message` nor `data` when there is no such thing."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", use_attribute_docstrings=True)

    place: str = ""
    """The folder or URL of the archive."""
    message: ArchivedMessage | None = None
    data: bytes | None = None
    """At most `CHUNK_BYTES` of the content."""
    code: str | None = None
    """Of an error."""
    text: str = ""
    retryable: bool = False
