"""The streams as they must be: made when missing, reported when different, never made over recorded state.

A server that starts with the wrong encryption key or an empty disk is "healthy" with zero streams. Creating them
anew would hide a total loss, so start-up compares with what PostgreSQL remembers first (`refuse_lost_streams`).
"""

import asyncio
import http.client
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

from coatcheck.errors import (
    ConfigError,
    MessagingRefusedError,
    MessagingUnavailableError,
    MessagingUnsafeError,
    StreamMissingError,
)
from coatcheck.messaging.client import NatsClient
from schemas.streams import Placement, StreamSpec, StreamStatus

_NANOSECONDS: Final = 1_000_000_000
_NAME_IN_USE: Final = 10058
"""Another process made the stream, with other settings, between our look and our request."""
_SUBJECTS_OVERLAP: Final = 10065
"""A stream of the same agent exists under another name: the agent had another task type."""
_TOO_FEW_SERVERS: Final = frozenset({10005, 10074})
"""No servers that fit the placement, or a single server that is asked for replicas."""
_MONITOR_TIMEOUT_SECONDS: Final = 5

_MUST_BE_ABSENT: Final = (
    "mirror",
    "sources",
    "republish",
    "subject_transform",
    "allow_rollup_hdrs",
    "allow_msg_ttl",
    "allow_msg_schedules",
    "persist_mode",
    "sealed",
)
"""Settings that would let messages in, out or away by another door, or be acknowledged before they are on disk."""


_ANYWHERE: Final = Placement()


def stream_config(spec: StreamSpec, *, placement: Placement = _ANYWHERE) -> dict[str, Any]:
    """The settings of the seed (003, Agent Streams and Retention) as JetStream's API spells them."""
    republish = {"republish": {"src": spec.subjects[0], "dest": spec.republish_to}} if spec.republish_to else {}
    placed = {"placement": {"tags": list(placement.tags)}} if placement.tags else {}
    return {
        "name": spec.name,
        "subjects": list(spec.subjects),
        "retention": spec.retention,
        "storage": "file",
        "discard": spec.discard,
        "max_msgs": spec.max_msgs,
        "max_bytes": spec.max_bytes,
        "max_age": spec.max_age_seconds * _NANOSECONDS,
        "duplicate_window": spec.duplicate_window_seconds * _NANOSECONDS,
        "max_msgs_per_subject": spec.max_msgs_per_subject,
        "max_msg_size": spec.max_msg_bytes,
        "max_consumers": -1,
        "num_replicas": placement.replicas,
        "compression": spec.compression,
        # A direct get may be answered by a replica that lags: 558 of 1,500 reads right after the ack found nothing.
        "allow_direct": False,
        "deny_delete": True,
        "deny_purge": True,
        **republish,
        **placed,
    }


async def ensure_streams(
    client: NatsClient, specs: Iterable[StreamSpec], *, placement: Placement = _ANYWHERE
) -> list[StreamStatus]:
    """Create the streams that are missing; one that exists is left as it is and its drift reported.

    Except for what takes nothing away: a stream that has too few replicas gets more, and never fewer; one whose blocks
    are not compressed gets that for the blocks to come.

    Call `refuse_lost_streams` first. Safe to run in several processes at once.

    Args:
        client: An identity that may manage streams (`core`).
        specs: What must exist.
        placement: How many replicas, and where.

    Returns:
        One status per spec, in their order.

    Raises:
        MessagingUnavailableError: JetStream does not answer.
        NotAuthorizedError: this identity may not create streams.
        MessagingRefusedError: JetStream refuses a stream, for instance for want of space.
        ConfigError: an agent's subjects belong to a stream of another name, or there are too few servers for the
            placement.
    """
    statuses = []
    for spec in specs:
        try:
            info = await _info(client, spec)
            if info is None:
                info = await _create(client, spec, placement)
            elif harmless := _harmless(info["config"], spec, placement):
                info = await client.api(f"STREAM.UPDATE.{spec.name}", {**info["config"], **harmless})
        except MessagingRefusedError as error:
            if error.err_code not in _TOO_FEW_SERVERS:
                raise
            raise ConfigError(
                str(error), hint="COATCHECK_REPLICAS and COATCHECK_PLACEMENT_TAGS ask for servers that are not there"
            ) from error
        statuses.append(_from_info(info, spec, placement))
    return statuses


def _harmless(config: Mapping[str, Any], spec: StreamSpec, placement: Placement) -> dict[str, Any]:
    """Settings that may be changed on a stream that is in use."""
    more = {"num_replicas": placement.replicas} if config["num_replicas"] < placement.replicas else {}
    return more | ({"compression": spec.compression} if config["compression"] != spec.compression else {})


async def _create(client: NatsClient, spec: StreamSpec, placement: Placement) -> dict[str, Any]:
    try:
        return await client.api(f"STREAM.CREATE.{spec.name}", stream_config(spec, placement=placement))
    except MessagingRefusedError as error:
        if error.err_code == _SUBJECTS_OVERLAP:
            raise ConfigError(
                f"{spec.name} cannot be made: another stream holds the deliverables of {spec.agent!r}",
                hint="an agent and its task type stay together: choose another agent name for the new role",
            ) from error
        if error.err_code != _NAME_IN_USE:
            raise
        return await client.api(f"STREAM.INFO.{spec.name}")


