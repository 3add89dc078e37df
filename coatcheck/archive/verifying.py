"""Looks over everything that the archive keeps: every record, the body that it names, the files that the body names."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from pydantic import ValidationError

from coatcheck.archive.shelf import MESSAGES, Shelf, object_key
from coatcheck.errors import DeliverableCorruptError
from schemas.deliverable import Deliverable


@dataclass
class Verified:
    """What was found."""

    messages: int = 0
    contents: int = 0
    """Bodies and files that are as they were archived, each once."""
    bytes: int = 0
    """Of those."""
    problems: list[str] = field(default_factory=list)


async def verify(shelf: Shelf) -> Verified:
    """Read all of it, one content at a time.

    Raises:
        DestinationError: the archive refuses.
        DestinationDownError: the archive does not answer.
    """
    found, seen = Verified(), set[str]()
    async for key in _record_keys(shelf):
        try:
            record = await shelf.record(key)
        except DeliverableCorruptError as error:
            found.problems.append(str(error))
            continue
        found.messages += 1
        name = f"{record.stream}.{record.sequence}"
        body = await _content(shelf, record.sha256, f"the body of {name}", seen, found)
        for path, sha256 in _files(body):
            await _content(shelf, sha256, f"{path} of {name}", seen, found)
    return found


async def _content(shelf: Shelf, sha256: str, what: str, seen: set[str], found: Verified) -> bytes | None:
    """The bytes when they are read for the first time and as they must be."""
    if sha256 in seen:
        return None
    seen.add(sha256)
    try:
        data = await shelf.read(object_key(sha256))
    except DeliverableCorruptError as error:
        found.problems.append(f"{what}: {error}")
        return None
    if data is None:
        found.problems.append(f"{what} is missing ({sha256})")
        return None
    found.contents += 1
    found.bytes += len(data)
    return data


def _files(body: bytes | None) -> list[tuple[str, str]]:
    try:
        deliverable = Deliverable.model_validate_json(body or b"{}")
    except ValidationError:
        return []  # kept as it was stored
    return [(artifact.path, artifact.sha256) for artifact in deliverable.artifacts]


async def _record_keys(shelf: Shelf) -> AsyncIterator[str]:
    for stream in await shelf.entries(MESSAGES):
        for shard in await shelf.entries(f"{MESSAGES}/{stream}"):
            for name in await shelf.entries(f"{MESSAGES}/{stream}/{shard}"):
                yield f"{MESSAGES}/{stream}/{shard}/{name}"
