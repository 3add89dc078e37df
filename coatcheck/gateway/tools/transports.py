"""How bytes come from an MCP server, with bounds that the SDK's own transports lack.

The SDK reads a line of standard output, or a JSON body, of any length into memory, which a server that answers with
50 MB would make the trouble of everybody else in the process. Here it is cut off: the connection ends, the call fails.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio
import httpx2
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

INHERITED: Final = ("PATH", "HOME", "LANG", "TERM")
"""Variables that every server may see."""
STOP_SECONDS: Final = 2.0
"""For a server to end after its input is closed, and again after SIGTERM."""
_SHOWN: Final = 80
_CHUNK_BYTES: Final = 64 * 1024

Incoming = SessionMessage | Exception
Streams = tuple[MemoryObjectReceiveStream[Incoming], MemoryObjectSendStream[SessionMessage]]


@dataclass
class Trouble:
    """What a transport has noticed and the protocol has no word for."""

    reason: str = ""


class AnswerTooLongError(Exception):
    """The server sent more than it may."""


@asynccontextmanager
async def stdio(
    command: Sequence[str], *, environment: Mapping[str, str], max_line_bytes: int, trouble: Trouble
) -> AsyncIterator[Streams]:
    """Run a server and speak with it over its standard input and output; it ends with the block.

    When this process is killed, the server finds its input closed, at which servers end.

    Raises:
        OSError: the program cannot be started.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=dict(environment),
        limit=max_line_bytes,
        start_new_session=True,
    )
    to_session, incoming = anyio.create_memory_object_stream[Incoming](0)
    outgoing, from_session = anyio.create_memory_object_stream[SessionMessage](0)
    try:
        async with anyio.create_task_group() as pumps:
            pumps.start_soon(_read, process, to_session, trouble)
            pumps.start_soon(_write, process, from_session)
            try:
                yield incoming, outgoing
            finally:
                pumps.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await _stop(process)
        for stream in (to_session, incoming, outgoing, from_session):
            stream.close()


async def _read(
    process: asyncio.subprocess.Process, to_session: MemoryObjectSendStream[Incoming], trouble: Trouble
) -> None:
    assert process.stdout is not None
    async with to_session:
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:
                trouble.reason = "it sent more than a result may have"
                return
            if not line:
                trouble.reason = trouble.reason or "it ended"
                return
            try:
                message: Incoming = SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
                trouble.reason = ""
            except ValueError as error:
                trouble.reason = f"it sent what is no message of the protocol: {line[:_SHOWN]!r}"
                message = error
            with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
                await to_session.send(message)


async def _write(process: asyncio.subprocess.Process, from_session: MemoryObjectReceiveStream[SessionMessage]) -> None:
    assert process.stdin is not None
    async with from_session:
        async for item in from_session:
            process.stdin.write(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
            with contextlib.suppress(OSError):  # it has ended: its output has, too, which the session is told
                await process.stdin.drain()


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Close its input, then end it and what it has started."""
    assert process.stdin is not None
    process.stdin.close()
    draining = asyncio.create_task(_drain(process))
    try:
        await _end(process)
    finally:
        draining.cancel()
        await asyncio.gather(draining, return_exceptions=True)


async def _drain(process: asyncio.subprocess.Process) -> None:
    """A server that is writing does not see that its input has ended, nor is one over before its output is read."""
    assert process.stdout is not None
    while await process.stdout.read(_CHUNK_BYTES):
        pass


async def _end(process: asyncio.subprocess.Process) -> None:
    for escalation in (None, signal.SIGTERM, signal.SIGKILL):
        if escalation is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, escalation)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
                return


@asynccontextmanager
async def http(
    url: str, *, headers: Mapping[str, str], timeout_seconds: float, max_body_bytes: int, trouble: Trouble
) -> AsyncIterator[Streams]:
    """Speak with a server over streamable HTTP."""
    transport = _Bounded(httpx2.AsyncHTTPTransport(), max_body_bytes, trouble)
    timeout = httpx2.Timeout(timeout_seconds, read=None)  # streams stay open; each call has a time of its own
    async with (
        httpx2.AsyncClient(transport=transport, headers=dict(headers), timeout=timeout) as client,
        streamable_http_client(url, http_client=client, max_sse_event_size=max_body_bytes) as streams,
    ):
        yield streams  # type: ignore[misc]  # the SDK's protocols of the same streams


class _Bounded(httpx2.AsyncBaseTransport):
    """Ends a JSON body that is too long; event streams are bounded by the SDK, event by event."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, max_bytes: int, trouble: Trouble) -> None:
        self._inner = inner
        self._max_bytes = max_bytes
        self._trouble = trouble

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _BoundedStream(response.stream, self._max_bytes, self._trouble)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream, max_bytes: int, trouble: Trouble) -> None:
        self._inner = inner
        self._left = max_bytes
        self._trouble = trouble

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            self._left -= len(chunk)
            if self._left < 0:
                self._trouble.reason = "it sent more than a result may have"
                raise AnswerTooLongError
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()
