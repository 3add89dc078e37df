"""One nats-py client from its connect to its close: requests, refusals, and how they end.

Owns what nats-py leaves open. The server reports a permission violation for the connection, not for the request, and
nats-py hands it to a callback while the request runs into its time-out; a lost connection leaves its requests waiting
as well. Here every operation waits for its reply, its refusal and the loss of the connection at once. Neither retries
nor reopens: that is `client.py`.
"""

import asyncio
import contextlib
import itertools
import logging
import re
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from coatcheck.errors import CoatcheckError, MessagingUnavailableError, NobodyListensError, NotAuthorizedError
from coatcheck.messaging.accounts import NatsUser

MessageCallback = Callable[[Msg], Awaitable[None]]

RECONNECT_WAIT_SECONDS: Final = 0.2
PING_SECONDS: Final = 10
"""With two pings outstanding a hung server is noticed after 30 s; the default would take 6 minutes."""
PENDING_BYTES: Final = 64 * 1024**2
"""Outgoing buffer; the default of 2 MiB refuses a deliverable while reconnecting."""
FLUSH_TIMEOUT_SECONDS: Final = 5
"""Without one, a publish on a client that the server has closed hangs for ever."""
RETIRE_SECONDS: Final = 10.0
"""A request that is to be answered on a connection takes 5 s, or is answered by `pending` then."""
CLOSE_TIMEOUT_SECONDS: Final = 2
"""For the last bytes of a connection that is given up."""

_NO_RESPONDERS: Final = "503"
_VIOLATION: Final = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')
_log = logging.getLogger(__name__)


