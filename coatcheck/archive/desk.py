"""`ArchiveDesk`: serves `agog.svc.archive.<reader>`, read only, for those who have no access to the archive's folder.

Every identity that may read the streams of deliverables may ask, and for the same: whatever any agent has delivered.
"""

from pydantic import ValidationError

from coatcheck.archive.shelf import MESSAGES, Shelf
from coatcheck.errors import CoatcheckError
from schemas import errors
from schemas.archive import CHUNK_BYTES, ArchiveReply, ArchiveRequest


class ArchiveDesk:
    """Answers from one archive."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    async def handle(self, payload: bytes) -> bytes:
        """Answer one request.

        Returns:
            An `ArchiveReply` as JSON.
        """
        try:
            request = ArchiveRequest.model_validate_json(payload)
        except ValidationError as error:
            return _encode(ArchiveReply(code=errors.REQUEST_INVALID, text=str(error)))
        try:
            return _encode(await self._reply(request))
        except CoatcheckError as error:
            return _encode(ArchiveReply(code=error.code, text=str(error), retryable=error.retryable))

    async def _reply(self, request: ArchiveRequest) -> ArchiveReply:
        place = self._shelf.place
        if request.stream is not None:
            found = await self._shelf.find(request.stream, request.sequence, sha256=request.sha256)
            return ArchiveReply(place=place, message=found)
        if request.subject is not None:
            return ArchiveReply(place=place, message=await self._shelf.find_last(request.subject))
        if request.sha256 is not None:
            return ArchiveReply(place=place, data=await self._shelf.part(request.sha256, request.offset, CHUNK_BYTES))
        await self._shelf.entries(MESSAGES)  # it answers
        return ArchiveReply(place=place)


def _encode(reply: ArchiveReply) -> bytes:
    return reply.model_dump_json(exclude_none=True).encode()
