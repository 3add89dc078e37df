"""Key-value buckets: put with compare and set, get through the leader, follow without a consumer.

nats-py's own `KeyValue` is not used: it watches through consumers, which an identity outside the hub's account may not
have, it may read from a replica that lags (`allow_direct`), and a put of it whose acknowledgement was lost looks like
somebody else's.
"""

import contextlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Final

from nats.aio.msg import Msg

from coatcheck.errors import DeliverableNotFoundError, KeyChangedError, MessagingRefusedError
from coatcheck.messaging.client import ClientSubscription, NatsClient, StoredMessage
from schemas.deliverable import HEADER_MESSAGE_ID
from schemas.streams import kv_changes, kv_stream_name, kv_subject

OnChange = Callable[[str, bytes, int], Awaitable[None]]
"""Key, value (empty when it was deleted), revision."""

HEADER_EXPECTED_REVISION: Final = "Nats-Expected-Last-Subject-Sequence"
WRONG_REVISION: Final = 10071
"""JetStream's `err_code` for a subject that is not at the expected sequence."""
_HEADER_OPERATION: Final = "KV-Operation"
_HEADER_SEQUENCE: Final = "Nats-Sequence"


async def kv_get(client: NatsClient, bucket: str, key: str) -> tuple[bytes, int] | None:
    """The value of a key and its revision; `None` when it was never put or has been deleted.

    Raises:
        StreamMissingError: there is no such bucket.
        NotAuthorizedError: this identity may not read it.
        MessagingUnavailableError: no answer.
    """
    message = await _last(client, bucket, key)
    return None if message is None or _HEADER_OPERATION in message.headers else (message.data, message.sequence)


async def kv_put(
    client: NatsClient, bucket: str, key: str, data: bytes, *, expected_revision: int | None = None
) -> int:
    """Put a value and return its revision; repeated attempts of one call store it once.

    Args:
        client: An identity that may put this key.
        bucket: Its name, without `KV_`.
        key: Tokens of `[a-zA-Z0-9_=-]`, joined by dots.
        data: At most 64 KiB in `agent_state`.
        expected_revision: Put only when the key is at this revision (as `kv_get` told), 0 for a key that is not
            there; `None` puts whatever is there.

    Raises:
        KeyChangedError: the key is not at `expected_revision`; nothing was put.
        DeliverableTooLargeError: the bucket takes no value of that size.
        NotAuthorizedError: this identity may not put that key.
        MessagingUnavailableError: indeterminate; read the key to know.
        MessagingRefusedError: the bucket is full.
    """
    try:
        return await _put(client, bucket, key, data, expected_revision)
    except KeyChangedError:
        # A deleted key is not there, but its marker has a revision.
        marker = await _last(client, bucket, key) if expected_revision == 0 else None
        if marker is None or _HEADER_OPERATION not in marker.headers:
            raise
        return await _put(client, bucket, key, data, marker.sequence)


async def kv_follow(client: NatsClient, bucket: str, on_change: OnChange, *, key: str = ">") -> ClientSubscription:
    """Call `on_change` for every change from now on, also on later connections, until `client.unsubscribe`.

    Changes during an outage are not repeated, and a change may arrive after `kv_get` has seen a later one: compare
    revisions, and read again what must not be stale.

    Args:
        client: The gateway, the observer or core.
        bucket: Its name, without `KV_`.
        on_change: Called for one change at a time.
        key: One key, or a pattern such as `model.>`.

    Raises:
        NotAuthorizedError: this identity may not follow it.
        MessagingUnavailableError: the server did not confirm it.
    """
    prefix = len(kv_subject(bucket, ""))

    async def hear(message: Msg) -> None:
        headers = message.headers or {}
        subject, revision = headers.get("Nats-Subject", ""), headers.get(_HEADER_SEQUENCE, "0")
        await on_change(subject[prefix:], message.data, int(revision))

    return await client.subscribe(kv_changes(bucket, key), hear)


async def publish_at(client: NatsClient, subject: str, data: bytes, *, stream: str, revision: int) -> int:
    """Store a message if the last one of its subject is `revision` (0: there is none), and return its sequence.

    The server looks at the revision before the message id, so an attempt whose acknowledgement was lost makes the next
    one fail for the revision that it has made itself. Whose message followed on `revision` tells the two cases apart.

    Raises:
        KeyChangedError: another message followed on `revision`; nothing was stored.
        Exception: as `NatsClient.publish` raises.
    """
    identity = secrets.token_hex(16)
    headers = {HEADER_EXPECTED_REVISION: str(revision)}
    try:
        return (await client.publish(subject, data, message_id=identity, stream=stream, headers=headers)).sequence
    except MessagingRefusedError as error:
        if error.err_code != WRONG_REVISION:
            raise
        with contextlib.suppress(DeliverableNotFoundError):
            follower = await client.fetch_next(stream, subject, revision + 1)
            if follower.headers.get(HEADER_MESSAGE_ID) == identity:
                return follower.sequence
        raise KeyChangedError(f"{subject} is not at revision {revision} any more") from error


async def _put(client: NatsClient, bucket: str, key: str, data: bytes, expected_revision: int | None) -> int:
    subject, stream = kv_subject(bucket, key), kv_stream_name(bucket)
    if expected_revision is not None:
        return await publish_at(client, subject, data, stream=stream, revision=expected_revision)
    return (await client.publish(subject, data, message_id=secrets.token_hex(16), stream=stream)).sequence


async def _last(client: NatsClient, bucket: str, key: str) -> StoredMessage | None:
    try:
        return await client.fetch_by_subject(kv_stream_name(bucket), kv_subject(bucket, key))
    except DeliverableNotFoundError:
        return None
