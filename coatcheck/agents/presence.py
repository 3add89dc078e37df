"""Presence: a worker of an agent says in the bucket `agent_state` that it lives and what it works on.

Off the hot path: a round only changes a dictionary, and one task in the background puts the entry, at most twice a
second and at least every 5 s. When NATS is away the work goes on, and the next beat that arrives tells how things are
then; nothing is queued. Several workers of one agent share its key by compare and set: whoever loses the race takes the
other's value and puts its own entry into that one. A worker that died is taken out by the others after a minute.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Generator
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

from pydantic import ValidationError

from coatcheck.errors import CoatcheckError, KeyChangedError
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.keyvalue import kv_get, kv_put
from schemas.agent_state import (
    HEARTBEAT_SECONDS,
    AgentState,
    AgentTask,
    AgentWorker,
    WorkerState,
    agent_key,
    shown_tasks,
)
from schemas.streams import AGENT_STATE

DEBOUNCE_SECONDS: Final = 0.5
"""Between two puts: an agent with 200 rounds in hand changes often, and a put costs the server a sync of its disk."""
STORE_SECONDS: Final = 2.0
"""Most time for one put; it takes 2 ms."""

_log = logging.getLogger(__name__)


class Presence:
    """One worker's entry; an async context manager that takes the entry out again at its end.

    Args:
        client: The agent's own identity.
        agent: Whose worker this is.
        version: Of the code that runs.
        heartbeat_seconds: Between two puts when nothing changes.
    """

    def __init__(
        self, client: NatsClient, agent: str, *, version: str, heartbeat_seconds: float = HEARTBEAT_SECONDS
    ) -> None:
        self.worker_id: Final = secrets.token_hex(6)
        """Made anew for every process; says nothing about host or process."""
        self._client = client
        self._agent = agent
        self._version = version
        self._heartbeat_seconds = heartbeat_seconds
        self._started_at = datetime.now(UTC)
        self._tasks: dict[object, AgentTask] = {}
        self._is_stopping = False
        self._state = (WorkerState.IDLE, self._started_at)
        """And since when."""
        self._known = AgentState()
        self._revision: int | None = None
        """Of `_known`; `None` before the bucket has been asked."""
        self._is_away = False
        self._changed = asyncio.Event()
        self._telling: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._telling = asyncio.create_task(self._tell(), name=f"presence-{self._agent}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
        await self._store(leaving=True)

    @contextlib.contextmanager
    def working(self, task: AgentTask) -> Generator[None]:
        """Say that the worker has that task in hand within the block; neither waits nor fails."""
        token = object()
        self._tasks[token] = task
        self._changed.set()
        try:
            yield
        finally:
            del self._tasks[token]
            self._changed.set()

    def stop(self) -> None:
        """Say that nothing new is begun."""
        self._is_stopping = True
        self._changed.set()

    async def _tell(self) -> None:
        while True:
            self._changed.clear()
            await self._store()
            await asyncio.sleep(DEBOUNCE_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_seconds - DEBOUNCE_SECONDS):
                    await self._changed.wait()

    async def _store(self, *, leaving: bool = False) -> None:
        """Put the entry, or take it out; a failure is logged once per outage, and the next beat tries again."""
        try:
            async with asyncio.timeout(STORE_SECONDS):
                await self._put(leaving=leaving)
        except (CoatcheckError, TimeoutError) as error:
            if not self._is_away:
                _log.warning("%s: its state is not told: %s", self._agent, error or type(error).__name__)
            self._is_away = True
        except Exception:  # noqa: BLE001  whatever it is, an agent that works unseen is better than one that does not
            _log.exception("%s: its state cannot be told", self._agent)
        else:
            self._is_away = False

    async def _put(self, *, leaving: bool) -> None:
        if self._revision is None:
            await self._read()
        while True:
            now = datetime.now(UTC)
            state = self._known.with_worker(self.worker_id, None if leaving else self._entry(now), now)
            try:
                self._revision = await kv_put(
                    self._client, AGENT_STATE, self._key, state.to_wire(), expected_revision=self._revision
                )
            except KeyChangedError:
                await self._read()
                continue
            self._known = state
            return

    async def _read(self) -> None:
        data, self._revision = await kv_get(self._client, AGENT_STATE, self._key) or (b"", 0)
        try:
            self._known = AgentState.model_validate_json(data) if data else AgentState()
        except ValidationError as error:  # written by another version; its workers will say themselves how they are
            _log.warning("%s: the stored state is not readable: %s", self._agent, error)
            self._known = AgentState()

    def _entry(self, now: datetime) -> AgentWorker:
        state = WorkerState.WORKING if self._tasks else WorkerState.IDLE
        state = WorkerState.STOPPING if self._is_stopping else state
        if state is not self._state[0]:
            self._state = (state, now)
        return AgentWorker(
            state=state,
            since=self._state[1],
            tasks=shown_tasks(self._tasks.values()),
            task_count=len(self._tasks),
            started_at=self._started_at,
            last_heartbeat=now,
            version=self._version,
        )

    @property
    def _key(self) -> str:
        return agent_key(self._agent)
