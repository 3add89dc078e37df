"""`NatsClient`: publish, fetch, request and subscribe, on a connection that is rebuilt whenever it ends.

One message whose payload and headers exceed the server's limit, a subject of 5 KB or an expired identity close a
nats-py client for ever. So nothing here outlives a connection: whoever is in the middle of something gets a retryable
`MessagingUnavailableError` at worst, the client is rebuilt, and its subscriptions come back.

A publish whose acknowledgement does not come is *indeterminate*: it may be stored (8 of 8 were, after an outage). It is
repeated under the same message id, which the server stores once.
"""

import asyncio
import base64
import contextlib
import itertools
import logging
import random
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self

import nats.errors
from nats.aio.msg import Msg
from pydantic_core import from_json, to_json

from coatcheck.errors import (
    CoatcheckError,
    DeliverableNotFoundError,
    DeliverableTooLargeError,
    MessagingRefusedError,
    MessagingUnavailableError,
    StreamMissingError,
)
from coatcheck.messaging.accounts import CORE, OWN_JS_PREFIX, NatsUser
from coatcheck.messaging.connection import Connection, MessageCallback
from coatcheck.messaging.tracing import MessageTracing
from schemas.deliverable import HEADER_MESSAGE_ID
from schemas.streams import HEADER_ROOM_BYTES

REQUEST_TIMEOUT_SECONDS: Final = 5.0
CONNECT_TIMEOUT_SECONDS: Final = 5.0
PUBLISH_PATIENCE_SECONDS: Final = 30.0
"""Outlasts the election of a stream leader after a kill (5.3 to 7.8 s) and a restart of the server."""
MAX_SUBJECT_LENGTH: Final = 1024
"""The server closes clients whose control line (subject, reply, sizes) exceeds 4 KB."""

KEY_LOOK_SECONDS: Final = 2.0
"""Between two looks at the key's file, which cost 10 µs."""

_SUBJECT: Final = re.compile(rf"[!-~]{{1,{MAX_SUBJECT_LENGTH}}}")

HEADER_EXPECTED_STREAM: Final = "Nats-Expected-Stream"
HEADER_ERROR_CODE: Final = "Nats-Service-Error-Code"
HEADER_ERROR: Final = "Nats-Service-Error"

_NO_MESSAGE: Final = 10037
_NO_STREAM: Final = 10059
_NO_CONSUMER: Final = 10014
_MESSAGE_TOO_LARGE: Final = 10054
STREAM_FULL: Final = 10077
"""A stream that discards new messages has reached a limit. JetStream calls that 503 as if it were away; it is not."""
_BACKOFF_FIRST_SECONDS: Final = 0.1
_BACKOFF_LONGEST_SECONDS: Final = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PublishAck:
    """The stream's acknowledgement: the message is on disk under this sequence."""

    stream: str
    sequence: int
    duplicate: bool
    """The id was known. That the first message is still there does not follow: retention may have dropped it."""


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One message as a stream holds it."""

    stream: str
    sequence: int
    subject: str
    headers: Mapping[str, str]
    data: bytes
    stored_at: datetime
    """By the server's clock."""


@dataclass(eq=False)
class ClientSubscription:
    """A subscription that is made again on every new connection."""

    subject: str
    queue: str
    callback: MessageCallback
    raw: Any = field(default=None, repr=False)


