"""What a run has left behind, read without the product's code: plain SQL, raw nats-py, Temporal's own result.

Only wire formats are known here: the seed's tables and message shape, our header names and the form of a task key.
"""

import asyncio
import contextlib
import hashlib
import json
import string
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import asyncpg
from nats.aio.client import Client as NatsConnection
from nats.js.errors import NotFoundError
from temporalio.client import Client, WorkflowFailureError

STREAMS = {
    "agog_features_research": "agog.deliverables.cynthia.research",
    "agog_features_critique": "agog.deliverables.sylvia.critique",
    "agog_features_backend": "agog.deliverables.roy.backend",
    "agog_features_frontend": "agog.deliverables.jen.frontend",
    "agog_features_qa": "agog.deliverables.billy.qa",
    "agog_features_statistics": "agog.deliverables.priya.statistics",
}
"""Stream → its subjects without the feature."""

Row = dict[str, Any]

PROJECTOR_SECONDS = 20.0
"""How long the table may lag behind the audit log after a death of the projector."""
POLL_SECONDS = 0.05
_PLAIN = frozenset(f"{string.ascii_lowercase}{string.digits}_-")


@dataclass(frozen=True)
class Run:
    """One use of a workflow id."""

    workflow_id: str
    first_run_id: str
    feature: str
    last_run_id: str = ""
    """Of the execution that has the result, when a reset has made another one."""

    @property
    def key(self) -> str:
        """The run key; task keys are this, a slash, and `<stage>-<round>`."""
        return f"{self.workflow_id}/{self.first_run_id}"


@dataclass(frozen=True)
class Message:
    """One deliverable as its stream holds it."""

    stream: str
    sequence: int
    task_key: str
    stated_sha256: str
    sha256: str
    size: int

    @property
    def ref(self) -> tuple[str, int, str]:
        """What a notice says of it."""
        return self.stream, self.sequence, self.sha256


@dataclass(frozen=True)
class Evidence:
    """Everything about one run."""

    run: Run
    result: Row | None
    """The workflow's result; `None` when it has none."""
    failure: str
    """Why it has none."""
    run_rows: list[Row]
    tasks: list[Row]
    """With `input_data` and `output_data` decoded."""
    events: list[Row]
    """Of the audit log, as they are stored, with their `sequence`."""
    projected: list[Row]
    """The table's."""
    turns: list[Row]
    messages: list[Message]
    """Of the run's feature: those of its other runs are among them."""

    @property
    def own_messages(self) -> list[Message]:
        """Those of this run."""
        return [message for message in self.messages if message.task_key.startswith(f"{self.run.key}/")]


class Investigator:
    """Collects evidence; reads only.

    Args:
        database_dsn: Opened anew for every collection, since tests kill the server.
        observer: A raw connection as `observer`.
        js_prefix: Of the JetStream API as the observer sees it.
        temporal: A client with the SDK's default converter.
    """

    def __init__(self, *, database_dsn: str, observer: NatsConnection, js_prefix: str, temporal: Client) -> None:
        self._dsn = database_dsn
        self._jetstream = observer.jetstream(prefix=js_prefix, timeout=10)
        self._temporal = temporal

    async def collect(self, run: Run) -> Evidence:
        """Read everything about a run that has ended."""
        result, failure = None, ""
        try:
            handle = self._temporal.get_workflow_handle(run.workflow_id, run_id=run.last_run_id or run.first_run_id)
            result = await handle.result()
        except WorkflowFailureError as error:
            failure = str(error.cause)
        messages = [message for stream in STREAMS for message in await self._messages(stream, run.feature)]
        connection = await asyncpg.connect(self._dsn)
        try:
            return Evidence(
                run=run,
                result=result,
                failure=failure,
                run_rows=await _rows(connection, "workflows WHERE workflow_id = $1", run.key),
                tasks=await _rows(connection, "task_executions WHERE workflow_id = $1 ORDER BY started_at", run.key),
                events=(events := await self._events(run.key)),
                projected=await _projected(connection, run.key, len(events)),
                turns=await _rows(
                    connection, "llm_turns WHERE starts_with(task_key, $1 || '/') ORDER BY task_key, turn", run.key
                ),
                messages=messages,
            )
        finally:
            await connection.close()

    async def _events(self, key: str) -> list[Row]:
        # `/` and whatever else is no plain character is `=HH` in a token.
        token = "".join(char if char in _PLAIN else f"={ord(char):02X}" for char in key)
        found: list[Row] = []
        sequence = 1
        while True:
            try:
                raw = await self._jetstream.get_msg(
                    "audit_log", seq=sequence, subject=f"agog.events.*.*.*.{token}", next=True
                )
            except NotFoundError:
                return found
            assert raw.seq is not None
            sequence = raw.seq + 1
            found.append(
                json.loads(raw.data or b"") | {"sequence": raw.seq, "message": (raw.headers or {})["Nats-Msg-Id"]}
            )

    async def _messages(self, stream: str, feature: str) -> list[Message]:
        found: list[Message] = []
        sequence = 1
        subject = f"{STREAMS[stream]}.{feature}"
        while True:
            try:
                raw = await self._jetstream.get_msg(stream, seq=sequence, subject=subject, next=True)
            except NotFoundError:
                return found
            assert raw.seq is not None
            sequence = raw.seq + 1
            headers, data = raw.headers or {}, raw.data or b""
            found.append(
                Message(
                    stream=stream,
                    sequence=raw.seq,
                    task_key=unquote(headers.get("Coatcheck-Task", "")),
                    stated_sha256=headers.get("Content-SHA256", ""),
                    sha256=hashlib.sha256(data).hexdigest(),
                    size=len(data),
                )
            )


async def _projected(connection: "asyncpg.Connection[asyncpg.Record]", key: str, wanted: int) -> list[Row]:
    """The table's rows of a run, when the projector has had the time to write them."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PROJECTOR_SECONDS):
            while (await connection.fetchval("SELECT count(*) FROM events WHERE workflow_id = $1", key)) < wanted:
                await asyncio.sleep(POLL_SECONDS)
    return await _rows(connection, "events WHERE workflow_id = $1", key)


async def _rows(connection: "asyncpg.Connection[asyncpg.Record]", what: str, key: str) -> list[Row]:
    rows = await connection.fetch(f"SELECT * FROM {what}", key)
    return [{name: _decoded(name, value) for name, value in row.items()} for row in rows]


def _decoded(name: str, value: Any) -> Any:
    return json.loads(value) if name in {"input_data", "output_data", "payload"} and value is not None else value
