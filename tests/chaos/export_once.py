"""One export, for a process of its own that a test kills."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from coatcheck.localstack.status import NatsStatus, PostgresStatus
from coatcheck.objects.destinations import Folder
from tests.integration.training_lab import backdated, exporter


class DyingFolder(Folder):
    """A folder whose process dies at the n-th file of a day, before it or right after it."""

    def __init__(self, root: Path, *, day: str = "", before: int = 0, after: int = 0) -> None:
        super().__init__(root)
        self._day, self._before, self._after = day, before, after
        self._count = 0

    def put(self, path: str, source: Path) -> None:
        """Store, and die when it is time."""
        self._count += self._day in path
        if self._day in path and self._count == self._before:
            os.kill(os.getpid(), signal.SIGKILL)
        super().put(path, source)
        if self._day in path and self._count == self._after:
            os.kill(os.getpid(), signal.SIGKILL)


def export(options: dict[str, Any]) -> None:
    """Export once; `dies` among the options says when not."""
    asyncio.run(_export(options))


async def _export(options: dict[str, Any]) -> None:
    nats = NatsStatus.model_validate(options["nats"])
    database = PostgresStatus.model_validate(options["postgres"])
    client = backdated(nats, per_day=options["per_day"], newest=options["newest"])
    folder = DyingFolder(Path(options["out"]), **options.get("dies", {}))
    staging, cache = Path(options["staging"]), Path(options["cache"])
    async with exporter(nats, database, folder, staging, client=client, cache=cache) as one:
        await one.export()
