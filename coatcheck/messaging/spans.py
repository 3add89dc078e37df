"""Read a span of a stream by sequence, in order, many requests at a time: a reader that has no consumer needs no more.

Thousands of messages per second on one connection, where one request after the other would wait for each answer.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from coatcheck.errors import DeliverableNotFoundError
from coatcheck.messaging.client import NatsClient, StoredMessage

CHUNK: Final = 256
"""Requests in flight at once, and messages held in memory."""


async def read_span(
    client: NatsClient, stream: str, first: int, last: int, *, chunk: int = CHUNK
) -> AsyncGenerator[list[StoredMessage]]:
    """The messages from `first` to `last`, in chunks, in order; what the stream no longer holds is left out.

    Raises:
        StreamMissingError: there is no such stream.
        NotAuthorizedError: this identity may not read it.
        MessagingUnavailableError: no answer.
    """
    for start in range(first, last + 1, chunk):
        sequences = range(start, min(start + chunk, last + 1))
        found = await asyncio.gather(*(_read(client, stream, sequence) for sequence in sequences))
        if messages := [message for message in found if message is not None]:
            yield messages


async def _read(client: NatsClient, stream: str, sequence: int) -> StoredMessage | None:
    try:
        return await client.fetch_by_sequence(stream, sequence)
    except DeliverableNotFoundError:
        return None
