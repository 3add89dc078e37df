"""What a worker answers to who restarts it or waits for it."""

import asyncio
import json
from collections.abc import Callable

import pytest

from coatcheck.errors import ConfigError
from coatcheck.settings import Settings
from coatcheck.telemetry.provider import ObservabilityProvider
from workers.health import health_endpoint
from workers.runner import Lifecycle


async def ask(port: int, request: str = "GET /readyz HTTP/1.1") -> tuple[int, object]:
    """One request; the status and what is said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{request}\r\nHost: x\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(body) if body else None


async def until(accept: Callable[[tuple[int, object]], bool], port: int) -> None:
    """Wait until `/readyz` says so."""
    async with asyncio.timeout(10):
        while not accept(await ask(port)):
            await asyncio.sleep(0.01)


async def test_healthy_is_not_ready() -> None:
    """Starting, ready, without NATS, again with it, stopping; healthy all the time, whoever says nothing."""
    lifecycle = Lifecycle(ready_file=None, telemetry=ObservabilityProvider(Settings(), "test"))
    is_connected = True
    lifecycle.needs("nats", lambda: is_connected)
    async with health_endpoint("127.0.0.1", 0, lifecycle.checks) as port:
        assert port is not None
        _, silent = await asyncio.open_connection("127.0.0.1", port)
        assert await ask(port) == (
            503,
            {"status": "not ready", "checks": {"started": False, "not stopping": True, "nats": True}},
        )
        serving = asyncio.create_task(lifecycle.serve())
        await until(lambda told: told[0] == 200, port)
        is_connected = False
        status, said = await ask(port)
        assert (status, said) == (
            503,
            {"status": "not ready", "checks": {"started": True, "not stopping": True, "nats": False}},
        )
        assert await ask(port, "GET /healthz?x HTTP/1.1") == (200, {"status": "ok"})
        is_connected = True
        assert (await ask(port, "HEAD /readyz HTTP/1.1")) == (200, None)
        lifecycle.request_stop()
        assert (await ask(port))[0] == 503
        assert (await ask(port, "GET /healthz HTTP/1.1"))[0] == 200
        assert (await ask(port, "GET /metrics HTTP/1.1"))[0] == 404
        assert (await ask(port, "POST /readyz HTTP/1.1"))[0] == 405
        with pytest.raises(ConfigError, match="health cannot be offered"):
            await health_endpoint("127.0.0.1", port, lifecycle.checks).__aenter__()
        await serving
        silent.close()
    async with health_endpoint("127.0.0.1", None, lifecycle.checks) as none:
        assert none is None
