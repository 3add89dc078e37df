"""`BackboneWatch`: looks at the streams, the projector and the dead letters again and again, for whoever measures."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Final

from coatcheck.errors import CoatcheckError
from coatcheck.events.monitoring import backbone_status
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.streams import stream_statuses
from coatcheck.telemetry.instruments import BackboneInstruments
from schemas.streams import StreamSpec

LOOK_SECONDS: Final = 10.0
"""Twenty questions of 0.3 ms each; Prometheus asks every 15 s."""

_log = logging.getLogger(__name__)


class BackboneWatch:
    """Looks as any identity that may: `core` or `observer`.

    Args:
        client: Of that identity.
        specs: The streams.
        instruments: Are told.
    """

    def __init__(self, client: NatsClient, specs: Sequence[StreamSpec], instruments: BackboneInstruments) -> None:
        self._client = client
        self._specs = {spec.name: spec for spec in specs}
        self._instruments = instruments

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look until the block ends."""
        task = asyncio.create_task(self._run(), name="backbone-watch")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def look(self) -> None:
        """One look; a NATS that is away is told, too."""
        try:
            status = await backbone_status(self._client)
            streams = await stream_statuses(self._client, self._specs.values())
        except CoatcheckError as error:
            _log.warning("the backbone cannot be looked at: %s", error)
            self._instruments.away()
            return
        self._instruments.looked(
            lag=status.lag,
            dead_letters=status.dead_letters,
            streams=[(self._specs[stream.name], stream) for stream in streams],
        )

    async def _run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)
