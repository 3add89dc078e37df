"""`nearest`: which of the earlier deliverables are most like one, by the cosine of their vectors.

A body is read and embedded once, the first time that it is compared, and known by its sha256 from then on.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from operator import mul
from typing import Final

from coatcheck.errors import DeliverableError, StreamMissingError
from coatcheck.similarity.embedding import Embedder
from coatcheck.similarity.vectors import Vector, VectorCache
from coatcheck.storage.state import DeliverableRecord
from schemas.deliverable import DeliverableRef

BATCH: Final = 32
"""Bodies that are read and embedded together; what is done of a thousand is kept when somebody interrupts."""

Read = Callable[[DeliverableRef], Awaitable[str]]
"""The text of a deliverable; raises `DeliverableError` when it is gone."""


@dataclass(frozen=True)
class Match:
    """An earlier deliverable and how much it is like the one that was asked for."""

    similarity: float
    """Cosine: 1 is the same direction; texts of one team on different subjects have some 0.5 or less."""
    record: DeliverableRecord


@dataclass(frozen=True)
class Found:
    """What was found."""

    matches: list[Match]
    """Nearest first."""
    compared: int
    gone: int
    """Recorded, and not on their streams any more."""


async def nearest(
    text: str, earlier: Sequence[DeliverableRecord], *, read: Read, embedder: Embedder, cache: VectorCache, limit: int
) -> Found:
    """Compare a text with deliverables.

    Args:
        text: What they are compared with.
        earlier: The candidates.
        read: Gets the body of one whose vector is not known.
        embedder: Makes the vectors.
        cache: Keeps them.
        limit: Most matches.

    Raises:
        EmbeddingError: the model refuses.
        DependencyDownError: a server or the endpoint does not answer.
    """
    known = cache.get({record.ref.sha256 for record in earlier})
    missing = list({record.ref.sha256: record.ref for record in earlier if record.ref.sha256 not in known}.values())
    for start in range(0, len(missing), BATCH):
        vectors = await _embed(missing[start : start + BATCH], read, embedder)
        cache.put(vectors)
        known |= vectors
    [wanted] = await embedder.embed([text])
    matches = [
        Match(_cosine(wanted, known[record.ref.sha256]), record) for record in earlier if record.ref.sha256 in known
    ]
    matches.sort(key=lambda match: (-match.similarity, match.record.task_key))
    return Found(matches[:limit], compared=len(matches), gone=len(earlier) - len(matches))


async def _embed(refs: Sequence[DeliverableRef], read: Read, embedder: Embedder) -> dict[str, Vector]:
    texts = await asyncio.gather(*(_text(ref, read) for ref in refs))
    there = [(ref.sha256, text) for ref, text in zip(refs, texts, strict=True) if text is not None]
    if not there:
        return {}
    vectors = await embedder.embed([text for _, text in there])
    return {digest: vector for (digest, _), vector in zip(there, vectors, strict=True)}


async def _text(ref: DeliverableRef, read: Read) -> str | None:
    try:
        return await read(ref)
    except (DeliverableError, StreamMissingError):
        return None


def _cosine(one: Vector, other: Vector) -> float:
    """Both have length 1."""
    return float(sum(map(mul, one, other)))
