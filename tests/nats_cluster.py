"""Three nats-server processes on the loopback that run deploy/nats/cluster.conf, and the hands that kill them."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from coatcheck.errors import MessagingUnavailableError
from coatcheck.localstack.binaries import script
from coatcheck.localstack.certificates import issue_certificates
from coatcheck.localstack.config import External, StackConfig
from coatcheck.localstack.nats import prepare
from coatcheck.localstack.ports import LOOPBACK, held_ports
from coatcheck.messaging.accounts import load_user
from coatcheck.messaging.client import NatsClient

CLUSTER_CONF = Path(__file__).parents[1] / "deploy" / "nats" / "cluster.conf"
NODES = ("nats-1", "nats-2", "nats-3")
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.05


class Cluster:
    """The members by name; each has a store, a log and ports of its own, and its name as tag: `rack:nats-1`.

    A stack with the same `data_dir` has the same accounts and keys, since the same code has written them.
    """

    def __init__(self, data_dir: Path, ports: dict[str, int], config_file: Path | None = None) -> None:
        config = StackConfig(data_dir=data_dir, config_file=config_file)
        prepare(config)
        self._folder = data_dir / "nats"
        self._ports = ports
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.keys_dir = config.keys_dir
        self.ca_file = issue_certificates(self._folder / "certs")[0]
        shutil.copyfile(CLUSTER_CONF, self._folder / CLUSTER_CONF.name)

    @property
    def url(self) -> str:
        """As `NATS_URL` takes it."""
        return ",".join(f"tls://{LOOPBACK}:{self._ports[node]}" for node in NODES)

    @property
    def monitor_url(self) -> str:
        """As `NATS_MONITOR_URL` takes it."""
        return ",".join(f"http://{LOOPBACK}:{self._ports[f'{node}-monitor']}" for node in NODES)

    @property
    def environment(self) -> dict[str, str]:
        """What tells a worker about this cluster."""
        return {"NATS_CA": str(self.ca_file), "COATCHECK_REPLICAS": "3"}

    @property
    def external(self) -> External:
        """What tells a stack about it."""
        return External(nats_url=self.url, nats_monitor_url=self.monitor_url)

    def port(self, node: str) -> int:
        """Where a member takes clients."""
        return self._ports[node]

    def route_port(self, node: str) -> int:
        """Where a member takes other members."""
        return self._ports[f"{node}-cluster"]

    def client(self, name: str, *, url: str | None = None, ca_file: Path | None = None) -> NatsClient:
        """Our client as one of the identities, not connected yet."""
        user = load_user(self.keys_dir, name)
        return NatsClient(url or self.url, user=user, name=name, ca_file=ca_file or self.ca_file)

    def start(self, *nodes: str) -> None:
        """Start members and wait until each has caught up with the others."""
        for node in nodes:
            self._spawn(node)
        for node in nodes:
            self._wait(node, lambda node=node: self.healthy(node), "healthy")  # type: ignore[misc]

    def kill(self, node: str) -> None:
        """`kill -9`."""
        self._end(node, signal.SIGKILL)

    def stop(self, node: str) -> None:
        """In order, as a rolling restart does it."""
        self._end(node, signal.SIGTERM)

    def reload(self) -> None:
        """Let every member read its configuration and its certificates anew."""
        for process in self._processes.values():
            process.send_signal(signal.SIGHUP)

    def close(self) -> None:
        """End all."""
        for node in list(self._processes):
            self.kill(node)

    def healthy(self, node: str) -> bool:
        """Whether a member takes clients and its streams are up to date."""
        try:
            return self.monitor(node, "/healthz")["status"] == "ok"
        except (OSError, ValueError):
            return False

    def monitor(self, node: str, path: str) -> dict[str, Any]:
        """What a member's monitor says."""
        connection = HTTPConnection(LOOPBACK, self._ports[f"{node}-monitor"], timeout=2)
        try:
            connection.request("GET", path)
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return answer

    def _spawn(self, node: str) -> None:
        store = self._folder / node
        store.mkdir(exist_ok=True)
        certs = self.ca_file.parent
        routes = [f"nats://{LOOPBACK}:{self._ports[f'{other}-cluster']}" for other in NODES]
        quoted = {
            "NATS_SERVER_NAME": node,
            "NATS_HOST": LOOPBACK,
            "NATS_MONITOR": f"{LOOPBACK}:{self._ports[f'{node}-monitor']}",
            "NATS_STORE_DIR": str(store),
            "NATS_TLS_CERT": str(certs / "nats.pem"),
            "NATS_TLS_KEY": str(certs / "nats.key"),
            "NATS_TLS_CA": str(self.ca_file),
            "NATS_CLUSTER": f"{LOOPBACK}:{self._ports[f'{node}-cluster']}",
            "NATS_ADVERTISE": f"{LOOPBACK}:{self._ports[node]}",
            "NATS_ROUTES": routes,
            "NATS_TAG": f"rack:{node}",
        }
        plain = {"NATS_PORT": str(self._ports[node]), "NATS_MAX_FILE_STORE": "64GB"}
        variables = plain | {name: json.dumps(value) for name, value in quoted.items()}
        with (store / "log").open("ab") as log:
            self._processes[node] = subprocess.Popen(
                [script("nats-server"), "--config", self._folder / "cluster.conf"],
                env={"PATH": os.environ["PATH"], **variables},
                stdout=log,
                stderr=log,
            )

    def _end(self, node: str, number: signal.Signals) -> None:
        process = self._processes.pop(node)
        process.send_signal(number)
        process.wait(PATIENCE_SECONDS)

    def _wait(self, node: str, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline or self._processes[node].poll() is not None:
                log = (self._folder / node / "log").read_text()[-4000:]
                raise AssertionError(f"{node} is not {what}:\n{log}")
            time.sleep(POLL_SECONDS)


async def leader_of(client: NatsClient, stream: str) -> str:
    """Who leads a stream; waits for an election."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            with suppress(MessagingUnavailableError):
                if leader := (await client.api(f"STREAM.INFO.{stream}"))["cluster"].get("leader"):
                    return str(leader)
            await asyncio.sleep(POLL_SECONDS)


@contextmanager
def nats_cluster(data_dir: Path, config_file: Path | None = None) -> Iterator[Cluster]:
    """Three healthy members; none is left in the end."""
    data_dir.mkdir(mode=0o700, exist_ok=True)
    names = [name for node in NODES for name in (node, f"{node}-monitor", f"{node}-cluster")]
    with ExitStack() as stack:
        ports = stack.enter_context(held_ports(data_dir / "cluster-ports.json", names))
        cluster = Cluster(data_dir, ports, config_file)
        stack.callback(cluster.close)
        cluster.start(*NODES)
        yield cluster
