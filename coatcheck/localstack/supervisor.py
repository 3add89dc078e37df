"""The supervisor: starts servers, then workers, keeps them alive, and stops them in reverse.

One asyncio loop in one process. Everything it knows is in the status file after every change, so that anybody can
look, and the next supervisor can clean up after one that was killed.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import psutil

from coatcheck.config import load_config
from coatcheck.errors import CoatcheckError, DependencyDownError
from coatcheck.localstack import nats, phoenix, postgres, prometheus, temporal, tls_front
from coatcheck.localstack.certificates import issue_certificates
from coatcheck.localstack.config import ALL_SERVERS, ServerName, StackConfig
from coatcheck.localstack.connect import Connections, describe
from coatcheck.localstack.files import private_dir, write_private
from coatcheck.localstack.leftovers import MARK, end_leftovers
from coatcheck.localstack.lock import stack_lock
from coatcheck.localstack.member import Member, MemberSpec
from coatcheck.localstack.ports import LOOPBACK, held_ports
from coatcheck.localstack.status import StackState, StackStatus, SupervisorStatus
from coatcheck.localstack.workers import WorkerSpec, worker_environment
from coatcheck.storage.migrate import migrate
from coatcheck.telemetry.log_lines import readable

_MAX_FAILED_STARTS: Final = 3
"""Then the first start of the stack gives up. Later, a member is started again for ever."""
_TAIL_LINES: Final = 15
_LOG_CHECK_SECONDS: Final = 5.0
_SERVER_VARIABLES: Final = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR")
_PORTS: Final[Mapping[ServerName, tuple[str, ...]]] = {
    "temporal": temporal.PORTS,
    "nats": nats.PORTS,
    "postgres": postgres.PORTS,
    "phoenix": phoenix.PORTS,
}


_UNNEEDED: Final[frozenset[ServerName]] = frozenset({"phoenix"})
"""Nothing waits for these: Phoenix takes 10 s to start, and 90 s on a busy machine."""


class Supervisor:
    """Runs one stack until it is told to stop."""

    def __init__(self, config: StackConfig, *, say: Callable[[str], None]) -> None:
        self._config = config
        self._say = say
        self._servers: list[Member] = []
        self._workers: list[Member] = []
        me = SupervisorStatus(
            pid=os.getpid(),
            create_time=psutil.Process().create_time(),
            state=StackState.STARTING,
            started_at=datetime.now(UTC),
        )
        self._status = StackStatus(
            data_dir=config.data_dir, config_file=config.config_file, state=StackState.STARTING, supervisor=me
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Start everything, keep it alive until `stop` is set, stop everything.

        Raises:
            StackLockedError: another supervisor runs this stack.
            DependencyDownError: a server or worker did not start; the message has the end of its log.
            CoatcheckError: a migration failed.
        """
        private_dir(self._config.data_dir)
        with stack_lock(self._config.data_dir):
            if ended := await asyncio.to_thread(end_leftovers, self._config.data_dir):
                self._say(f"ended what an earlier supervisor left behind: {', '.join(ended)}")
            names = [name for server in self._managed() for name in _PORTS[server]]
            if self._config.tls:
                names += [port for server, port in tls_front.PORTS.items() if server in self._managed()]
            if self._config.metrics:
                names += [prometheus.port_name(worker.name) for worker in self._config.workers]
            with held_ports(self._config.data_dir / "ports.json", names) as ports:
                await self._run(ports, stop)

    def member(self, name: str) -> Member:
        """The member called `name`.

        Raises:
            KeyError: there is none.
        """
        return {member.spec.name: member for member in (*self._servers, *self._workers)}[name]

    async def _run(self, ports: Mapping[str, int], stop: asyncio.Event) -> None:
        error: str | None = None
        try:
            async with _interrupted_by(stop):
                await self._start(ports)
                self._set(StackState.RUNNING)
                self._say(_ready_line(self._status))
                await self._bound_logs()
        except CoatcheckError as failed:
            error = str(failed)
            raise
        finally:
            self._set(StackState.STOPPING)
            await self._stop()
            self._status.supervisor.error = error
            self._set(StackState.FAILED if error else StackState.STOPPED)

    async def _start(self, ports: Mapping[str, int]) -> None:
        config = self._config
        if config.tls:
            await asyncio.to_thread(issue_certificates, config.certs_dir)
        connections = await asyncio.to_thread(describe, config, ports)
        self._status.temporal, self._status.nats, self._status.postgres = (
            connections.temporal,
            connections.nats,
            connections.postgres,
        )
        self._status.phoenix = connections.phoenix
        self._servers = [self._member(self._server(name, ports)) for name in self._managed()]
        if config.tls and ports.keys() & set(tls_front.PORTS.values()):
            front = tls_front.member(config.certs_dir, ports, self._server_env())
            self._servers.append(self._member(front))
        for server in self._servers:
            server.start()
        await self._bring_up([server for server in self._servers if server.spec.name not in _UNNEEDED])
        if config.managed("postgres"):
            await asyncio.to_thread(postgres.ensure_database, config.data_dir, ports["postgres"], self._server_env())
        if connections.postgres is not None:
            await asyncio.to_thread(migrate, connections.postgres.dsn)
        self._workers = [self._member(self._worker(spec, connections, ports)) for spec in config.workers]
        if config.metrics:
            await asyncio.to_thread(self._offer_metrics, ports)
        await self._bring_up(self._workers)

    def _offer_metrics(self, ports: Mapping[str, int]) -> None:
        offered = {worker.spec.name: ports[prometheus.port_name(worker.spec.name)] for worker in self._workers}
        prometheus.prepare(self._config.data_dir, offered)
        for worker in self._workers:
            worker.status.metrics_url = prometheus.metrics_url(offered[worker.spec.name])

    async def _stop(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self._workers))
        for server in reversed(self._servers):
            await server.stop()
        # Also a worker's children that lead sessions of their own.
        await asyncio.to_thread(end_leftovers, self._config.data_dir)

    async def _bring_up(self, members: Sequence[Member]) -> None:
        for member in members:
            member.start()
        try:
            async with asyncio.timeout(self._config.start_timeout_seconds), asyncio.TaskGroup() as group:
                for member in members:
                    group.create_task(_first_ready(member))
        except TimeoutError:
            slow = next(member for member in members if not member.up.is_set())
            seconds = self._config.start_timeout_seconds
            raise _not_started(slow, f"was not ready within {seconds:g} s") from None
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    def _managed(self) -> list[ServerName]:
        return [name for name in ALL_SERVERS if self._config.managed(name)]

    def _server(self, name: ServerName, ports: Mapping[str, int]) -> MemberSpec:
        if name == "nats" and self._config.tls:
            return nats.member(self._config.data_dir, ports, self._server_env(), certs=self._config.certs_dir)
        module = {"temporal": temporal, "nats": nats, "postgres": postgres, "phoenix": phoenix}[name]
        spec: MemberSpec = module.member(self._config.data_dir, ports, self._server_env())
        return spec

    def _server_env(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in _SERVER_VARIABLES if name in os.environ}
        return kept | {MARK: str(self._config.data_dir)}

    def _worker(self, spec: WorkerSpec, connections: Connections, ports: Mapping[str, int]) -> MemberSpec:
        ready_file = private_dir(self._config.data_dir / "run") / f"{spec.name}.ready"
        told = connections.variables() | {
            "COATCHECK_DATA_DIR": str(self._config.data_dir),
            # Empty rather than absent: the variable of the environment that we were started in is not ours.
            "COATCHECK_CONFIG": str(self._config.config_file or ""),
            "COATCHECK_NATS_KEYS_DIR": str(self._config.keys_dir),
            "COATCHECK_READY_FILE": str(ready_file),
            "OTEL_EXPORTER_PROMETHEUS_HOST": LOOPBACK,
            "OTEL_EXPORTER_PROMETHEUS_PORT": str(ports.get(prometheus.port_name(spec.name), "")),
            MARK: str(self._config.data_dir),
        }
        team = load_config(self._config.config_file)
        return MemberSpec(
            name=spec.name,
            argv=spec.argv,
            env=worker_environment(spec, told, self._config.env, team),
            ready=partial(_exists, ready_file),
            before_start=partial(ready_file.unlink, missing_ok=True),
            grace_seconds=spec.grace_seconds,
        )

    def _member(self, spec: MemberSpec) -> Member:
        log = self._config.logs_dir / f"{spec.name}.log"
        return Member(spec, log=log, say=self._say, changed=self._write)

    async def _bound_logs(self) -> None:
        while True:
            await asyncio.sleep(_LOG_CHECK_SECONDS)
            for member in (*self._servers, *self._workers):
                await asyncio.to_thread(member.bound_log)

    def _set(self, state: StackState) -> None:
        self._status.state = self._status.supervisor.state = state
        self._write()

    def _write(self) -> None:
        self._status.servers = [member.status for member in self._servers]
        self._status.workers = [member.status for member in self._workers]
        write_private(self._config.status_file, self._status.model_dump_json(indent=2))


