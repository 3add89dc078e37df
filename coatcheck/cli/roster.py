"""What is known of every agent: the bucket `agent_state`, read once and kept up to date by what the server repeats.

No consumer and no polling: a change arrives on a plain subject (`kv_follow`). What is repeated while a connection is
away is lost, so everything is read again after a reconnect, and when nothing has been heard for longer than healthy
workers are ever silent.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Literal, Self, TypeVar

from pydantic import BaseModel, ValidationError

from coatcheck.errors import CoatcheckError
from coatcheck.gateway.breaker import BreakerState
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.connection import Connection
from coatcheck.messaging.keyvalue import kv_follow, kv_get
from schemas.agent_state import (
    AGENT_PREFIX,
    AWAY_SECONDS,
    MODEL_PREFIX,
    AgentState,
    AgentTask,
    AgentWorker,
    WorkerState,
    agent_key,
    model_key,
)
from schemas.config import Config
from schemas.roles import Role
from schemas.streams import AGENT_STATE, kv_stream_name, kv_subject
from schemas.subjects import decode_token

READ_SECONDS: Final = 3.0
"""For reading every key; it takes 10 ms."""
SILENCE_SECONDS: Final = AWAY_SECONDS
"""So long nothing is heard only when every worker is away, or NATS is and has not said so."""

State = Literal["working", "idle", "stopping", "away", "none"]
_Value = TypeVar("_Value", bound=BaseModel)


class AgentLine(BaseModel):
    """One agent, as a person wants to see it."""

    agent: str
    role: str
    """Its task type."""
    state: State
    """That of its busiest worker; `away`: every worker is silent for 15 s; `none`: no worker has said anything."""
    tasks: list[AgentTask] = []
    """What its present workers have in hand, the oldest first; of a very long list only the beginning."""
    task_count: int = 0
    since: datetime | None = None
    """When the oldest task in hand began, or else since when its present workers have been as they are."""
    breakers: dict[str, str] = {}
    """Model of its chain → `closed`, or what keeps it from being asked."""
    last_heartbeat: datetime | None = None
    workers_present: int = 0
    workers_away: int = 0
    warning: str | None = None


class Roster:
    """An async context manager that follows the bucket.

    Args:
        client: An identity that may read and follow the bucket: the observer or core.
        team: Whose agents are shown.
        models: The chain of roles that name none; when empty, every model that the bucket knows.
    """

    def __init__(self, client: NatsClient, team: Config, models: Sequence[str]) -> None:
        self.changed = asyncio.Event()
        """Set by every change; whoever waits for it clears it."""
        self._client = client
        self._team = team
        self._models = tuple(models)
        self._values: dict[str, tuple[bytes, int]] = {}
        """Key → value and revision."""
        self._confirmed = time.monotonic()
        """When the bucket last said anything."""
        self._link: Connection | None = None
        self._reconnects = 0

    async def __aenter__(self) -> Self:
        self._subscription = await kv_follow(self._client, AGENT_STATE, self._hear)
        await self._client.on_connect(self._connected)
        self._reconnects = self._count_reconnects()
        await self.read()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client.remove_hook(self._connected)
        with contextlib.suppress(CoatcheckError):
            await self._client.unsubscribe(self._subscription)

    async def read(self) -> None:
        """Read every key.

        Raises:
            MessagingUnavailableError: NATS does not answer.
            StreamMissingError: there is no such bucket.
            NotAuthorizedError: this identity may not read it.
        """
        keys = [*(agent_key(agent) for agent in self._team.agents), *await self._model_keys()]
        before = dict(self._values)
        found = await asyncio.gather(*(kv_get(self._client, AGENT_STATE, key) for key in keys))
        for key, value in zip(keys, found, strict=True):
            was_heard_meanwhile = self._values.get(key) is not before.get(key)
            if not was_heard_meanwhile and value != before.get(key):
                self._values.pop(key, None)
                if value is not None:
                    self._values[key] = value
                self.changed.set()
        self._confirmed = time.monotonic()

    async def keep_up(self) -> bool:
        """Read again if something may have been missed; whether what is known is up to date."""
        reconnects = self._count_reconnects()
        if reconnects == self._reconnects and time.monotonic() - self._confirmed < SILENCE_SECONDS:
            return self._link is None or self._link.raw.is_connected
        try:
            async with asyncio.timeout(READ_SECONDS):
                await self.read()
        except (CoatcheckError, TimeoutError):
            return False
        self._reconnects = reconnects
        return True

    @property
    def age_seconds(self) -> float:
        """How old what is known may be."""
        return time.monotonic() - self._confirmed

    def lines(self, now: datetime | None = None) -> list[AgentLine]:
        """Every agent of the team, in its order."""
        now = now or datetime.now(UTC)
        return [self._line(role, now) for role in self._team.roles.values()]

    def _line(self, role: Role, now: datetime) -> AgentLine:
        workers = self._value(agent_key(role.agent), AgentState, AgentState()).workers
        present = [worker for worker in workers.values() if not worker.is_away(now)]
        tasks = sorted((task for worker in present for task in worker.tasks), key=lambda task: task.since)
        begun = [task.since for task in tasks[:1]] or sorted(worker.since for worker in present)
        return AgentLine(
            agent=role.agent,
            role=role.task_type,
            state=_state(present, workers),
            tasks=tasks,
            task_count=sum(worker.task_count for worker in present),
            since=begun[0] if begun else None,
            breakers={model: self._breaker(model, now) for model in self._chain(role)},
            last_heartbeat=max((worker.last_heartbeat for worker in workers.values()), default=None),
            workers_present=len(present),
            workers_away=len(workers) - len(present),
        )

    def _chain(self, role: Role) -> Sequence[str]:
        if role.kind == "command":
            return ()
        return role.models or self._models or [name for key in sorted(self._values) if (name := _model_of(key))]

    def _breaker(self, model: str, now: datetime) -> str:
        breaker = self._value(model_key(model), BreakerState, BreakerState())
        if breaker.closed():
            return "closed"
        left = max(0.0, breaker.until - now.timestamp())
        return f"{breaker.state} for {left:.0f} s ({breaker.cause})" if breaker.state == "open" else "half_open"

    def _value(self, key: str, kind: type[_Value], default: _Value) -> _Value:
        data, _ = self._values.get(key, (b"", 0))
        try:
            return kind.model_validate_json(data) if data else default
        except ValidationError:  # written by another version
            return default

    async def _model_keys(self) -> list[str]:
        """Of the chains, and of every other model in the bucket: the proxy's own chain is known to nobody else."""
        chains = {model for role in self._team.roles.values() for model in (role.models or self._models)}
        info = await self._client.api(
            f"STREAM.INFO.{kv_stream_name(AGENT_STATE)}",
            {"subjects_filter": kv_subject(AGENT_STATE, f"{MODEL_PREFIX}>")},
        )
        stored = {subject.removeprefix(kv_subject(AGENT_STATE, "")) for subject in info["state"].get("subjects", {})}
        return sorted(stored | {model_key(model) for model in chains})

    async def _connected(self, connection: Connection) -> None:
        self._link = connection
        self._reconnects = -1  # whatever was repeated before this connection is lost

    def _count_reconnects(self) -> int:
        return self._link.raw.stats["reconnects"] if self._link is not None else 0

    async def _hear(self, key: str, data: bytes, revision: int) -> None:
        self._confirmed = time.monotonic()
        self._learn(key, data, revision)

    def _learn(self, key: str, data: bytes, revision: int) -> None:
        if key.startswith((AGENT_PREFIX, MODEL_PREFIX)) and revision > self._values.get(key, (b"", 0))[1]:
            self._values[key] = (data, revision)
            self.changed.set()


def _state(present: Sequence[AgentWorker], workers: Mapping[str, AgentWorker]) -> State:
    if not present:
        return "away" if workers else "none"
    states = {worker.state for worker in present}
    if WorkerState.WORKING in states:
        return "working"
    return "idle" if WorkerState.IDLE in states else "stopping"


def _model_of(key: str) -> str | None:
    if not key.startswith(MODEL_PREFIX):
        return None
    with contextlib.suppress(ValueError):  # a long name cannot be read from its key
        return decode_token(key.removeprefix(MODEL_PREFIX))
    return None
