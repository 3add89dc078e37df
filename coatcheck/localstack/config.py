"""What a stack is made of, and how its supervisor and the parent process of that speak.

Apart from the supervisor: who only looks at a stack does not load what runs one.
"""

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from coatcheck.localstack.status import STATUS_FILE
from coatcheck.localstack.workers import DEFAULT_WORKERS, WorkerSpec

ServerName = Literal["temporal", "nats", "postgres", "phoenix"]
SERVERS: Final[tuple[ServerName, ...]] = ("temporal", "nats", "postgres")
"""What every stack has, in the order in which they start; they stop in reverse."""
ALL_SERVERS: Final[tuple[ServerName, ...]] = (*SERVERS, "phoenix")
EXIT_FAILED: Final = 1
EXIT_DEPENDENCY_DOWN: Final = 3


class External(BaseModel):
    """Servers that already run and are used instead of our own."""

    model_config = ConfigDict(frozen=True)

    temporal_address: str | None = None
    temporal_namespace: str = "default"
    nats_url: str | None = None
    nats_monitor_url: str | None = None
    database_url: str | None = None
    gateway_database_url: str | None = None

    def has(self, server: ServerName) -> bool:
        """Whether `server` runs elsewhere."""
        addresses = {"temporal": self.temporal_address, "nats": self.nats_url, "postgres": self.database_url}
        return addresses.get(server) is not None


class StackConfig(BaseModel):
    """One stack; handed to the supervisor's process as JSON, on its standard input since it may hold passwords."""

    model_config = ConfigDict(frozen=True)

    data_dir: Path
    servers: tuple[ServerName, ...] = SERVERS
    """Which servers the stack has; for tests that need only some."""
    workers: tuple[WorkerSpec, ...] = DEFAULT_WORKERS
    env: dict[str, str] = {}
    """More environment for every worker."""
    external: External = External()
    config_file: Path | None = None
    """`coatcheck.toml`, absolute; the defaults when absent."""
    metrics: bool = False
    """Whether each worker offers its metrics to Prometheus, on a port of its own."""
    tls: bool = False
    """Whether clients of our servers speak TLS with them, by certificates of an authority in `certs_dir`."""
    nats_keys_dir: Path | None = None
    """`<data_dir>/nats/keys` when absent."""
    start_timeout_seconds: float = 60
    """For the servers together, and again for the workers. A first start takes about 3 s on two cores."""

    @property
    def keys_dir(self) -> Path:
        """Folder of the NATS keys and passwords."""
        return self.nats_keys_dir or self.data_dir / "nats" / "keys"

    @property
    def certs_dir(self) -> Path:
        """Folder of the authority and the servers' certificates, of a stack with TLS."""
        return self.data_dir / "certs"

    @property
    def ca_file(self) -> Path | None:
        """Whom clients trust; `None` without TLS."""
        return self.certs_dir / "ca.pem" if self.tls else None

    @property
    def status_file(self) -> Path:
        """The JSON form of `StackStatus`, rewritten on every change."""
        return self.data_dir / STATUS_FILE

    @property
    def logs_dir(self) -> Path:
        """One log per member, and the supervisor's own."""
        return self.data_dir / "logs"

    def managed(self, server: ServerName) -> bool:
        """Whether the stack runs `server` itself."""
        return server in self.servers and not self.external.has(server)


class Command(BaseModel):
    """What a parent process asks of one member; one JSON line each."""

    action: Literal["start", "stop"]
    member: str
