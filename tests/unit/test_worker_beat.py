"""The file by which others see that a worker is well."""

import asyncio
import os
from pathlib import Path

import pytest

from coatcheck.settings import Settings
from coatcheck.telemetry.provider import ObservabilityProvider
from workers import runner
from workers.runner import Lifecycle


async def test_the_ready_file_is_touched_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its age tells a process that hangs; one that was told to stop is not ready any more."""
    monkeypatch.setattr(runner, "BEAT_SECONDS", 0.01)
    file = tmp_path / "ready"
    telemetry = ObservabilityProvider(Settings(), "test")
    lifecycle = Lifecycle(ready_file=file, telemetry=telemetry)
    serving = asyncio.create_task(lifecycle.serve())
    async with asyncio.timeout(10):
        for _ in range(2):
            while not file.exists() or file.stat().st_mtime == 0:
                await asyncio.sleep(0.01)
            os.utime(file, (0, 0))
        lifecycle.request_stop()
        await serving
    assert not file.exists()
