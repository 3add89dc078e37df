"""JetStream streams as data: names, subjects and limits of the seed (003, Agent Streams and Retention).

Buckets are streams too: a key-value bucket is the stream `KV_<bucket>`, an object store bucket `OBJ_<bucket>`. They are
laid out as the NATS clients lay them out, so that standard tools read them, but nobody may delete, purge or roll up.
"""

from collections.abc import Iterable
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.market import MARKET_PRICES
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
    retention: Literal["limits", "workqueue"] = "limits"
    """`workqueue`: a message is gone once it is acknowledged."""
    duplicate_window_seconds: int = 7 * DAY_SECONDS
    """As long as the messages themselves, so that a late retry is still recognised."""
    discard: Literal["old", "new"] = "old"
    """What goes when the stream is full: its oldest messages, or the new one, which is then refused."""
    max_msgs_per_subject: int = -1
    max_msg_bytes: int = -1
    compression: Literal["none", "s2"] = "s2"
    """Of blocks of 8 MB that are full: a third of the disk for texts and events, and no client notices."""
    republish_to: str | None = None
    """Where the server repeats what is stored under the first of `subjects`, for plain subscribers."""


class Placement(BaseModel):
    """Where streams are kept; the same for all of an environment, and their consumers follow them."""

    model_config = ConfigDict(frozen=True)

    replicas: int = Field(1, ge=1, le=5)
    """3 in a cluster whose members have separate power and disks; 5 is the most that JetStream takes."""
    tags: tuple[str, ...] = ()
    """Only on servers that have all of these `server_tags`; any server when empty."""


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


AGENT_STATE: Final = "agent_state"
"""KV bucket: what agents and models are doing; keys `agent.<agent>` and `model.<encoded provider:model>`."""

_RETRY_WINDOW_SECONDS: Final = 120
"""Duplicate window of buckets: a put has an id of its own and is repeated for 30 s at most."""


def kv_stream_name(bucket: str) -> str:
    """The stream that holds a key-value bucket."""
    return f"KV_{bucket}"


def kv_subject(bucket: str, key: str) -> str:
    """Where a key is put; `>` as the key for all of them."""
    return f"$KV.{bucket}.{key}"


def kv_changes(bucket: str, key: str = ">") -> str:
    """The plain subject on which the server repeats every change, for readers that may have no consumer."""
    return f"{PREFIX}.kv.{bucket}.{key}"


AGENT_STATE_STREAM: Final = StreamSpec(
    name=kv_stream_name(AGENT_STATE),
    subjects=(kv_subject(AGENT_STATE, ">"),),
    agent="gateway",
    max_msgs=-1,
    max_bytes=64 * 1024**2,
    max_age_seconds=0,
    duplicate_window_seconds=_RETRY_WINDOW_SECONDS,
    # A full bucket refuses new keys; dropping the oldest message would forget a key that has not changed for long.
    discard="new",
    max_msgs_per_subject=8,
    max_msg_bytes=64 * 1024,
    republish_to=kv_changes(AGENT_STATE),
)
"""History 8, of values of 64 KiB at most: 128 keys at worst, and thousands of the few hundred bytes that are usual."""

MARKET_PRICES_STREAM: Final = AGENT_STATE_STREAM.model_copy(
    update={
        "name": kv_stream_name(MARKET_PRICES),
        "subjects": (kv_subject(MARKET_PRICES, ">"),),
        "agent": "core",
        "republish_to": kv_changes(MARKET_PRICES),
    }
)
"""How each resource is shared out now (`schemas.market.MarketPrice`), one key each."""


AUDIT_LOG: Final = StreamSpec(
    name="audit_log",
    subjects=(f"{PREFIX}.events.>",),
    agent="core",
    max_msgs=-1,
    max_bytes=4 * 1024**3,
    max_age_seconds=30 * DAY_SECONDS,
    # Longer than any activity is retried (24 h); after that the primary key of the table still holds.
    duplicate_window_seconds=2 * DAY_SECONDS,
    max_msg_bytes=64 * 1024,
    republish_to=f"{PREFIX}.live.events.>",
)
"""Everything that happened, in order: the source of the table `events`, of replays and of training data.

Only the core worker may write it: whoever may publish to a stream can take another's message id first.
"""

