"""Serve request-reply through the NATS micro-services framework, so that `nats micro` tools discover it.

nats-py awaits the handlers of a subscription one after the other, which would let one model call hold up all others:
so each request becomes a task, in bounded number, and the subscription waits when the bound is reached. A handler's
error becomes an error reply without its text, which may hold what the caller must not see.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Final

import nats.errors
from nats.micro import add_service
from nats.micro.request import Request
from nats.micro.service import Service

from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.connection import Connection
from coatcheck.messaging.tracing import MessageTracing
from schemas.streams import HEADER_ROOM_BYTES

Handler = Callable[[bytes], Awaitable[bytes]]
"""The request's payload → the reply's."""

MAX_CONCURRENT: Final = 1000
"""Requests in hand at once; they wait for providers, they do not burn CPU."""
DRAIN_SECONDS: Final = 30.0
"""How long requests in hand may take to finish when the service stops."""

HEADER_PROBE: Final = "Coatcheck-Probe"
"""On a request that only asks whether it arrives (`coatcheck doctor authz`): the reply is empty, no work is done."""

_log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def serve(
    client: NatsClient,
    *,
    name: str,
    version: str,
    endpoints: Mapping[str, Handler],
    metadata: Mapping[str, str] | None = None,
    max_concurrent: int = MAX_CONCURRENT,
    drain_seconds: float = DRAIN_SECONDS,
) -> AsyncIterator[None]:
    """Answer requests on `endpoints` until the block ends, also on later connections of the client.

    On exit no new request is taken and those in hand are finished. Several servers of one name share the requests.

    Args:
        client: The identity that serves.
        name: Of the service in discovery.
        version: A semantic version.
        endpoints: Literal subject → handler.
        metadata: What discovery says of it besides.
        max_concurrent: Requests in hand at once.
        drain_seconds: For requests in hand at the end; whoever takes longer is cancelled and gets no reply.

    Raises:
        NotAuthorizedError: this identity may not serve there.
        MessagingUnavailableError: the server did not confirm.
    """
    server = _Server(name, version, endpoints, max_concurrent, client.tracing, metadata=metadata or {})
    await client.on_connect(server.start)
    try:
        yield
    finally:
        client.remove_hook(server.start)
        await server.stop(drain_seconds)


class _Server:
    """The service on the present connection, and the requests in hand."""

    def __init__(
        self,
        name: str,
        version: str,
        endpoints: Mapping[str, Handler],
        max_concurrent: int,
        tracing: MessageTracing,
        *,
        metadata: Mapping[str, str],
    ) -> None:
        self._name = name
        self._version = version
        self._endpoints = endpoints
        self._metadata = dict(metadata)
        self._slots = asyncio.Semaphore(max_concurrent)
        self._tracing = tracing
        self._tasks: set[asyncio.Task[None]] = set()
        self._service: Service | None = None

    async def start(self, connection: Connection) -> None:
        """Register every endpoint; the service of an earlier connection has ended with it, or ends now."""
        earlier = self._service
        async with connection.accepting(self._endpoints):
            service = await add_service(connection.raw, name=self._name, version=self._version, metadata=self._metadata)
            for subject, handler in self._endpoints.items():
                await service.add_endpoint(
                    name=subject.replace(".", "-"), subject=subject, handler=partial(self._take, connection, handler)
                )
        self._service = service
        if earlier is not None:
            with contextlib.suppress(nats.errors.Error):
                await earlier.stop()

    async def stop(self, drain_seconds: float) -> None:
        """Take no more requests and finish those in hand."""
        if self._service is not None:
            with contextlib.suppress(nats.errors.Error):  # the connection may have ended: then nothing arrives either
                await self._service.stop()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=drain_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _take(self, connection: Connection, handler: Handler, request: Request) -> None:
        await self._slots.acquire()
        task = asyncio.create_task(self._answer(connection, handler, request))
        self._tasks.add(task)
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.release()

    async def _answer(self, connection: Connection, handler: Handler, request: Request) -> None:
        try:
            try:
                if HEADER_PROBE in (request.headers or {}):
                    with contextlib.suppress(nats.errors.Error):  # nobody waits for an answer to some of them
                        await request.respond(b"")
                    return
                with self._tracing.processing(request.subject, request.headers):
                    reply = _fitting(await handler(request.data), connection)
            except Exception as error:  # noqa: BLE001  a caller is waiting for a reply, whatever went wrong
                _log.warning("%s: request failed", request.subject, exc_info=error)
                await request.respond_error("500", type(error).__name__)
            else:
                await request.respond(reply)
        except (OSError, nats.errors.Error) as error:
            _log.warning("%s: no reply could be sent, the caller has to ask again: %s", request.subject, error)


def _fitting(reply: bytes, connection: Connection) -> bytes:
    """Refuse what would make the server close the connection under everybody else."""
    limit = connection.raw.max_payload - HEADER_ROOM_BYTES
    if len(reply) > limit:
        raise ValueError(f"a reply of {len(reply):,} bytes, at most {limit:,} fit into a message")
    return reply