async def stream_statuses(
    client: NatsClient, specs: Iterable[StreamSpec], *, placement: Placement = _ANYWHERE
) -> list[StreamStatus]:
    """The state of the streams that exist, in the order of `specs`; a missing one is left out."""
    found = [(spec, await _info(client, spec)) for spec in specs]
    return [_from_info(info, spec, placement) for spec, info in found if info is not None]


def refuse_lost_streams(statuses: Iterable[StreamStatus], recorded: Mapping[str, int]) -> None:
    """Refuse to go on when JetStream has less than what was recorded.

    Args:
        statuses: Of the streams that exist.
        recorded: Stream → the highest sequence that PostgreSQL remembers.

    Raises:
        StreamMissingError: a remembered stream is gone, or ends before what is remembered.
    """
    last = {status.name: status.last_seq for status in statuses}
    for name, sequence in recorded.items():
        if last.get(name, 0) < sequence:
            found = f"ends at {last[name]:,}" if name in last else "does not exist"
            raise StreamMissingError(
                f"the stream {name} {found}, but message {sequence:,} of it is on record: acknowledged data is gone",
                hint="check the server's store directory and encryption key, or restore the stream from a backup; "
                "it is not created anew over recorded state",
            )


def refuse_foreign_streams(statuses: Iterable[StreamStatus]) -> None:
    """Refuse to go on when a stream does not take its agent's subjects: what that agent publishes would be lost.

    It was made for another agent, whose deliverables it holds.

    Raises:
        ConfigError: there is one; the message says which subjects it takes.
    """
    for status in statuses:
        for difference in status.drift:
            if difference.startswith("subjects: "):
                raise ConfigError(
                    f"the stream {status.name} was not made for the agent that has its task type now: {difference}",
                    hint="an agent and its task type stay together: choose another task type for the new role",
                )


async def check_sync_always(monitor_urls: str | None) -> None:
    """Make sure that every server syncs every write before it acknowledges.

    With the default `sync_interval` a power cut lost every message acknowledged since the last sync, with three
    replicas on one power domain too; with `always` none, at about 0.3 ms per message.

    Args:
        monitor_urls: One for each server of a cluster, separated by commas. A server that is down is not asked, as
            long as another one answers: it would keep every worker from starting.

    Raises:
        MessagingUnsafeError: one does not, or there is no monitor to ask.
        MessagingUnavailableError: no monitor answers.
    """
    hint = "set `jetstream { sync_interval: always }` in the server's configuration"
    urls = [url.strip() for url in (monitor_urls or "").split(",") if url.strip()]
    if not urls:
        raise MessagingUnsafeError(
            "without the server's monitor nobody can tell whether it syncs every write",
            hint=f"set NATS_MONITOR_URL, and {hint}",
        )
    silent: list[str] = []
    for url in urls:
        try:
            config = await asyncio.to_thread(_jetstream_config, url)
        except (OSError, http.client.HTTPException, ValueError) as error:
            silent.append(f"the monitor of NATS at {url} does not answer: {error}")
            continue
        if config.get("sync_always") is not True:
            raise MessagingUnsafeError("NATS does not sync every write: a power cut would lose deliverables", hint=hint)
    if len(silent) == len(urls):
        raise MessagingUnavailableError("; ".join(silent), hint="is `http` set in its configuration?")


def _jetstream_config(monitor_url: str) -> Mapping[str, Any]:
    parts = urlsplit(monitor_url)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname or "localhost", parts.port, timeout=_MONITOR_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/jsz?config=1")
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise ValueError(f"HTTP status {response.status}")
        config: Mapping[str, Any] = json.loads(response.read()).get("config", {})
    finally:
        connection.close()
    return config


async def _info(client: NatsClient, spec: StreamSpec) -> dict[str, Any] | None:
    try:
        return await client.api(f"STREAM.INFO.{spec.name}")
    except StreamMissingError:
        return None


def _from_info(info: Mapping[str, Any], spec: StreamSpec, placement: Placement) -> StreamStatus:
    state = info["state"]
    return StreamStatus(
        name=spec.name,
        messages=state["messages"],
        bytes=state["bytes"],
        first_seq=state["first_seq"],
        last_seq=state["last_seq"],
        consumer_count=state["consumer_count"],
        age_seconds=_age_seconds(info),
        drift=list(_drift(info["config"], stream_config(spec, placement=placement))),
    )


def _age_seconds(info: Mapping[str, Any]) -> float:
    """An empty stream says that it began in the year 1, or when its last message was."""
    if not info["state"]["messages"]:
        return 0.0
    now, first = (datetime.fromisoformat(text) for text in (info["ts"], info["state"]["first_ts"]))
    return max((now - first).total_seconds(), 0.0)


def _drift(actual: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterable[str]:
    for setting, value in wanted.items():
        found = actual.get(setting, False)
        if setting == "num_replicas" and found > value:
            continue  # whoever asks knows of fewer; more are no less safe
        if found != value:
            yield f"{setting}: is {json.dumps(found)}, should be {json.dumps(value)}"
    for setting in _MUST_BE_ABSENT:
        if actual.get(setting) and setting not in wanted:
            yield f"{setting}: is {json.dumps(actual[setting])}, should be absent"