class Connection:
    """A connected client. Closed by the server it stays closed, and tells its owner through `on_closed`."""

    def __init__(self, name: str, on_closed: Callable[[], None]) -> None:
        self.raw = Client()
        """The nats-py client, for what has no method here."""
        self._name = name
        self._on_closed = on_closed
        self._opened = False
        self._up = asyncio.Event()
        self._inbox = ""
        self._tokens = itertools.count()
        self._replies: dict[str, asyncio.Future[Msg]] = {}
        self._waiting: defaultdict[tuple[str, str], dict[asyncio.Future[Any], str]] = defaultdict(dict)

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        user: NatsUser | None,
        ca_file: Path | None = None,
        name: str,
        timeout_seconds: float,
        on_closed: Callable[[], None],
    ) -> Self:
        """Connect once.

        Args:
            url: One, or several separated by commas, of which any will do.
            user: `None` for the anonymous one.
            ca_file: Who must have signed the server's certificate; without it the server decides about TLS.
            name: Shown in the server's list of connections.
            timeout_seconds: For all of it.
            on_closed: Called when the server has closed the connection for good.

        Raises:
            MessagingUnavailableError: nobody answers there within the time, or not with TLS.
            NotAuthorizedError: the server does not accept the identity, or is not the one that it should be.
            CoatcheckError: the file cannot be read.
        """
        connection = cls(name, on_closed)
        try:
            async with asyncio.timeout(timeout_seconds):
                await connection._connect(url, {**_login(user), **_tls(ca_file)})
        except (OSError, nats.errors.Error) as error:  # a TimeoutError is an OSError
            reason = connection.raw.last_error or error
            await connection.close()
            if "authorization violation" in str(reason).lower():
                raise NotAuthorizedError(f"NATS does not accept the identity {name!r}") from error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise NotAuthorizedError(
                    f"the certificate of NATS at {_without_secrets(url)} is not trusted: {reason.verify_message}",
                    hint="NATS_CA names the authority that signed it",
                ) from error
            raise MessagingUnavailableError(
                f"NATS at {_without_secrets(url)} does not answer: {reason}", hint="is nats-server running?"
            ) from error
        except asyncio.CancelledError:
            await connection.close()
            raise
        connection._opened = True
        return connection

    async def _connect(self, url: str, options: dict[str, Any]) -> None:
        # With reconnecting on from the start, nats-py would try a refused identity again for ever.
        await self.raw.connect(
            [part.strip() for part in url.split(",")],
            name=self._name,
            allow_reconnect=False,
            connect_timeout=2,
            reconnect_time_wait=RECONNECT_WAIT_SECONDS,  # type: ignore[arg-type]  # it sleeps for it, a float is fine
            max_reconnect_attempts=-1,
            ping_interval=PING_SECONDS,
            max_outstanding_pings=2,
            pending_size=PENDING_BYTES,
            flush_timeout=FLUSH_TIMEOUT_SECONDS,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            closed_cb=self._on_raw_closed,
            **options,
        )
        self.raw.options["allow_reconnect"] = True
        self._up.set()
        self._inbox = self.raw.new_inbox()
        await self.raw.subscribe(f"{self._inbox}.*", cb=self._on_reply, pending_bytes_limit=0)

    @property
    def usable(self) -> bool:
        """Whether it is connected or reconnecting by itself; nats-py never leaves the closed state again."""
        return not self.raw.is_closed

    async def request(
        self, subject: str, payload: bytes, *, headers: Mapping[str, str] | None = None, timeout_seconds: float
    ) -> Msg:
        """Send a request and wait for its reply.

        Raises:
            NotAuthorizedError: this identity may not publish there; known after one round trip.
            NobodyListensError: nobody serves the subject.
            MessagingUnavailableError: no reply in time, or the connection was lost.
                The request may have been carried out.
        """
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        token = str(next(self._tokens))
        with self._expecting("publish", subject) as reply:
            self._replies[token] = reply
            try:
                await self._send(subject, payload, f"{self._inbox}.{token}", headers, deadline)
                # A second time-out, since nats-py swallows a cancellation that meets it in its flush.
                async with asyncio.timeout_at(deadline):
                    message: Msg = await reply
            except TimeoutError as error:
                raise MessagingUnavailableError(f"no reply on {subject} within {timeout_seconds:g} s") from error
            finally:
                del self._replies[token]
        if message.headers and message.headers.get("Status") == _NO_RESPONDERS:
            raise NobodyListensError(f"nobody answers on {subject}")
        return message

    async def publish(
        self, subject: str, payload: bytes, *, headers: Mapping[str, str] | None = None, timeout_seconds: float
    ) -> None:
        """Send a message and make sure that the server has taken it.

        Raises:
            NotAuthorizedError: this identity may not publish there.
            MessagingUnavailableError: the server did not confirm in time.
        """
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        with self._expecting("publish", subject) as refusal:
            try:
                await self._send(subject, payload, "", headers, deadline)
            except TimeoutError as error:
                raise MessagingUnavailableError(f"{subject}: not sent within {timeout_seconds:g} s") from error
            await self._confirm(refusal)

    async def subscribe(self, subject: str, callback: MessageCallback, *, queue: str = "") -> Subscription:
        """Subscribe and make sure that the server has accepted it.

        Raises:
            NotAuthorizedError: this identity may not subscribe there.
            MessagingUnavailableError: the server did not confirm in time.
            ValueError: the server would not take that for a subject.
        """
        with self._expecting("subscription", subject) as refusal:
            try:
                subscription = await self.raw.subscribe(subject, queue=queue, cb=callback)
            except nats.errors.BadSubjectError as error:
                raise ValueError(f"not a subject: {subject!r}") from error
            except nats.errors.Error as error:
                raise MessagingUnavailableError(f"cannot subscribe to {subject}: {error}") from error
            try:
                await self._confirm(refusal)
            except NotAuthorizedError:
                await subscription.unsubscribe()
                raise
        return subscription

    @contextlib.asynccontextmanager
    async def accepting(self, subjects: Iterable[str]) -> AsyncIterator[None]:
        """For subscriptions that somebody else makes on `raw` within the block; raises as `subscribe` does."""
        with contextlib.ExitStack() as stack:
            refusals = [stack.enter_context(self._expecting("subscription", subject)) for subject in subjects]
            try:
                yield
            except nats.errors.Error as error:
                raise MessagingUnavailableError(f"cannot subscribe: {error}") from error
            await self._confirm(*refusals)

    async def retire(self) -> None:
        """End it once what it was asked has been answered; nothing new should be asked on it. The owner is not told."""
        self._opened = False
        try:
            await asyncio.sleep(RETIRE_SECONDS)
        finally:
            await self.close()

    async def close(self) -> None:
        """End it on purpose; the owner is not told."""
        self._opened = False
        self._fail_all("the NATS client was closed")
        with contextlib.suppress(OSError, nats.errors.Error):
            # After a TLS handshake that failed, nats-py waits for an end that asyncio never tells it.
            async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                await self.raw.close()

    async def _send(
        self, subject: str, payload: bytes, reply: str, headers: Mapping[str, str] | None, deadline: float
    ) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                if not self.raw.is_connected:
                    # Not into nats-py's buffer: what waits there is sent late, after its sender has given up on it.
                    await self._up.wait()
                await self.raw.publish(subject, payload, reply, headers=dict(headers) if headers else None)
        except nats.errors.Error as error:
            if isinstance(error, TimeoutError):
                raise
            raise MessagingUnavailableError(f"{subject}: not sent: {error}") from error

    async def _confirm(self, *refusals: "asyncio.Future[Any]") -> None:
        """A round trip: the server's refusals, if any, come before its pong.

        Twice, since nats-py writes the first ping straight to the socket, before the commands that it has queued.
        """
        try:
            await self.raw.flush(FLUSH_TIMEOUT_SECONDS)
            await self.raw.flush(FLUSH_TIMEOUT_SECONDS)
        except (OSError, nats.errors.Error) as error:
            raise MessagingUnavailableError(f"NATS did not confirm within {FLUSH_TIMEOUT_SECONDS} s") from error
        for refusal in refusals:
            if refusal.done():
                refusal.result()

    @contextlib.contextmanager
    def _expecting(self, operation: str, subject: str) -> "Iterator[asyncio.Future[Any]]":
        """A future that fails when the server refuses `operation` on `subject` or the connection is lost."""
        key = (operation, subject.lower())  # nats-py lower-cases what the server says
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[key][future] = subject
        try:
            yield future
        finally:
            del self._waiting[key][future]
            if not self._waiting[key]:
                del self._waiting[key]
            if future.done() and not future.cancelled():
                future.exception()  # marks it as seen, for a sender that failed otherwise

    def _fail_all(self, reason: str) -> None:
        for future in [future for futures in self._waiting.values() for future in futures]:
            if not future.done():
                future.set_exception(MessagingUnavailableError(reason))

    async def _on_reply(self, message: Msg) -> None:
        reply = self._replies.get(message.subject[len(self._inbox) + 1 :])
        if reply is not None and not reply.done():
            reply.set_result(message)

    async def _on_error(self, error: Exception) -> None:
        violation = _VIOLATION.search(str(error))
        if violation is None:
            _log.info("NATS, %s: %s", self._name, error or type(error).__name__)
            return
        operation, subject = violation.groups()
        verb = "publish" if operation == "publish" else "subscribe"
        waiting = self._waiting.get((operation, subject), {})
        if not waiting:
            _log.warning("NATS, %s: %s", self._name, error)
        for future, spelled in waiting.items():
            if not future.done():
                future.set_exception(NotAuthorizedError(f"{self._name} may not {verb} on {spelled}"))

    async def _on_disconnected(self) -> None:
        self._up.clear()
        self._fail_all(f"the connection to NATS was lost: {self.raw.last_error or 'no reason given'}")

    async def _on_reconnected(self) -> None:
        self._up.set()

    async def _on_raw_closed(self) -> None:
        self._up.set()  # whoever waits for a reconnect finds the client closed
        self._fail_all("NATS closed the connection")
        if self._opened:
            _log.warning("NATS, %s: closed by the server: %s", self._name, self.raw.last_error)
            self._on_closed()