class NatsClient:
    """The low-level client of one identity; an async context manager.

    Args:
        url: Of the server, or several separated by commas.
        user: The identity; `None` for one unauthenticated account that all share.
        ca_file: Of the authority that signed the servers' certificates; with it nothing is said without TLS.
        name: Shown in the server's list of connections.
        publish_patience_seconds: How long a publish is repeated before it is reported as indeterminate.
        tracing: What is told of messages, and in their headers; nothing when absent.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        user: NatsUser | None = None,
        ca_file: Path | None = None,
        publish_patience_seconds: float = PUBLISH_PATIENCE_SECONDS,
        tracing: MessageTracing | None = None,
    ) -> None:
        self._url = url
        self._ca_file = ca_file
        self._user = user
        self._name = name
        self._patience = publish_patience_seconds
        self.tracing = tracing or MessageTracing()
        self._js_prefix = user.js_prefix if user else OWN_JS_PREFIX
        self._connection: Connection | None = None
        self._closed = False
        self._rebuilding: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._subscriptions: list[ClientSubscription] = []
        self._hooks: list[Callable[[Connection], Awaitable[None]]] = []

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            MessagingUnavailableError: no server answers within 5 s.
            NotAuthorizedError: the server does not accept the identity.
        """
        state = self._key_state()
        self._connection = await self._open()
        if state is not None:
            self._following = asyncio.create_task(self._follow_key(state), name=f"nats-key-{self._name}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close for good; what is in flight fails with `MessagingUnavailableError`."""
        self._closed = True
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        if self._rebuilding is not None:
            self._rebuilding.cancel()
            await asyncio.gather(self._rebuilding, return_exceptions=True)
        if self._connection is not None:
            await self._connection.close()

    @property
    def identity(self) -> str:
        """Who this client is; without accounts, everybody is the core worker."""
        return self._user.name if self._user else CORE

    @property
    def is_connected(self) -> bool:
        """Whether a server is at the other end just now, as far as is known."""
        return self._connection is not None and self._connection.raw.is_connected

    @property
    def user(self) -> NatsUser | None:
        """The identity itself; `None` where all share one account."""
        return self._user

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        message_id: str,
        stream: str,
        headers: Mapping[str, str] | None = None,
    ) -> PublishAck:
        """Store a message on a stream; idempotent by `message_id` within the stream's duplicate window.

        Args:
            subject: A literal subject of the stream.
            payload: The body.
            message_id: Printable ASCII; the same for every attempt at the same message.
            stream: The stream that must take it.
            headers: Further headers, printable ASCII; not changed.

        Raises:
            DeliverableTooLargeError: over the server's limit minus the room for headers; nothing was sent.
            NotAuthorizedError: this identity may not publish there.
            MessagingUnavailableError: no acknowledgement within the patience. Indeterminate: the message may be
                stored, so try again with the same id.
            MessagingRefusedError: the stream refused the message.
            ValueError: the subject or a header cannot be sent.
        """
        told = self.tracing.headers()
        sent = {**told, **(headers or {}), HEADER_MESSAGE_ID: message_id, HEADER_EXPECTED_STREAM: stream}
        with self.tracing.sending(subject, message_id):
            return await self._publish(subject, payload, sent)

    async def _publish(self, subject: str, payload: bytes, sent: Mapping[str, str]) -> PublishAck:
        give_up = asyncio.get_running_loop().time() + self._patience
        for pause in _pauses():
            try:
                return await self._publish_once(subject, payload, sent, give_up)
            except MessagingUnavailableError as error:
                if asyncio.get_running_loop().time() + pause >= give_up:
                    raise MessagingUnavailableError(
                        f"{subject}: no acknowledgement for {self._patience:g} s, so the message may or may not be "
                        f"stored ({error})",
                        hint="try again with the same message id: it is stored once",
                    ) from error
                await asyncio.sleep(pause)
        raise AssertionError("the pauses never end")

    async def _publish_once(
        self, subject: str, payload: bytes, headers: Mapping[str, str], give_up: float
    ) -> PublishAck:
        left = give_up - asyncio.get_running_loop().time()
        connection = await self._live(min(left, REQUEST_TIMEOUT_SECONDS))
        self._check(connection, subject, payload, headers)
        reply = await connection.request(
            subject, payload, headers=headers, timeout_seconds=min(left, REQUEST_TIMEOUT_SECONDS)
        )
        answer = _answer(reply.data, subject)
        return PublishAck(answer["stream"], answer["seq"], answer.get("duplicate", False))

    async def send(self, subject: str, payload: bytes, *, headers: Mapping[str, str] | None = None) -> None:
        """Publish to whoever listens; nothing is stored unless a stream does.

        Raises:
            NotAuthorizedError: this identity may not publish there.
            MessagingUnavailableError: the server did not confirm that it has taken it.
            DeliverableTooLargeError: over the server's limit minus the room for headers.
        """
        connection = await self._live()
        sent = {**self.tracing.headers(), **(headers or {})}
        self._check(connection, subject, payload, sent)
        with self.tracing.sending(subject):
            await connection.publish(subject, payload, headers=sent, timeout_seconds=REQUEST_TIMEOUT_SECONDS)

    async def request(self, subject: str, payload: bytes, *, timeout: float = REQUEST_TIMEOUT_SECONDS) -> bytes:  # noqa: ASYNC109  also the time to reconnect
        """Ask a service and return its reply.

        Raises:
            MessagingUnavailableError: nobody serves the subject (known at once), no reply within `timeout` seconds,
                or the service answered with an error.
            NotAuthorizedError: this identity may not ask there.
            DeliverableTooLargeError: over the server's limit minus the room for headers.
        """
        connection = await self._live(timeout)
        headers = self.tracing.headers()
        self._check(connection, subject, payload, headers)
        with self.tracing.sending(subject):
            reply = await connection.request(subject, payload, headers=headers, timeout_seconds=timeout)
        if reply.headers and HEADER_ERROR_CODE in reply.headers:
            raise MessagingUnavailableError(f"{subject} answered with an error: {reply.headers.get(HEADER_ERROR)}")
        return bytes(reply.data)

    async def subscribe(self, subject: str, callback: MessageCallback, *, queue: str = "") -> ClientSubscription:
        """Call `callback` for every message, one at a time, also on later connections, until `unsubscribe`.

        Raises:
            NotAuthorizedError: this identity may not subscribe there.
            MessagingUnavailableError: the server did not confirm it.
        """
        subscription = ClientSubscription(subject, queue, callback)
        await self._subscribe_on(await self._live(), subscription)
        self._subscriptions.append(subscription)
        return subscription

    async def unsubscribe(self, subscription: ClientSubscription) -> None:
        """End a subscription."""
        self._subscriptions.remove(subscription)
        if self._connection is not None and self._connection.usable:
            await subscription.raw.unsubscribe()

    async def on_connect(self, hook: Callable[[Connection], Awaitable[None]]) -> None:
        """Run `hook` on the present connection and on every later one, before anybody else uses it."""
        await hook(await self._live())
        self._hooks.append(hook)

    def remove_hook(self, hook: Callable[[Connection], Awaitable[None]]) -> None:
        """Take an `on_connect` hook back."""
        self._hooks.remove(hook)

    async def fetch_by_sequence(self, stream: str, sequence: int) -> StoredMessage:
        """Read one message through the stream's leader: a direct get may answer from a replica that lags behind.

        Raises:
            DeliverableNotFoundError: no message has that sequence (any more).
            StreamMissingError: there is no such stream.
            NotAuthorizedError: this identity may not read it.
            MessagingUnavailableError: no answer.
        """
        return await self._get(stream, {"seq": sequence})

    async def fetch_by_subject(self, stream: str, subject: str) -> StoredMessage:
        """Read the last message of a literal subject; raises as `fetch_by_sequence` does."""
        return await self._get(stream, {"last_by_subj": subject})

    async def fetch_next(self, stream: str, subject: str, from_sequence: int) -> StoredMessage:
        """Read the first message of a subject, or pattern, at or after a sequence; raises as `fetch_by_sequence`."""
        return await self._get(stream, {"seq": from_sequence, "next_by_subj": subject})

    async def _get(self, stream: str, query: dict[str, Any]) -> StoredMessage:
        with self.tracing.receiving(stream):
            message = (await self.api(f"STREAM.MSG.GET.{stream}", query))["message"]
        return StoredMessage(
            stream=stream,
            sequence=message["seq"],
            subject=message["subject"],
            headers=_headers(base64.b64decode(message.get("hdrs", ""))),
            data=base64.b64decode(message.get("data", "")),
            stored_at=datetime.fromisoformat(message["time"]),
        )

    async def api(
        self, verb: str, body: Mapping[str, Any] | None = None, *, timeout_seconds: float = REQUEST_TIMEOUT_SECONDS
    ) -> dict[str, Any]:
        """Call the JetStream API, such as `STREAM.INFO.<name>`, under this identity's prefix.

        Raises:
            NotAuthorizedError: this identity may not call it.
            MessagingUnavailableError: no answer, or JetStream is not ready.
            StreamMissingError: there is no such stream.
            DeliverableNotFoundError: there is no such message.
            MessagingRefusedError: any other error, with JetStream's code.
        """
        subject = f"{self._js_prefix}.{verb}"
        connection = await self._live(timeout_seconds)
        reply = await connection.request(subject, to_json(body) if body else b"", timeout_seconds=timeout_seconds)
        return _answer(reply.data, verb)

    async def consumer_info(self, stream: str, name: str) -> dict[str, Any] | None:
        """JetStream's state of a consumer, `None` when there is none; raises as `api` does."""
        try:
            return await self.api(f"CONSUMER.INFO.{stream}.{name}")
        except MessagingRefusedError as error:
            if error.err_code != _NO_CONSUMER:
                raise
            return None

    async def connection(self) -> Connection:
        """The present connection, for what has no method here; it may end at any time.

        Raises:
            MessagingUnavailableError: there is none just now.
        """
        return await self._live()

    @property
    def js_prefix(self) -> str:
        """Where this identity finds the JetStream API."""
        return self._js_prefix

    async def max_message_bytes(self) -> int:
        """The largest payload that this client sends: the server's `max_payload` minus the room for headers."""
        return (await self._live()).raw.max_payload - HEADER_ROOM_BYTES

    def _check(self, connection: Connection, subject: str, payload: bytes, headers: Mapping[str, str]) -> None:
        """Refuse here what would make the server close the connection under everybody else."""
        if not _SUBJECT.fullmatch(subject):
            raise ValueError(
                f"a subject is 1 to {MAX_SUBJECT_LENGTH} printable ASCII characters without spaces: {subject[:80]!r}"
            )
        if any(token in {"", "*", ">"} for token in subject.split(".")):
            raise ValueError(f"not a literal subject: {subject!r}")
        for key, value in headers.items():
            if not (value.isascii() and value.isprintable() and value == value.strip()):
                raise ValueError(f"header {key} must be printable ASCII without spaces around it: {value[:80]!r}")
        if (size := sum(len(key) + len(value) + 4 for key, value in headers.items())) > HEADER_ROOM_BYTES - 16:
            raise ValueError(f"the headers take {size:,} bytes")
        limit = connection.raw.max_payload - HEADER_ROOM_BYTES
        if len(payload) > limit:
            raise DeliverableTooLargeError(
                f"{subject}: {len(payload):,} bytes, at most {limit:,} fit into a message "
                f"(the server's max_payload is {connection.raw.max_payload:,})"
            )

    async def _live(self, timeout_seconds: float = REQUEST_TIMEOUT_SECONDS) -> Connection:
        """The present connection, or the next one if this one has ended."""
        if self._closed or self._connection is None:
            raise MessagingUnavailableError(f"the NATS client {self._name!r} is not open")
        if not self._connection.usable:
            # Waits without being cancelled along with the rebuilding when somebody closes this client.
            await asyncio.wait({self._rebuild()}, timeout=timeout_seconds)
            if not self._connection.usable:
                raise MessagingUnavailableError(f"NATS is away; {self._name!r} is being reconnected")
        return self._connection

    async def _open(self) -> Connection:
        """A new connection with everything that the last one had."""
        connection = await Connection.open(
            self._url,
            user=self._user,
            ca_file=self._ca_file,
            name=self._name,
            timeout_seconds=CONNECT_TIMEOUT_SECONDS,
            on_closed=lambda: None if self._closed else self._on_closed(),
        )
        try:
            for subscription in list(self._subscriptions):
                await self._subscribe_on(connection, subscription)
            for hook in list(self._hooks):
                await hook(connection)
        except BaseException:
            await connection.close()
            raise
        return connection

    def _on_closed(self) -> None:
        if self._connection is not None and not self._connection.usable:
            self._rebuild()

    def _rebuild(self) -> asyncio.Task[None]:
        if self._rebuilding is None or self._rebuilding.done():
            self._rebuilding = asyncio.create_task(self._reopen(), name=f"nats-rebuild-{self._name}")
        return self._rebuilding

    async def _reopen(self) -> None:
        for pause in _pauses():
            try:
                self._connection = await self._open()
            except Exception as error:  # noqa: BLE001  whatever it is, a worker that stays without NATS is worse
                _log.warning("NATS, %s: cannot reconnect yet: %r", self._name, error)
                await asyncio.sleep(pause)
            else:
                _log.info("NATS, %s: connected again", self._name)
                return

    async def _follow_key(self, state: object) -> None:
        """Log in anew when the key's file is another one, and leave the old connection once it is done."""
        while True:
            await asyncio.sleep(KEY_LOOK_SECONDS)
            found = self._key_state()
            if found in {state, None}:
                continue
            try:
                connection = await self._open()
            except (CoatcheckError, ValueError) as error:  # the server may not know it yet
                _log.warning("NATS, %s: cannot log in with the new key yet: %s", self._name, error)
                continue
            state, old, self._connection = found, self._connection, connection
            _log.info("NATS, %s: logged in with the new key", self._name)
            if old is not None:
                await old.retire()

    def _key_state(self) -> object:
        """Another one when the key is another one; `None` without a key, or while its file is away."""
        file = self._user and (self._user.nkey_file or self._user.password_file)
        try:
            found = file.stat() if file else None
        except OSError:
            return None
        return found and (found.st_ino, found.st_mtime_ns, found.st_size)

    async def _subscribe_on(self, connection: Connection, subscription: ClientSubscription) -> None:
        async def process(message: Msg) -> None:
            with self.tracing.processing(message.subject, message.headers):
                await subscription.callback(message)

        earlier = subscription.raw
        subscription.raw = await connection.subscribe(subscription.subject, process, queue=subscription.queue)
        if earlier is not None:
            with contextlib.suppress(nats.errors.Error):  # as a rule it has ended with its connection
                await earlier.unsubscribe()


