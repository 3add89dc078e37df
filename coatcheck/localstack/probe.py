"""Asking a server whether it is ready."""

import asyncio
import contextlib

from coatcheck.localstack.ports import LOOPBACK

_TIMEOUT_SECONDS = 2.0


async def http_ok(port: int, path: str) -> bool:
    """Whether `GET path` on the loopback `port` answers 200; every failure is a plain no."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            return b" 200 " in await _status_line(port, path)
    return False


async def port_open(port: int) -> bool:
    """Whether somebody takes connections on the loopback `port`."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            _, writer = await asyncio.open_connection(LOOPBACK, port)
            writer.close()
            return True
    return False


async def _status_line(port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}:{port}\r\nConnection: close\r\n\r\n".encode())
        return await reader.readline()
    finally:
        writer.close()


async def command_ok(*argv: str) -> bool:
    """Whether the command exits with 0."""
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*argv, stdin=quiet, stdout=quiet, stderr=quiet)
    return await process.wait() == 0
