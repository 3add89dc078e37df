"""`GET /healthz` and `GET /readyz` of a worker, for whoever restarts it or waits for it.

Answered by the worker's own event loop: one that hangs does not answer, which is an answer. Healthy is who answers;
ready is who has begun, was not told to stop, and is connected. A worker that has lost a server is healthy all the same:
it waits for it, and a restart would not bring it back. Nothing is asked of a server for an answer, so it takes no time.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from typing import Final

from pydantic_core import to_json

from coatcheck.errors import ConfigError

READ_SECONDS: Final = 5.0
"""For a request's first line; then the connection is closed."""
MAX_REQUEST_BYTES: Final = 8 * 1024

Checks = Callable[[], Mapping[str, bool]]
"""What has to be true of a worker that is ready, by name; returns at once."""

_log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def health_endpoint(host: str, port: int | None, checks: Checks) -> AsyncIterator[int | None]:
    """Answer while the block lasts.

    Args:
        host: Where to listen; nobody is asked who they are, and nothing but the checks' names is told.
        port: 0 takes a free one; `None` for no endpoint.
        checks: Asked for each `/readyz`.

    Yields:
        The port.

    Raises:
        ConfigError: the address cannot be had.
    """
    if port is None:
        yield None
        return

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(READ_SECONDS):
                line = (await reader.readuntil(b"\n")).decode("latin-1")
                writer.write(_response(line, checks))
                await writer.drain()
        writer.close()

    try:
        server = await asyncio.start_server(answer, host, port, limit=MAX_REQUEST_BYTES)
    except OSError as error:
        raise ConfigError(
            f"health cannot be offered on {host}:{port}: {error.strerror}", hint="set another COATCHECK_HEALTH_PORT"
        ) from error
    try:
        bound: int = server.sockets[0].getsockname()[1]
        _log.info("health on port %d", bound)
        yield bound
    finally:
        server.close()


def _response(line: str, checks: Checks) -> bytes:
    method, _, rest = line.partition(" ")
    status, told = _answer(method, rest.partition(" ")[0].partition("?")[0], checks)
    body = to_json(told) + b"\n"
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (b"" if method == "HEAD" else body)


def _answer(method: str, path: str, checks: Checks) -> tuple[HTTPStatus, dict[str, object]]:
    if path not in ("/healthz", "/readyz"):
        return HTTPStatus.NOT_FOUND, {"error": "there are /healthz and /readyz"}
    if method not in ("GET", "HEAD"):
        return HTTPStatus.METHOD_NOT_ALLOWED, {"error": "GET"}
    if path == "/healthz":
        return HTTPStatus.OK, {"status": "ok"}
    found = dict(checks())
    is_ready = all(found.values())
    status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
    return status, {"status": "ok" if is_ready else "not ready", "checks": found}
