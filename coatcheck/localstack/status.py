"""The status of a stack: what runs, where, and how to reach it. A public JSON contract (`coatcheck status --json`)."""

from datetime import datetime
from enum import StrEnum
from pathlib import Path

import psutil
from pydantic import BaseModel

STATUS_FILE = "status.json"
_SAME_START_SECONDS = 2.0
"""A process's start time is computed from the boot time, which moves when the clock is set; two processes with one
pid are further apart."""


class MemberState(StrEnum):
    """State of one server or worker."""

    STARTING = "starting"
    RUNNING = "running"
    BACKING_OFF = "backing_off"
    """It died and will be started again."""
    STOPPING = "stopping"
    STOPPED = "stopped"
    DEAD = "dead"
    """It is gone and its supervisor has not said so (yet)."""


class StackState(StrEnum):
    """State of the stack as a whole."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    """The start failed; `supervisor.error` says why."""
    CRASHED = "crashed"
    """The supervisor died without stopping its members; the next `up` or `down` ends them."""


class MemberStatus(BaseModel):
    """A server or a worker."""

    name: str
    pid: int | None = None
    create_time: float | None = None
    """Seconds since the epoch; with `pid` it names the process for ever."""
    state: MemberState = MemberState.STOPPED
    restarts: int = 0
    last_exit: str | None = None
    """How it last ended, like `exit code 1` or `killed by SIGKILL`."""
    log: Path
    metrics_url: str | None = None
    """Where a worker answers Prometheus; absent when the stack was started without metrics."""


class SupervisorStatus(BaseModel):
    """The process that watches the others."""

    pid: int | None = None
    create_time: float | None = None
    state: StackState
    started_at: datetime | None = None
    error: str | None = None


class TemporalStatus(BaseModel):
    """Temporal; `ui_url` is absent when the server is not ours."""

    address: str
    namespace: str
    ui_url: str | None
    cli: Path | None
    """Path of the `temporal` program."""
    ca_file: Path | None = None
    """Who has signed its certificate, when it speaks TLS and is ours."""


class NatsUserStatus(BaseModel):
    """How to connect as one NATS identity; either `password_file` or `nkey_file` is set."""

    account: str
    user: str
    password_file: Path | None = None
    nkey_file: Path | None = None
    inbox_prefix: str
    js_prefix: str


class NatsStatus(BaseModel):
    """NATS; every identity that the stack made keys for."""

    url: str
    monitor_url: str | None
    ca_file: Path | None = None
    """Who has signed its certificate, when it speaks TLS and is ours."""
    users: dict[str, NatsUserStatus]


class PostgresStatus(BaseModel):
    """PostgreSQL; DSNs with passwords, so the status file is 0600."""

    dsn: str
    gateway_dsn: str
    """As the role that may only journal turns."""
    superuser_dsn: str | None = None
    """Absent when the server is not ours."""


class PhoenixStatus(BaseModel):
    """Phoenix, where the traces of runs are looked at."""

    url: str


class StackStatus(BaseModel):
    """Everything that a person or a test needs to find its way in."""

    data_dir: Path
    config_file: Path | None = None
    """The `coatcheck.toml` that the stack was last started with; without one, the defaults are in force."""
    state: StackState
    supervisor: SupervisorStatus
    temporal: TemporalStatus | None = None
    nats: NatsStatus | None = None
    postgres: PostgresStatus | None = None
    phoenix: PhoenixStatus | None = None
    servers: list[MemberStatus] = []
    workers: list[MemberStatus] = []

    def member(self, name: str) -> MemberStatus:
        """The server or worker called `name`.

        Raises:
            KeyError: the stack has no such member.
        """
        for member in (*self.servers, *self.workers):
            if member.name == name:
                return member
        raise KeyError(name)


def alive(pid: int | None, create_time: float | None) -> bool:
    """Whether the process that was `pid` when it was recorded still runs (a zombie does not)."""
    if pid is None or create_time is None:
        return False
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - create_time) < _SAME_START_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def load_status(data_dir: Path) -> StackStatus:
    """Read the stack's status and correct it by what really runs.

    A stack that was never started is reported as stopped, without servers.
    """
    data_dir = data_dir.absolute()
    status = recorded_status(data_dir)
    supervised = alive(status.supervisor.pid, status.supervisor.create_time)
    for member in (*status.servers, *status.workers):
        if member.pid is not None and not alive(member.pid, member.create_time):
            member.pid = member.create_time = None
            member.state = MemberState.DEAD
        elif member.pid is None and not supervised:
            member.state = MemberState.STOPPED
    if not supervised and status.state in (StackState.STARTING, StackState.RUNNING, StackState.STOPPING):
        status.state = status.supervisor.state = StackState.CRASHED
    if not supervised:
        status.supervisor.pid = status.supervisor.create_time = None
    return status


def recorded_status(data_dir: Path) -> StackStatus:
    """What the last supervisor wrote, true or not any more."""
    path = data_dir / STATUS_FILE
    if not path.exists():
        stopped = SupervisorStatus(state=StackState.STOPPED)
        return StackStatus(data_dir=data_dir, state=StackState.STOPPED, supervisor=stopped)
    return StackStatus.model_validate_json(path.read_bytes())
