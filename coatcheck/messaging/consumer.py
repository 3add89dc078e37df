"""`BatchConsumer`: a durable pull consumer that is read in order, in batches, and acknowledged after the effect.

The acknowledgement is cumulative: that of a batch's last message covers all before it, one round trip per batch. That
is only safe while messages arrive in the order of the stream, and after a death they would not: what the dead reader
held comes again after `ack_wait`, later than what is new, and acknowledging the new would drop the old for good. So
whoever begins to read takes the consumer back to its acknowledged position first (`rewind`, nats-server 2.14 or
later), and a batch that does not follow on the last one is refused.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js.client import JetStreamContext

from coatcheck.errors import MessagingUnavailableError
from coatcheck.messaging.client import REQUEST_TIMEOUT_SECONDS, NatsClient, StoredMessage

ACK_WAIT_SECONDS: Final = 30
"""Only for a reader that hangs: one that dies has a successor that rewinds."""
MAX_ACK_PENDING: Final = 20_000
_NANOSECONDS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ConsumerLag:
    """How far a consumer is behind its stream."""

    pending: int
    """Not delivered yet."""
    unacknowledged: int
    """Delivered, and not known to be done."""

    @property
    def total(self) -> int:
        """Messages whose effect is not known to be there."""
        return self.pending + self.unacknowledged


class OutOfOrderError(MessagingUnavailableError):
    """A batch does not follow on the last one: another reader holds what lies between. Rewind."""


class BatchConsumer:
    """One reader of a durable consumer; there must be no second one at the same time.

    Args:
        client: An identity that may manage consumers of the stream (`core`).
        stream: All of whose messages are read.
        name: Of the consumer.
    """

    def __init__(self, client: NatsClient, *, stream: str, name: str) -> None:
        self._client = client
        self._stream = stream
        self._name = name
        self._subscription: JetStreamContext.PullSubscription | None = None
        self._expected = 0
        self._last: Msg | None = None

    async def rewind(self) -> int:
        """Make the consumer if it is missing, take it back to what is acknowledged, and begin to read there.

        Returns:
            The first sequence that may come.

        Raises:
            StreamMissingError: there is no such stream.
            MessagingUnavailableError: no answer.
            MessagingRefusedError: the consumer exists with other settings, or the server cannot reset it.
        """
        await self.close()
        config = {
            "durable_name": self._name,
            "deliver_policy": "all",
            "ack_policy": "all",
            "ack_wait": ACK_WAIT_SECONDS * _NANOSECONDS,
            "max_ack_pending": MAX_ACK_PENDING,
            "replay_policy": "instant",
        }
        place = f"{self._stream}.{self._name}"
        await self._client.api(f"CONSUMER.CREATE.{place}", {"stream_name": self._stream, "config": config})
        answer = await self._client.api(f"CONSUMER.RESET.{place}")
        raw = (await self._client.connection()).raw
        try:
            self._subscription = await raw.jetstream().pull_subscribe_bind(self._name, self._stream)
        except nats.errors.Error as error:
            raise MessagingUnavailableError(f"cannot read {self._stream}: {error}") from error
        self._expected = answer["ack_floor"]["stream_seq"] + 1
        return self._expected

    async def fetch(self, most: int, *, wait_seconds: float) -> Sequence[StoredMessage]:
        """The next messages, in order and without a gap; none when nothing came within the time.

        Raises:
            OutOfOrderError: they do not follow on the last ones, nor is what lies between gone from the stream.
            MessagingUnavailableError: the connection was lost: rewind.
        """
        assert self._subscription is not None, "rewind first"
        try:
            messages = await self._subscription.fetch(most, timeout=wait_seconds)
        except TimeoutError:
            return []
        except (OSError, nats.errors.Error) as error:
            raise MessagingUnavailableError(f"cannot read {self._stream}: {error!r}") from error
        return await self._checked(messages)

    async def _checked(self, messages: list[Msg]) -> list[StoredMessage]:
        found = [_stored(message, self._stream) for message in messages]
        for message in found:
            if message.sequence > self._expected:
                await self._check_gap(message.sequence)
            elif message.sequence < self._expected:
                raise OutOfOrderError(f"{self._stream}.{message.sequence} came again")
            self._expected = message.sequence + 1
        self._last = messages[-1] if messages else None
        return found

    async def _check_gap(self, sequence: int) -> None:
        """What retention has dropped is gone for everybody; anything else is with another reader."""
        first = (await self._client.api(f"STREAM.INFO.{self._stream}"))["state"]["first_seq"]
        if first < sequence:
            raise OutOfOrderError(f"{self._stream}.{sequence} came, {self._expected} was expected")

    async def acknowledge(self) -> None:
        """All that was fetched is done; returns when the server has confirmed it.

        Raises:
            MessagingUnavailableError: not confirmed; what was fetched may come again.
        """
        if self._last is None:
            return
        try:
            await self._last.ack_sync(timeout=REQUEST_TIMEOUT_SECONDS)
        except (OSError, nats.errors.Error) as error:
            raise MessagingUnavailableError(f"{self._stream}: acknowledgement not confirmed: {error!r}") from error
        self._last = None

    async def close(self) -> None:
        """Stop reading; what was fetched and not acknowledged comes again."""
        subscription, self._subscription, self._last = self._subscription, None, None
        if subscription is not None:
            try:
                async with asyncio.timeout(1):
                    await subscription.unsubscribe()
            except (OSError, ValueError, nats.errors.Error):
                pass  # it ended with its connection


async def consumer_lag(client: NatsClient, *, stream: str, name: str) -> ConsumerLag | None:
    """How far a consumer is behind; `None` when it was never made.

    Raises:
        StreamMissingError: there is no such stream.
        MessagingUnavailableError: no answer.
        NotAuthorizedError: this identity may not ask.
    """
    info: dict[str, Any] | None = await client.consumer_info(stream, name)
    return None if info is None else ConsumerLag(info["num_pending"], info["num_ack_pending"])


def _stored(message: Msg, stream: str) -> StoredMessage:
    metadata = message.metadata
    return StoredMessage(
        stream=stream,
        sequence=metadata.sequence.stream,
        subject=message.subject,
        headers=message.headers or {},
        data=message.data,
        stored_at=metadata.timestamp,
    )
