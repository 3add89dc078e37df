"""JetStream streams as data: names, subjects and limits of the seed (003, Agent Streams and Retention)."""

from typing import Final

from pydantic import BaseModel, ConfigDict

from schemas.subjects import PREFIX, deliverable_wildcard

MAX_PAYLOAD_BYTES: Final = 10 * 1024 * 1024
"""The server's `max_payload` (seed 003: 10 MB for large reports)."""
HEADER_ROOM_BYTES: Final = 64 * 1024
"""Kept free for headers: payload + headers over `max_payload` closes a nats-py client for ever, so we stop before."""
MAX_DELIVERABLE_BYTES: Final = MAX_PAYLOAD_BYTES - HEADER_ROOM_BYTES

DAY_SECONDS: Final = 86_400


class StreamSpec(BaseModel):
    """The settings that a stream must have; anything else on the server is drift and is reported."""

    model_config = ConfigDict(frozen=True)

    name: str
    subjects: tuple[str, ...]
    agent: str
    """Who writes it, and nobody else."""
    max_msgs: int = 10_000
    max_bytes: int = 1024**3
    max_age_seconds: int = 7 * DAY_SECONDS
    duplicate_window_seconds: int = 7 * DAY_SECONDS
    """As long as the messages themselves, so that a late retry is still recognised."""


def stream_name(task_type: str) -> str:
    """`agog_features_<taskType>`."""
    return f"{PREFIX}_features_{task_type}"


def deliverable_stream(agent: str, task_type: str) -> StreamSpec:
    """The stream that belongs to `agent` and its task type."""
    return StreamSpec(name=stream_name(task_type), subjects=(deliverable_wildcard(agent),), agent=agent)


STREAMS: Final[tuple[StreamSpec, ...]] = (
    deliverable_stream("cynthia", "research"),
    deliverable_stream("sylvia", "critique"),
    deliverable_stream("roy", "backend"),
    deliverable_stream("jen", "frontend"),
    deliverable_stream("billy", "qa"),
    deliverable_stream("priya", "statistics"),
)
AGENTS: Final[tuple[str, ...]] = tuple(spec.agent for spec in STREAMS)


class StreamStatus(BaseModel):
    """State of one stream (seed 003, Programmatic Monitoring), with its drift from `StreamSpec`."""

    name: str
    messages: int
    bytes: int
    first_seq: int
    last_seq: int
    consumer_count: int
    drift: list[str] = []
    """One `setting: is X, should be Y` per difference; empty when the stream is as declared."""