@contextlib.asynccontextmanager
async def _interrupted_by(stop: asyncio.Event) -> AsyncIterator[None]:
    """Cancel the body as soon as `stop` is set, and end normally then."""
    body = asyncio.current_task()
    assert body is not None

    async def watch() -> None:
        await stop.wait()
        body.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        body.uncancel()
    finally:
        watcher.cancel()


async def _first_ready(member: Member) -> None:
    while not member.up.is_set():
        if member.failed_starts >= _MAX_FAILED_STARTS:
            raise _not_started(member, f"failed to start ({member.status.last_exit})")
        await member.wait_change()


def _not_started(member: Member, what: str) -> DependencyDownError:
    log = member.status.log
    tail = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:] if log.exists() else []
    text = "".join(f"\n  | {line}" for entry in tail for line in readable(entry).splitlines())
    return DependencyDownError(f"{member.spec.name} {what}; the end of {log}:{text}")


def _ready_line(status: StackStatus) -> str:
    places = [
        f"Temporal {status.temporal.address}" if status.temporal else "",
        f"its UI {status.temporal.ui_url}" if status.temporal and status.temporal.ui_url else "",
        f"NATS {status.nats.url}" if status.nats else "",
        f"Phoenix {status.phoenix.url}" if status.phoenix else "",
        f"{len(status.workers)} workers" if status.workers else "",
    ]
    return f"ready: {', '.join(filter(None, places))}"


async def _exists(path: Path) -> bool:
    return await asyncio.to_thread(path.exists)
