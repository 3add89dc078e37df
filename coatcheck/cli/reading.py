"""Reads deliverables and streams as NATS's `observer`, runs from PostgreSQL."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from coatcheck.archive.monitoring import archive_lags
from coatcheck.cli.output import columns, emit, emit_json, moment, one_line
from coatcheck.cli.session import load_settings, open_database, open_nats
from coatcheck.cli.unpacking import save, show_saved, tell_files
from coatcheck.cli.voice import MisuseError, tell
from coatcheck.config import load_config
from coatcheck.errors import CoatcheckError, DeliverableLostError, DeliverableNotFoundError
from coatcheck.messaging.accounts import LOGS
from coatcheck.messaging.artifacts import ArtifactStore
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.messaging.streams import stream_statuses
from coatcheck.storage import state
from schemas.deliverable import StoredDeliverable
from schemas.streams import TOOL_STREAMS, StreamSpec, StreamStatus, bucket_streams
from schemas.subjects import agent_of

_SHA256_SHOWN: Final = 12


class StreamDriftError(CoatcheckError):
    """A stream is missing or not as declared."""

    code = "stream.drifted"


# --- NATS ---------------------------------------------------------------------------------------------------------


def split_message(message: str) -> tuple[str, int] | None:
    """`STREAM:SEQ` in its parts, or `None` when it is a subject.

    Raises:
        MisuseError: what follows the colon is no sequence.
    """
    stream, colon, sequence = message.partition(":")
    if not colon:
        return None
    if not (stream and sequence.isascii() and sequence.isdigit() and int(sequence) > 0):
        raise MisuseError(f"{message!r} is not STREAM:SEQ", hint="coatcheck fetch agog_features_backend:1")
    return stream, int(sequence)


async def fetch(message: str, *, out: Path | None, force: bool, as_json: bool, data_dir: Path) -> None:
    """Print one deliverable, or write its files below `out`; all bytes are checked against their sha256.

    Raises:
        MisuseError: `message` names nothing that can be fetched, or `force` without `out`.
        DeliverableError: it or one of its files does not exist (any more), or is corrupt; nothing was written.
        FilesExistError: without `force`, files would be overwritten; nothing was written.
        UnwritableError: the folder cannot take the files.
        DependencyDownError: NATS does not answer.
    """
    if force and out is None:
        raise MisuseError("--force is about files", hint="add --out DIR")
    split_message(message)  # a mistake is told before anybody is asked
    settings = load_settings(data_dir)
    known = load_config(settings.config_file).streams
    async with open_nats(settings) as client:
        service = DeliverableService(client, streams=known)
        stored = await named_deliverable(service, message, known)
        # By the subject's agent: the server lets only that one publish there, while the body may claim anything.
        files = {} if out is None else await _files(client, stored)
    if stored.source == "archive":
        tell(f"{stored.ref.stream}:{stored.ref.sequence} comes from the archive: its stream no longer keeps it")
    if out is not None:
        save(files, out, force=force)
        show_saved(stored, out, as_json=as_json)
    elif as_json:
        emit_json(stored)
    else:
        emit(stored.deliverable.content)
        tell_files(stored, message)


async def named_deliverable(
    service: DeliverableService, message: str, known: Sequence[StreamSpec]
) -> StoredDeliverable:
    """The last deliverable under a subject, or the one that `STREAM:SEQ` names; raises as `fetch` does."""
    named = split_message(message)
    if named is None:
        return await service.fetch_by_subject(message)
    return await _by_sequence(service, *named, known=[spec.name for spec in known])


async def _files(client: NatsClient, stored: StoredDeliverable) -> dict[str, bytes]:
    return await ArtifactStore(client).get_all(agent_of(stored.subject), stored.deliverable.artifacts)


async def _by_sequence(
    service: DeliverableService, stream: str, sequence: int, *, known: Sequence[str]
) -> StoredDeliverable:
    if stream not in known:
        raise DeliverableNotFoundError(f"{stream!r} is no stream of deliverables", hint=f"one of {', '.join(known)}")
    try:
        return await service.fetch_by_sequence(stream, sequence)
    except DeliverableLostError as error:
        # A ticket would prove that the message was there; a number that somebody typed does not.
        raise DeliverableNotFoundError(
            f"{stream} ends before {sequence}", hint="`coatcheck deliverables FEATURE` lists what is there"
        ) from error


async def streams(*, check: bool, as_json: bool, data_dir: Path) -> None:
    """Print the state of every stream, those of the buckets and of what happened too.

    Raises:
        StreamDriftError: with `check`, a stream is missing or not as declared.
        DependencyDownError: NATS does not answer.
    """
    settings = load_settings(data_dir)
    config = load_config(settings.config_file)
    known = [*config.streams, *bucket_streams(config.agents), *LOGS, *TOOL_STREAMS]
    async with open_nats(settings) as client:
        statuses = await stream_statuses(client, known)
        lags = await archive_lags(client, {spec.name for spec in config.streams} & {status.name for status in statuses})
    unarchived = {lag.stream: lag.unarchived for lag in lags}
    statuses = [status.model_copy(update={"unarchived": unarchived.get(status.name)}) for status in statuses]
    missing = [spec.name for spec in known if spec.name not in {status.name for status in statuses}]
    if as_json:
        emit_json(statuses)
    else:
        header = ("stream", "messages", "bytes", "first", "last", "consumers", "unarchived", "drift")
        emit(columns(header, _stream_rows(statuses)))
    for name in missing:
        tell(f"{name} does not exist")
    drifted = [status.name for status in statuses if status.drift] + missing
    if check and drifted:
        raise StreamDriftError(f"{len(drifted)} of {len(known)} streams are not as declared: {', '.join(drifted)}")


def _stream_rows(statuses: Sequence[StreamStatus]) -> list[list[str]]:
    return [
        [
            status.name,
            f"{status.messages:,}",
            f"{status.bytes:,}",
            str(status.first_seq),
            str(status.last_seq),
            str(status.consumer_count),
            "" if status.unarchived is None else f"{status.unarchived:,}",
            "; ".join(status.drift) or "none",
        ]
        for status in statuses
    ]


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


async def deliverables(feature: str, *, as_json: bool, data_dir: Path) -> None:
    """Print what the runs of a feature delivered.

    Raises:
        CoatcheckError: nothing is recorded for it.
        DependencyDownError: PostgreSQL does not answer.
    """
    async with open_database(load_settings(data_dir)) as pool:
        rows = await state.deliverable_rows(pool, feature)
    if not rows:
        raise CoatcheckError(f"nothing of {feature!r} is recorded yet", hint="`coatcheck runs` lists the runs")
    if as_json:
        emit_json(rows)
        return
    header = ("run", "stage", "round", "verdict", "subject", "message", "bytes", "files", "sha256", "when")
    cells = [
        [
            row.run_key,
            row.stage,
            str(row.round),
            row.verdict or "",
            row.subject,
            f"{row.ref.stream}:{row.ref.sequence}",
            f"{row.ref.bytes:,}",
            f"{row.files:,}",
            row.ref.sha256[:_SHA256_SHOWN],
            moment(row.completed_at),
        ]
        for row in rows
    ]
    emit(columns(header, cells))


async def runs(*, limit: int, as_json: bool, data_dir: Path) -> None:
    """Print the latest runs, newest first.

    Raises:
        DependencyDownError: PostgreSQL does not answer.
    """
    async with open_database(load_settings(data_dir)) as pool:
        records = await state.list_runs(pool, limit)
    if as_json:
        emit_json(records)
        return
    header = ("run", "feature", "tenant", "status", "stage", "done", "started", "ended", "error")
    cells = [
        [
            record.run_key,
            record.feature,
            record.tenant,
            record.status,
            record.current_step or "",
            f"{record.completed_steps}/{record.total_steps}",
            moment(record.started_at),
            moment(record.completed_at),
            one_line(record.error or "", 80),
        ]
        for record in records
    ]
    emit(columns(header, cells))
