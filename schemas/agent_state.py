"""What an agent's workers say of themselves: the value of the key `agent.<agent>` in the bucket `agent_state`.

One key per agent, with an entry per worker process, so that the server's permissions can name the literal key that an
agent may put. The entries are a courtesy to people: nothing waits for them, and no decision rests on them alone.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from schemas.subjects import encode_token

HEARTBEAT_SECONDS: Final = 5.0
"""A worker says that it lives so often, whether anything has changed or not."""
AWAY_SECONDS: Final = 3 * HEARTBEAT_SECONDS
"""One late beat is a slow disk, three are a dead worker."""
FORGET_SECONDS: Final = 60.0
"""A worker that is silent so long is taken out by the next one that writes."""
MAX_TASKS: Final = 10
"""Tasks that an entry names; the others are counted. 10 take about 4 KB of the 64 KiB that a value may have."""
MAX_STATE_BYTES: Final = 56 * 1024

AGENT_PREFIX: Final = "agent."
MODEL_PREFIX: Final = "model."
SERVER_PREFIX: Final = "mcp."


class WorkerState(StrEnum):
    """What a worker says of itself."""

    IDLE = "idle"
    WORKING = "working"
    STOPPING = "stopping"
    """It finishes what it has and takes nothing new."""


class AgentTask(BaseModel):
    """One attempt at one round that a worker has in hand."""

    model_config = ConfigDict(frozen=True)

    task_key: str
    feature: str
    stage: str
    round: int
    attempt: int
    since: datetime


class AgentWorker(BaseModel):
    """One worker process of the agent, in its own words and by its own clock."""

    model_config = ConfigDict(frozen=True)

    state: WorkerState
    since: datetime
    """When it came into that state."""
    tasks: list[AgentTask] = []
    """The oldest ones, at most `MAX_TASKS`."""
    task_count: int = Field(0, ge=0)
    """Of all that it has in hand."""
    started_at: datetime
    last_heartbeat: datetime
    version: str

    def age(self, now: datetime) -> float:
        """Seconds since it last said anything; never negative, since clocks differ."""
        return max(0.0, (now - self.last_heartbeat) / timedelta(seconds=1))

    def is_away(self, now: datetime) -> bool:
        """Whether it has missed three beats: it died, it hangs, or it cannot reach NATS."""
        return self.age(now) > AWAY_SECONDS


class AgentState(BaseModel):
    """The whole value."""

    model_config = ConfigDict(frozen=True)

    workers: dict[str, AgentWorker] = {}
    """Worker id, which names neither a host nor a process, → entry."""

    def present(self, now: datetime) -> dict[str, AgentWorker]:
        """The workers that are not away."""
        return {name: worker for name, worker in self.workers.items() if not worker.is_away(now)}

    def with_worker(self, name: str, worker: AgentWorker | None, now: datetime) -> "AgentState":
        """The value with that entry put or, for `None`, taken out, and without those that are silent for too long."""
        kept = {
            other: entry for other, entry in self.workers.items() if other != name and entry.age(now) <= FORGET_SECONDS
        }
        return AgentState(workers=kept if worker is None else {**kept, name: worker})

    def to_wire(self) -> bytes:
        """JSON that fits into the bucket: with very many workers, tasks are counted and no longer named."""
        data = self.model_dump_json().encode()
        if len(data) <= MAX_STATE_BYTES:
            return data
        bare = {name: worker.model_copy(update={"tasks": []}) for name, worker in self.workers.items()}
        return AgentState(workers=bare).model_dump_json().encode()


def agent_key(agent: str) -> str:
    """The key of an agent; a slug needs no encoding."""
    return AGENT_PREFIX + agent


def shown_tasks(tasks: Iterable[AgentTask]) -> list[AgentTask]:
    """The tasks that an entry names: the oldest, which are the ones that people ask about."""
    return sorted(tasks, key=lambda task: task.since)[:MAX_TASKS]


def model_key(model: str) -> str:
    """The key of a model's breaker, which the gateway puts."""
    return breaker_key(MODEL_PREFIX, model)


def breaker_key(prefix: str, name: str) -> str:
    """The key of the breaker of a model or an MCP server, which the gateway puts."""
    return f"{prefix}{encode_token(name)}"