def _pauses() -> Iterator[float]:
    """Endless back-off, 0.1 s doubling to 2 s, each jittered by half so that many clients do not come back at once."""
    for attempt in itertools.count():
        longest = min(_BACKOFF_FIRST_SECONDS * 2 ** min(attempt, 10), _BACKOFF_LONGEST_SECONDS)
        yield longest * random.uniform(0.5, 1)  # noqa: S311  chance, not a secret


def _answer(data: bytes, what: str) -> dict[str, Any]:
    """Decode an answer of JetStream and raise the error that it may be."""
    answer: dict[str, Any] = from_json(data)
    if (error := answer.get("error")) is None:
        return answer
    code, err_code = error.get("code"), error.get("err_code", 0)
    text = f"{what}: {error.get('description', 'refused')} ({err_code})"
    if err_code == _NO_MESSAGE:
        raise DeliverableNotFoundError(text)
    if err_code == _NO_STREAM:
        raise StreamMissingError(text)
    if err_code == _MESSAGE_TOO_LARGE:
        raise DeliverableTooLargeError(text)
    full = err_code == STREAM_FULL and "maximum" in text  # the same number without a limit is a failing disk
    if code == 503 and not full:  # noqa: PLR2004  HTTP's "service unavailable"
        raise MessagingUnavailableError(text)
    raise MessagingRefusedError(text, err_code=err_code)


def _headers(block: bytes) -> dict[str, str]:
    """Parse `NATS/1.0` CRLF `Key: value` CRLF …; we only ever write ASCII."""
    lines = block.decode("utf-8", "replace").split("\r\n")[1:]
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines) if key}