DEAD_LETTERS: Final = StreamSpec(
    name="dead_letters",
    subjects=(f"{PREFIX}.dead.>",),
    agent="core",
    max_msgs=-1,
    max_age_seconds=30 * DAY_SECONDS,
    duplicate_window_seconds=2 * DAY_SECONDS,
)
"""What a consumer could not digest, whole, with the reason in its headers."""

MCP_REQUESTS: Final = StreamSpec(
    name="mcp_requests",
    subjects=(f"{PREFIX}.mcp.requests.>",),
    agent="gateway",
    max_msgs=-1,
    max_age_seconds=DAY_SECONDS,
    duplicate_window_seconds=DAY_SECONDS,
    retention="workqueue",
    # A full queue refuses new calls; dropping the oldest would leave its agent without an answer.
    discard="new",
    max_msg_bytes=2 * 1024**2,
)
"""Calls of tools that wait for a gateway. Only gateways write it, after they have checked who asks for what."""

MCP_RESULTS: Final = StreamSpec(
    name="mcp_results",
    subjects=(f"{PREFIX}.mcp.results.>", f"{PREFIX}.mcp.contents.>"),
    agent="gateway",
    max_msgs=-1,
    max_bytes=4 * 1024**3,
    max_age_seconds=DAY_SECONDS,
    duplicate_window_seconds=DAY_SECONDS,
    republish_to=f"{PREFIX}.live.mcp.results.>",
)
"""How calls ended, for whoever waits, and the results that are too long for a prompt. The record is in PostgreSQL."""


def tool_queue(server: str) -> str:
    """The durable consumer with the calls for one MCP server."""
    return f"gateway-{server}"


TOOL_STREAMS: Final = (MCP_REQUESTS, MCP_RESULTS)


ARTIFACT_MAX_AGE_SECONDS: Final = 14 * DAY_SECONDS
"""Twice a deliverable's life, so that a file that was stored for one may serve another that comes days later."""


def artifact_bucket(agent: str) -> str:
    """The object store bucket that holds `agent`'s files, each named by its sha256."""
    return f"artifacts_{agent}"


def artifact_stream(agent: str) -> StreamSpec:
    """The stream of `agent`'s bucket."""
    bucket = artifact_bucket(agent)
    return StreamSpec(
        name=f"OBJ_{bucket}",
        subjects=(f"$O.{bucket}.C.>", f"$O.{bucket}.M.>"),
        agent=agent,
        max_msgs=-1,
        # 8 deliverables with as many bytes as one may have, or 200 of 10 MB.
        max_bytes=2 * 1024**3,
        max_age_seconds=ARTIFACT_MAX_AGE_SECONDS,
        duplicate_window_seconds=_RETRY_WINDOW_SECONDS,
        # A full bucket refuses the upload; dropping the oldest would take files from deliverables that still live.
        discard="new",
    )


def artifact_wildcard(agent: str) -> str:
    """The subjects of `agent`'s bucket: `C.<upload>` for chunks, `M.<name>` for what makes an object visible."""
    return f"$O.{artifact_bucket(agent)}.>"


def bucket_streams(agents: Iterable[str]) -> tuple[StreamSpec, ...]:
    """The streams of every bucket: the shared state, the prices and each agent's files."""
    return (AGENT_STATE_STREAM, MARKET_PRICES_STREAM, *(artifact_stream(agent) for agent in agents))


def live_subject(subject: str) -> str:
    """Where the server repeats what is stored under `subject`, which may be a pattern, if its stream is repeated."""
    return subject.replace(f"{PREFIX}.", f"{PREFIX}.live.", 1)


class StreamStatus(BaseModel):
    """State of one stream (seed 003, Programmatic Monitoring), with its drift from `StreamSpec`."""

    name: str
    messages: int
    bytes: int
    first_seq: int
    last_seq: int
    consumer_count: int
    age_seconds: float = 0
    """Of the oldest message, by the server's clock; 0 when there is none."""
    unarchived: int | None = None
    """Messages that are not in the archive yet; `None` for a stream that is not archived, or when nobody asked."""
    drift: list[str] = []
    """One `setting: is X, should be Y` per difference; empty when the stream is as declared."""