def _login(user: NatsUser | None) -> dict[str, Any]:
    if user is None:
        return {}
    login: dict[str, Any] = {"inbox_prefix": user.inbox_prefix.encode()}
    if user.nkey_file is not None:
        login["nkeys_seed"] = str(user.nkey_file)
    if user.password_file is not None:
        login |= {"user": user.user, "password": user.password_file.read_text().strip()}
    return login


def _tls(ca_file: Path | None) -> dict[str, Any]:
    """The handshake comes before anything else is said.

    nats-py would otherwise believe a server that says that it needs no TLS, and sign that server's challenge: whoever
    sits in between could hand on the signature and be us.
    """
    if ca_file is None:
        return {}
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise CoatcheckError(
            f"{ca_file} cannot be read as certificates: {error}", hint="NATS_CA names a file in PEM form"
        ) from error
    logging.getLogger("asyncio").addFilter(_says_something)
    return {"tls": context, "tls_handshake_first": True}


def _says_something(record: logging.LogRecord) -> bool:
    """nats-py's stream has asyncio warn whenever a TLS connection ends, which a person at a terminal would read."""
    return "eof_received() has no effect when using ssl" not in str(record.msg)


def _without_secrets(urls: str) -> str:
    parts = [urlsplit(url.strip()) for url in urls.split(",")]
    return ", ".join(f"{part.hostname}:{part.port}" if part.hostname else "an unreadable URL" for part in parts)
