"""The life of a worker process: start, say ready, stop on a signal, leave without a crash."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NoReturn

import uvloop

from coatcheck.errors import CoatcheckError
from coatcheck.settings import Settings
from coatcheck.telemetry.logs import configure_logging
from coatcheck.telemetry.provider import ObservabilityProvider
from workers.health import health_endpoint

EXIT_FAILED = 1
EXIT_DEPENDENCY_DOWN = 3

BEAT_SECONDS = 10.0
"""How often the ready file is touched. A probe that finds it older than a minute has a process that hangs."""

_log = logging.getLogger("coatcheck.worker")


class Lifecycle:
    """What a composition root needs to know about its process."""

    def __init__(self, *, ready_file: Path | None, telemetry: ObservabilityProvider) -> None:
        self._ready_file = ready_file
        self.telemetry = telemetry
        self._stop = asyncio.Event()
        self._serving = False
        self._needs: dict[str, Callable[[], bool]] = {}

    def request_stop(self) -> None:
        """Begin the graceful shutdown."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether nothing new should be begun."""
        return self._stop.is_set()

    def needs(self, name: str, is_there: Callable[[], bool]) -> None:
        """Name something without which the process is not ready; `is_there` answers at once."""
        self._needs[name] = is_there

    def checks(self) -> dict[str, bool]:
        """What has to be true of a process that is ready."""
        needs = {name: is_there() for name, is_there in self._needs.items()}
        return {"started": self._serving, "not stopping": not self.stopping} | needs

    async def serve(self) -> None:
        """Say that the process is ready, and that it is alive, until it is asked to stop."""
        _log.info("ready")
        self._serving = True
        while not self._stop.is_set():
            if self._ready_file is not None:
                await asyncio.to_thread(self._ready_file.touch)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), BEAT_SECONDS)
        if self._ready_file is not None:
            await asyncio.to_thread(self._ready_file.unlink, missing_ok=True)
        _log.info("stopping")


def run_main(name: str, main: Callable[[Lifecycle], Awaitable[None]], settings: Settings) -> NoReturn:
    """Run a worker to its end and leave the process at once, telemetry within 2 s.

    `os._exit` after flushing, since the interpreter's own exit sometimes aborts in Temporal's core (sdk-python#300).
    """
    try:
        telemetry = ObservabilityProvider(settings, name)
    except CoatcheckError as error:
        sys.exit(f"error: {error}\nhint: {error.hint}")
    configure_logging(name, telemetry.log_handlers)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # 10% less CPU per run than asyncio's own
        code = runner.run(_run(main, Lifecycle(ready_file=settings.ready_file, telemetry=telemetry), settings))
    telemetry.shutdown()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


async def _run(main: Callable[[Lifecycle], Awaitable[None]], lifecycle: Lifecycle, settings: Settings) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, lifecycle.request_stop)
    try:
        async with health_endpoint(settings.health_host, settings.health_port, lifecycle.checks):
            await main(lifecycle)
    except CoatcheckError as error:
        _log.error("%s", error)
        if error.hint:
            _log.error("hint: %s", error.hint)
        return EXIT_DEPENDENCY_DOWN if error.retryable else EXIT_FAILED
    except Exception:  # noqa: BLE001  the edge of the process
        _log.exception("worker failed")
        return EXIT_FAILED
    return 0
