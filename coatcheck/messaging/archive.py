"""`ArchiveClient`: reads what retention has dropped, from the service that a core worker offers.

An agent, a gateway or a judge has no access to the archive's folder or bucket, and needs none: it asks on the one
subject that its account can reach. It believes nothing: contents are checked against their sha256 here.
"""

import hashlib
from typing import Final

from coatcheck.errors import DeliverableCorruptError, MessagingUnavailableError
from coatcheck.messaging.client import NatsClient, StoredMessage
from schemas.archive import ArchivedMessage, ArchiveReply, ArchiveRequest
from schemas.subjects import archive_subject

TIMEOUT_SECONDS: Final = 30.0
"""For one reply: the service gives up on an object storage that is away after 10 s."""
HINT: Final = "a core worker serves the archive; `coatcheck doctor` says what is wrong with it"


class ArchiveClient:
    """The archive as one identity reads it."""

    def __init__(self, client: NatsClient) -> None:
        self._client = client

    async def message(self, stream: str, sequence: int, *, sha256: str | None = None) -> StoredMessage | None:
        """The message that a stream held under a sequence; `None` when it was not archived.

        Args:
            stream: Its name.
            sequence: In the stream.
            sha256: Of the body, if it is known.

        Raises:
            DeliverableCorruptError: the archive's bytes are not those that were archived.
            MessagingUnavailableError: the archive cannot be asked, so nobody knows whether it is there: try again.
            NotAuthorizedError: this identity may not ask.
        """
        reply = await self._ask(ArchiveRequest(stream=stream, sequence=sequence, sha256=sha256))
        return None if reply.message is None else await self._whole(reply.message)

    async def last_message(self, subject: str) -> StoredMessage | None:
        """The last message that was archived under a subject; otherwise as `message`."""
        reply = await self._ask(ArchiveRequest(subject=subject))
        return None if reply.message is None else await self._whole(reply.message)

    async def content(self, sha256: str, size: int) -> bytes | None:
        """A content of `size` bytes; otherwise as `message`."""
        data = bytearray()
        while True:
            reply = await self._ask(ArchiveRequest(sha256=sha256, offset=len(data)))
            if reply.data is None:
                return None
            data += reply.data
            if len(data) >= size or not reply.data:
                break
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DeliverableCorruptError(f"the archive's {sha256} is corrupt: it does not have this sha256")
        return bytes(data)

    async def place(self) -> str:
        """Where the archive is, once it has answered; raises as `message` does."""
        return (await self._ask(ArchiveRequest())).place

    async def _whole(self, record: ArchivedMessage) -> StoredMessage:
        data = await self.content(record.sha256, record.bytes)
        if data is None:
            raise DeliverableCorruptError(f"the archive has lost the body of {record.stream}.{record.sequence}")
        return StoredMessage(
            stream=record.stream,
            sequence=record.sequence,
            subject=record.subject,
            headers=record.headers,
            data=data,
            stored_at=record.stored_at,
        )

    async def _ask(self, request: ArchiveRequest) -> ArchiveReply:
        subject = archive_subject(self._client.identity)
        payload = request.model_dump_json(exclude_none=True).encode()
        try:
            reply = ArchiveReply.model_validate_json(
                await self._client.request(subject, payload, timeout=TIMEOUT_SECONDS)
            )
        except MessagingUnavailableError as error:
            raise MessagingUnavailableError(f"the archive does not answer: {error}", hint=HINT) from error
        if reply.code is None:
            return reply
        if reply.retryable:
            raise MessagingUnavailableError(f"the archive does not answer: {reply.text}", hint=HINT)
        raise DeliverableCorruptError(reply.text)
