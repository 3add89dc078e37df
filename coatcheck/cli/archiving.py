"""What `archive` prints, and what other commands tell about the archive."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from coatcheck.archive.monitoring import ArchiveLag, archive_lags
from coatcheck.archive.shelf import open_shelf
from coatcheck.archive.verifying import verify as verify_shelf
from coatcheck.cli.output import columns, emit, emit_json, moment
from coatcheck.cli.session import load_settings, open_nats
from coatcheck.cli.voice import tell
from coatcheck.config import load_config
from coatcheck.errors import CoatcheckError
from coatcheck.messaging.archive import ArchiveClient

ARCHIVE_HINT: Final = "the core worker's log says what keeps it from archiving; until then the streams wait"


class ArchiveError(CoatcheckError):
    """The archive is too far behind, or not as it was."""

    code = "archive.unhealthy"


async def status(*, as_json: bool, data_dir: Path) -> None:
    """Print how far behind it is.

    Raises:
        ArchiveError: it is too far behind.
        DependencyDownError: NATS or the archive does not answer; what is known was printed.
    """
    settings = load_settings(data_dir)
    streams = [spec.name for spec in load_config(settings.config_file).streams]
    async with open_nats(settings) as client:
        lags = await archive_lags(client, streams)
        if as_json:
            emit_json([lag.model_dump(mode="json") | {"level": lag.level} for lag in lags])
        else:
            emit(columns(("stream", "messages", "unarchived", "oldest", "used"), [_row(lag) for lag in lags]))
        tell(f"the archive is in {await ArchiveClient(client).place()}")
    if problems := archive_problems(lags):
        raise ArchiveError("; ".join(problems), hint=ARCHIVE_HINT)


def archive_problems(lags: Sequence[ArchiveLag]) -> list[str]:
    """What somebody should look at, in words."""
    now = datetime.now(UTC)
    return [problem for lag in lags if (problem := lag.problem(now))]


def _row(lag: ArchiveLag) -> list[str]:
    percent = f"{lag.used_percent:.1f}%"
    return [lag.stream, f"{lag.messages:,}", f"{lag.unarchived:,}", moment(lag.oldest_at), percent]


def unarchived(data_dir: Path) -> int | None:
    """Deliverables that are not archived yet; `None`, and a line on stderr, when that cannot be told."""

    async def count() -> int:
        settings = load_settings(data_dir)
        async with open_nats(settings) as client:
            streams = [spec.name for spec in load_config(settings.config_file).streams]
            return sum(lag.unarchived for lag in await archive_lags(client, streams))

    try:
        return asyncio.run(count())
    except CoatcheckError as error:
        tell(f"how far the archive is cannot be told: {error}")
        return None


async def verify(*, as_json: bool, data_dir: Path) -> None:
    """Read all of it and print what was found.

    Raises:
        ArchiveError: something is missing or corrupt.
        DestinationDownError: the archive does not answer.
    """
    place = load_settings(data_dir).archive_place
    found = await verify_shelf(open_shelf(place))
    if as_json:
        emit_json({"place": place} | asdict(found))
    else:
        whole = f"{found.contents:,} contents as they were archived, {found.bytes:,} bytes"
        emit("\n".join([f"{found.messages:,} messages, {whole}", *found.problems]))
    if found.problems:
        raise ArchiveError(
            f"{len(found.problems):,} things in {place} are missing or corrupt",
            hint="what its stream still keeps is archived again after `nats consumer rm STREAM deliverables-archiver`",
        )
