"""`Shelf`: what the archive is made of. Every object is named by the sha256 of its bytes and never changes.

    objects/<aa>/<sha256>                                      bodies of messages and files, each content once
    messages/<stream>/<thousands>/<sequence>.<sha256>          records of messages, by stream and sequence
    subjects/<subject>/<time>.<stream>.<sequence>.<sha256>     the same records, by subject, the latest last

So two writers of one message write the same objects, a stream that was made anew and counts from 1 again takes nothing
from its predecessor, and a reader can tell a wrong byte from a right one. The record by sequence is written last: with
it, all is there.

Folders and object storage are asked in threads of the shelf's own: one that hangs must not hold up anybody else.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

from pydantic import ValidationError

from coatcheck.errors import DeliverableCorruptError
from coatcheck.objects.destinations import Destination, DestinationDownError, open_destination
from schemas.archive import ArchivedMessage, is_plain

PATIENCE_SECONDS: Final = 10.0
"""How long a request to object storage is repeated; the archiver comes again, and a reader does not wait for longer."""
THREADS: Final = 8
MESSAGES: Final = "messages"
_OBJECTS: Final = "objects"
_SUBJECTS: Final = "subjects"
_SHARD: Final = 1000
"""Records in one folder: what object storage lists in one answer."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Shelf:
    """One archive.

    Args:
        destination: The folder or object storage.
        place: Its name for people.
    """

    def __init__(self, destination: Destination, *, place: str) -> None:
        self.place = place
        self._destination = destination
        self._writing: dict[str, asyncio.Future[None]] = {}
        """Deliverables that come together often have a file in common."""
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="archive")

    async def keep_body(self, data: bytes) -> str:
        """Store a content, read it back, and return its sha256; raises as `keep_file` does."""
        return await self._do(self._keep_content, data)

    async def keep_file(self, sha256: str, data: bytes) -> None:
        """Store a content whose sha256 is known, and read it back; nothing if it is there.

        Raises:
            DestinationError: it is refused.
            DestinationDownError: no answer, or what is read back is not what was written.
        """
        if (writing := self._writing.get(sha256)) is None:
            writing = self._writing[sha256] = asyncio.ensure_future(self._do(self._keep, object_key(sha256), data))
            writing.add_done_callback(lambda _: self._writing.pop(sha256))
        await asyncio.shield(writing)

    async def keep_record(self, record: ArchivedMessage) -> None:
        """Store the record of a message, under its sequence last; raises as `keep_file` does."""
        await self._do(self._keep_record, record)

    async def holds(self, sha256: str) -> bool:
        """Whether a content is there, whole; raises as `read` does, but not for what is corrupt."""
        try:
            return await self.read(object_key(sha256)) is not None
        except DeliverableCorruptError:
            return False

    async def read(self, key: str) -> bytes | None:
        """The bytes under a key; `None` when there are none.

        Raises:
            DeliverableCorruptError: they do not have the sha256 in the key.
            DestinationError: it is refused.
            DestinationDownError: no answer.
        """
        data = await self._do(self._destination.get, key)
        if data is not None and hashlib.sha256(data).hexdigest() != key[-64:]:
            raise DeliverableCorruptError(f"{self.place}/{key} is corrupt: it does not have this sha256")
        return data

    async def part(self, sha256: str, start: int, length: int) -> bytes | None:
        """Some bytes of a content, not checked: whoever puts them together does. Otherwise as `read`."""
        return await self._do(self._destination.get_range, object_key(sha256), start, length)

    async def find(self, stream: str, sequence: int, *, sha256: str | None = None) -> ArchivedMessage | None:
        """The record of a message, the latest when a stream of that name was made anew; raises as `read` does."""
        folder = _record_folder(stream, sequence)
        names = [name for name in await self.entries(folder) if name.startswith(f"{sequence:020}.")]
        records = [await self.record(f"{folder}/{name}") for name in names]
        fitting = [record for record in records if sha256 in {None, record.sha256}]
        return max(fitting, key=lambda record: record.stored_at, default=None)

    async def find_last(self, subject: str) -> ArchivedMessage | None:
        """The record of the last message under a subject; raises as `read` does."""
        folder = f"{_SUBJECTS}/{subject}"
        names = await self.entries(folder)
        return await self.record(f"{folder}/{names[-1]}") if names else None

    async def record(self, key: str) -> ArchivedMessage:
        """Read a record that is there; raises as `read` does."""
        data = await self.read(key)
        try:
            return ArchivedMessage.model_validate_json(data or b"")
        except ValidationError as error:
            raise DeliverableCorruptError(f"{self.place}/{key} is no record of a message") from error

    async def entries(self, folder: str) -> list[str]:
        """Names in a folder, sorted; raises as `read` does, but for corrupt ones."""
        return await self._do(self._destination.entries, folder)

    def _keep_content(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self._keep(object_key(digest), data)
        return digest

    def _keep_record(self, record: ArchivedMessage) -> None:
        data = record.model_dump_json().encode()
        number = f"{record.sequence:020}.{hashlib.sha256(data).hexdigest()}"
        if is_plain(record.subject):  # it becomes a folder, and nobody can ask for another one
            moment = f"{record.stored_at:%Y%m%dT%H%M%S%f}"
            self._keep(f"{_SUBJECTS}/{record.subject}/{moment}.{record.stream}.{number}", data)
        self._keep(f"{_record_folder(record.stream, record.sequence)}/{number}", data)

    def _keep(self, key: str, data: bytes) -> None:
        found = self._destination.get(key)
        if found == data:
            return
        if found is not None:
            _log.error("%s/%s is corrupt and is written again", self.place, key)
        self._destination.put(key, data)
        if self._destination.get(key) != data:
            raise DestinationDownError(f"{self.place}/{key} is not what was written")

    async def _do(self, work: Callable[..., _T], *arguments: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *arguments))


def open_shelf(place: str, *, patience_seconds: float = PATIENCE_SECONDS) -> Shelf:
    """The archive in a folder or at a URL; raises as `open_destination` does."""
    return Shelf(open_destination(place, patience_seconds=patience_seconds), place=place)


def object_key(sha256: str) -> str:
    """Where a content is."""
    return f"{_OBJECTS}/{sha256[:2]}/{sha256}"


def _record_folder(stream: str, sequence: int) -> str:
    return f"{MESSAGES}/{stream}/{sequence // _SHARD:017}"
