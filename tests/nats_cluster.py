"""Three nats-server processes on the loopback that run deploy/nats/cluster.conf, and the hands that kill them."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from coatcheck.localstack.binaries import script
from coatcheck.localstack.certificates import issue_certificates
from coatcheck.localstack.ports import LOOPBACK, held_ports
from coatcheck.messaging.accounts import ensure_keys, load_user, render_accounts
from coatcheck.messaging.client import NatsClient
from schemas.streams import AGENTS, STREAMS

CONFIGURATION = Path(__file__).parents[1] / "deploy" / "nats"
NODES = ("nats-1", "nats-2", "nats-3")
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.05


class Cluster:
    """The members by name; each has a store, a log and ports of its own. `tag` of each: `rack:<its name>`."""

    def __init__(self, folder: Path, ports: dict[str, int], agents: Sequence[str] = AGENTS) -> None:
        self._folder = folder
        self._ports = ports
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.keys_dir = folder / "keys"
        self.ca_file = issue_certificates(folder / "certs")[0]
        for name in ("nats-server.conf", "cluster.conf"):
            shutil.copyfile(CONFIGURATION / name, folder / name)
        users = ensure_keys(self.keys_dir, agents)
        (folder / "accounts.conf").write_text(render_accounts(users, STREAMS))

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


@contextmanager
def nats_cluster(folder: Path) -> Iterator[Cluster]:
    """Three healthy members; none is left in the end."""
    names = [name for node in NODES for name in (node, f"{node}-monitor", f"{node}-cluster")]
    with ExitStack() as stack:
        cluster = Cluster(folder, stack.enter_context(held_ports(folder / "ports.json", names)))
        stack.callback(cluster.close)
        cluster.start(*NODES)
        yield cluster
