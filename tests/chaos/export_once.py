"""One export in a process of its own, for tests that kill it. Its argument is the options as JSON."""

import asyncio
import json
import os
import signal
import sys
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


async def main(options: dict[str, Any]) -> None:
    """Export once."""
    nats = NatsStatus.model_validate(options["nats"])
    database = PostgresStatus.model_validate(options["postgres"])
    client = backdated(nats, per_day=options["per_day"], newest=options["newest"])
    folder = DyingFolder(Path(options["out"]), **options.get("dies", {}))
    staging, cache = Path(options["staging"]), Path(options["cache"])
    async with exporter(nats, database, folder, staging, client=client, cache=cache) as one:
        await one.export()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
