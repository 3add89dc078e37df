"""How far the archive is behind the streams, and how near retention is to what is not archived."""

import logging
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from coatcheck.errors import DeliverableNotFoundError
from coatcheck.messaging.accounts import ARCHIVER
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.consumer import consumer_lag

LEVELS: Final = {70: logging.WARNING, 85: logging.ERROR, 95: logging.CRITICAL}
"""Percent of a limit → how loud the alarm is (reliability report, Retention)."""
BEHIND_SECONDS: Final = 600.0
"""What waits for longer than this waits for somebody: an archiver that works needs seconds."""
_NANOSECONDS: Final = 1_000_000_000

_log = logging.getLogger(__name__)


class ArchiveLag(BaseModel):
    """One stream of deliverables."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    stream: str
    messages: int
    """In the stream."""
    unarchived: int
    oldest_at: datetime | None
    """When the oldest of those was stored."""
    used_percent: float
    """Of the limit (messages, bytes, age) that is nearest: at 100, retention drops what is not archived.

    The bytes of what is not archived are reckoned from the stream's average."""

    @property
    def level(self) -> int:
        """The alarm's level that is reached, of 70, 85 and 95; else 0."""
        return max((level for level in LEVELS if self.used_percent >= level), default=0)

    def problem(self, now: datetime) -> str | None:
        """What somebody should look at, in words."""
        if not self.level and (self.oldest_at is None or (now - self.oldest_at).total_seconds() < BEHIND_SECONDS):
            return None
        since = f" since {self.oldest_at:%Y-%m-%d %H:%M:%S}" if self.oldest_at else ""
        return (
            f"{self.stream}: {self.unarchived:,} deliverables wait{since} to be archived; {self.used_percent:.0f}% of "
            "the limit at which retention drops them is used"
        )


class Alarm:
    """Says in the log when a level is reached, once each time."""

    def __init__(self) -> None:
        self._levels: dict[str, int] = {}

    def look(self, lag: ArchiveLag) -> None:
        """Compare with what was said last."""
        if lag.level > self._levels.get(lag.stream, 0):
            _log.log(LEVELS[lag.level], "%s", lag.problem(datetime.now(UTC)))
        self._levels[lag.stream] = lag.level


async def archive_lags(client: NatsClient, streams: Collection[str]) -> list[ArchiveLag]:
    """Look at every stream, as `core` or `observer`; in their order.

    Raises:
        StreamMissingError: there is no such stream.
        NotAuthorizedError: this identity may not look.
        MessagingUnavailableError: NATS does not answer.
    """
    return [await _lag(client, stream) for stream in streams]


async def _lag(client: NatsClient, stream: str) -> ArchiveLag:
    info = await client.api(f"STREAM.INFO.{stream}")
    state = info["state"]
    lag = await consumer_lag(client, stream=stream, name=ARCHIVER)
    unarchived = state["messages"] if lag is None else min(lag.total, state["messages"])
    oldest_at = await _oldest(client, stream, behind=unarchived)
    return ArchiveLag(
        stream=stream,
        messages=state["messages"],
        unarchived=unarchived,
        oldest_at=oldest_at,
        used_percent=100 * max(_shares(info["config"], state, unarchived, oldest_at), default=0.0),
    )


def _shares(config: dict[str, Any], state: dict[str, Any], unarchived: int, oldest_at: datetime | None) -> list[float]:
    """Of each limit that the stream has, what is used up between the oldest message not archived and now."""
    if oldest_at is None:
        return []
    shares = []
    if (most := config.get("max_msgs", -1)) > 0:
        shares.append(unarchived / most)
    if (most := config.get("max_bytes", -1)) > 0:
        shares.append(state["bytes"] * unarchived / state["messages"] / most)
    if (most := config.get("max_age", 0)) > 0:
        shares.append((datetime.now(UTC) - oldest_at).total_seconds() / (most / _NANOSECONDS))
    return shares


async def _oldest(client: NatsClient, stream: str, *, behind: int) -> datetime | None:
    """When the oldest message that is not archived was stored."""
    if not behind:
        return None
    info = await client.consumer_info(stream, ARCHIVER)
    floor = info["ack_floor"]["stream_seq"] if info else 0
    try:
        return (await client.fetch_next(stream, ">", floor + 1)).stored_at
    except DeliverableNotFoundError:
        return None  # archived meanwhile, and dropped
