"""Three servers, TLS for all: streams with replicas, and what becomes of acknowledged work when members go.

`make soak-cluster` does the same to whole runs, for minutes.
"""

import asyncio
import gc
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import nats
import pytest

from coatcheck.errors import CoatcheckError, ConfigError, MessagingUnavailableError, NotAuthorizedError
from coatcheck.localstack.certificates import issue_certificates
from coatcheck.localstack.ports import LOOPBACK
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.accounts import LOGS, PROJECTOR, load_user
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.connection import Connection
from coatcheck.messaging.consumer import BatchConsumer
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.messaging.events import EventLog
from coatcheck.messaging.keyvalue import kv_get, kv_put
from coatcheck.messaging.streams import check_sync_always, ensure_streams, stream_config, stream_statuses
from schemas.deliverable import DeliverableRef
from schemas.streams import AGENT_STATE, AGENT_STATE_STREAM, AUDIT_LOG, Placement, StreamSpec, artifact_stream
from schemas.streams import STREAMS as ALL_STREAMS
from tests.integration.event_samples import sample_events, sample_key
from tests.integration.nats_clients import deliverable, identity
from tests.nats_cluster import NODES, Cluster, leader_of, nats_cluster

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <StreamWriter:ResourceWarning")
"""nats-py drops the plain stream under a TLS connection unclosed when it reconnects."""

WRITERS = {"roy": "backend", "jen": "frontend"}
STREAMS = tuple(spec for spec in ALL_STREAMS if spec.agent in WRITERS)
WANTED = (*STREAMS, artifact_stream("roy"), AGENT_STATE_STREAM, *LOGS)
PROBE = StreamSpec(name="test_cluster", subjects=("test.cluster.>",), agent="core")
BETWEEN = 10
"""Deliverables that every writer has acknowledged between two blows: there is load before, meanwhile and after."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Whole again after each test."""
    with nats_cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started
    gc.collect()  # so that dropped streams are told of here, where it is known what to think of it


@pytest.fixture(scope="module")
async def core(cluster: Cluster) -> AsyncIterator[NatsClient]:
    """The core worker's client; streams of two agents, buckets and logs exist on all three members."""
    async with cluster.client("core") as client:
        await ensure_streams(client, WANTED, placement=Placement(replicas=3))
        yield client


# --- TLS ----------------------------------------------------------------------------------------------------------


async def test_another_authority_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """With a hint, and not as a server that is away; a file that is no certificate is told as such."""
    other = issue_certificates(tmp_path / "other")[0]
    with pytest.raises(NotAuthorizedError, match="not trusted") as refused:
        await cluster.client("roy", ca_file=other).__aenter__()
    assert "NATS_CA" in str(refused.value.hint)
    with pytest.raises(CoatcheckError, match="cannot be read as certificates"):
        await cluster.client("roy", ca_file=tmp_path / "none.pem").__aenter__()


async def test_nobody_gets_in_without_tls(cluster: Cluster) -> None:
    """The server says that it wants TLS, and closes on whoever goes on in the clear."""

    def in_the_clear() -> bytes:
        with socket.create_connection((LOOPBACK, cluster.port(NODES[0])), timeout=10) as plain:
            assert b'"tls_required":true' in plain.recv(4096)
            plain.sendall(b'CONNECT {"verbose":false}\r\nPING\r\n')
            said = b""
            while chunk := plain.recv(4096):
                said += chunk
        return said

    assert b"PONG" not in await asyncio.to_thread(in_the_clear)


async def test_nothing_is_said_to_a_server_without_tls(nats_server: NatsStatus, cluster: Cluster) -> None:
    """Not even the answer to its challenge: whoever sits in between could hand it on."""
    client = NatsClient(nats_server.url, user=identity(nats_server, "roy"), name="roy", ca_file=cluster.ca_file)
    with pytest.raises(MessagingUnavailableError):
        await client.__aenter__()


async def test_other_clients_are_told_of_tls_first(cluster: Cluster) -> None:
    """A plain nats-py client knows nothing of our handshake."""
    password = load_user(cluster.keys_dir, "observer").password
    assert password is not None
    raw = await nats.connect(
        cluster.url.split(","),
        user="observer",
        password=password.get_secret_value(),
        inbox_prefix="_INBOX_observer",
        tls=ssl.create_default_context(cafile=cluster.ca_file),
    )
    await raw.close()


async def test_nobody_becomes_a_member_without_a_certificate(cluster: Cluster, tmp_path: Path) -> None:
    """A member may read and write everything, so both sides show one of the same authority."""
    context = ssl.create_default_context(cafile=cluster.ca_file)
    stranger = issue_certificates(tmp_path / "other")[1]
    strange = ssl.create_default_context(cafile=cluster.ca_file)
    strange.load_cert_chain(stranger, stranger.with_suffix(".key"))
    member = ssl.create_default_context(cafile=cluster.ca_file)
    member.load_cert_chain(cluster.ca_file.with_name("nats.pem"), cluster.ca_file.with_name("nats.key"))

    def knock(context: ssl.SSLContext) -> bytes:
        """What the route port says of itself, after the handshake."""
        address = (LOOPBACK, cluster.route_port(NODES[0]))
        with (
            socket.create_connection(address, timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=LOOPBACK) as tls,
        ):
            return tls.recv(4096)

    for without in (context, strange):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(knock, without)
    assert b'"cluster":"coatcheck"' in await asyncio.to_thread(knock, member)


async def test_certificates_are_renewed_under_way(cluster: Cluster, core: NatsClient) -> None:
    """A second `coatcheck certs` and a reload: new connections see the new ones, the old connection goes on."""
    addresses = [(LOOPBACK, cluster.port(node)) for node in NODES]
    before = [await asyncio.to_thread(ssl.get_server_certificate, address) for address in addresses]
    issue_certificates(cluster.ca_file.parent)
    cluster.reload()
    async with asyncio.timeout(30):
        for address, old in zip(addresses, before, strict=True):
            while await asyncio.to_thread(ssl.get_server_certificate, address) == old:
                await asyncio.sleep(0.05)
    assert await core.max_message_bytes() > 0
    async with cluster.client("roy") as client:
        assert await client.max_message_bytes() > 0


# --- replicas -----------------------------------------------------------------------------------------------------


async def test_everything_has_three_replicas(cluster: Cluster, core: NatsClient) -> None:
    """Streams, buckets and the durable consumer, as the servers see it; and every server syncs every write."""
    await BatchConsumer(core, stream=AUDIT_LOG.name, name=PROJECTOR).rewind()
    infos = [await core.api(f"STREAM.INFO.{spec.name}") for spec in WANTED]
    infos.append(await core.api(f"CONSUMER.INFO.{AUDIT_LOG.name}.{PROJECTOR}"))
    for info in infos:
        members = {info["cluster"]["leader"], *(replica["name"] for replica in info["cluster"]["replicas"])}
        assert members == set(NODES), info
    assert [status.drift for status in await stream_statuses(core, WANTED)] == [[]] * len(WANTED)
    await check_sync_always(cluster.monitor_url)


async def test_a_stream_gets_more_replicas_and_never_fewer(core: NatsClient) -> None:
    """What was begun on one server becomes safe on three; a process that asks for one takes nothing away."""
    await ensure_streams(core, [PROBE])
    await core.publish("test.cluster.1", b"1", message_id="1", stream=PROBE.name)
    [before] = await stream_statuses(core, [PROBE], placement=Placement(replicas=3))
    assert before.drift == ["num_replicas: is 1, should be 3"]
    [grown] = await ensure_streams(core, [PROBE], placement=Placement(replicas=3))
    [again] = await ensure_streams(core, [PROBE])
    assert (grown.drift, again.drift, again.messages) == ([], [], 1)
    assert (await core.api(f"STREAM.INFO.{PROBE.name}"))["config"]["num_replicas"] == 3
    await core.api(f"STREAM.DELETE.{PROBE.name}")


async def test_streams_go_where_the_tags_are(core: NatsClient) -> None:
    """By `server_tags`; without enough servers that have them, the hint names the settings."""
    for node in NODES:
        await core.api(f"STREAM.CREATE.{PROBE.name}", stream_config(PROBE, placement=Placement(tags=(f"rack:{node}",))))
        assert (await core.api(f"STREAM.INFO.{PROBE.name}"))["cluster"]["leader"] == node
        await core.api(f"STREAM.DELETE.{PROBE.name}")
    with pytest.raises(ConfigError) as refused:
        await ensure_streams(core, [PROBE], placement=Placement(replicas=3, tags=("rack:nats-1",)))
    assert "COATCHECK_REPLICAS" in str(refused.value.hint)


async def test_one_server_takes_no_replicas(nats_server: NatsStatus) -> None:
    """Told as what it is: a setting that does not fit the servers."""
    async with NatsClient(nats_server.url, user=identity(nats_server, "core"), name="core") as single:
        with pytest.raises(ConfigError, match="10074") as refused:
            await ensure_streams(single, [PROBE], placement=Placement(replicas=3))
    assert "COATCHECK_REPLICAS" in str(refused.value.hint)


# --- members go ---------------------------------------------------------------------------------------------------


class Load:
    """Agents that publish and read back, and core that tells events; each remembers what was acknowledged to it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.refs: dict[str, DeliverableRef] = {}
        """Task key → the ticket."""
        self.events: set[str] = set()
        self.revisions: list[int] = []
        """Of one key, put with compare and set: a read that lags would be told apart by the next put."""
        self._progress = asyncio.Condition()
        self._over = False

    async def run(self) -> None:
        """Until `stop`."""
        async with asyncio.TaskGroup() as group:
            for agent, task_type in WRITERS.items():
                group.create_task(self._deliver(agent, task_type))
            group.create_task(self._tell())
            group.create_task(self._state())

    def stop(self) -> None:
        """End after what is under way."""
        self._over = True

    async def more(self) -> None:
        """Wait for so many more of each writer."""
        wanted = {agent: self._count(agent) + BETWEEN for agent in WRITERS}
        async with self._progress, asyncio.timeout(60):
            await self._progress.wait_for(lambda: all(self._count(agent) >= most for agent, most in wanted.items()))

    def _count(self, agent: str) -> int:
        return sum(key.startswith(agent) for key in self.refs)

    async def _deliver(self, agent: str, task_type: str) -> None:
        async with self._cluster.client(agent) as client:
            service = DeliverableService(client)
            for number in count():
                if self._over:
                    return
                key, feature = f"{agent}/run-{number}/{task_type}-1", f"load-{number % 7}"
                subject = f"agog.deliverables.{agent}.{task_type}.{feature}"
                body = deliverable(agent, task_type, feature, content=f"# {key}\n" + "x" * 5_000)
                stream = f"agog_features_{task_type}"
                published = await again(service.publish_report, body, task_key=key, stream=stream, subject=subject)
                stored = await again(service.fetch, published.ref)
                assert stored.task_key == key
                async with self._progress:
                    self.refs[key] = published.ref
                    self._progress.notify_all()

    async def _tell(self) -> None:
        async with self._cluster.client("core") as client:
            log = EventLog(client)
            for number in count(900_000):
                if self._over:
                    return
                batch = sample_events(sample_key(number), 5)
                await again(log.publish, batch)
                self.events |= {event.event_id for event in batch}

    async def _state(self) -> None:
        async with self._cluster.client("core") as client:
            while not self._over:
                entry = await again(kv_get, client, AGENT_STATE, "agent.load")
                if self.revisions:
                    assert entry is not None, "an acknowledged value was not read"
                    assert entry[1] >= self.revisions[-1], "a read lags behind what was acknowledged"
                revision = 0 if entry is None else entry[1]
                put = await again(kv_put, client, AGENT_STATE, "agent.load", b"1", expected_revision=revision)
                self.revisions.append(put)


async def again(call: Any, *arguments: Any, **named: Any) -> Any:
    """As Temporal does it with an activity: until it works, always the same call."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await call(*arguments, **named)
            except MessagingUnavailableError:
                await asyncio.sleep(0.05)


async def test_members_go_under_load(cluster: Cluster, core: NatsClient) -> None:
    """A leader is killed, a member stays away, all are restarted in turn: nothing lost, nothing twice."""
    load = Load(cluster)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        await load.more()
        killed = await leader_of(core, "agog_features_backend")
        cluster.kill(killed)
        await load.more()  # with two members left: loss of a leader, then loss of a node
        await asyncio.to_thread(cluster.start, killed)
        for node in NODES:
            await asyncio.to_thread(cluster.stop, node)
            await load.more()
            await asyncio.to_thread(cluster.start, node)
        await load.more()
        load.stop()
    await assert_all_there_once(cluster, core, load)


async def assert_all_there_once(cluster: Cluster, core: NatsClient, load: Load) -> None:
    """Every acknowledged message, read through the leader; each id once, as the streams themselves count it."""
    async with cluster.client("observer") as observer:
        service = DeliverableService(observer)
        for key, ref in load.refs.items():
            assert (await service.fetch(ref)).task_key == key
    for agent, task_type in WRITERS.items():
        keys = Counter(await headers(core, f"agog_features_{task_type}", "Coatcheck-Task"))
        acknowledged = {key for key in load.refs if key.startswith(f"{agent}/")}
        assert acknowledged <= keys.keys()
        assert set(keys.values()) == {1}
        assert len(keys) == len(acknowledged)
    events = Counter(await headers(core, AUDIT_LOG.name, "Nats-Msg-Id"))
    assert events.keys() == load.events
    assert set(events.values()) == {1}
    print(f"{len(load.refs)} deliverables, {len(events)} events, {len(load.revisions)} puts")


async def headers(client: NatsClient, stream: str, name: str) -> list[str]:
    """One header of all messages of a stream."""
    state = (await client.api(f"STREAM.INFO.{stream}"))["state"]
    messages = [await client.fetch_by_sequence(stream, number + 1) for number in range(state["last_seq"])]
    return [message.headers[name] for message in messages]


async def test_one_address_that_answers_is_enough(cluster: Cluster) -> None:
    """The first of several may be down; a message about all of them shows no password."""
    live = cluster.url.split(",")[2]
    async with cluster.client("roy", url=f"tls://{LOOPBACK}:1,{live}") as client:
        assert await client.max_message_bytes() > 0
    with pytest.raises(MessagingUnavailableError, match=r"127.0.0.1:1, 127.0.0.1:2 does not answer"):
        await Connection.open(
            "nats://user:secret@127.0.0.1:1, nats://127.0.0.1:2",
            user=None,
            name="nobody",
            timeout_seconds=1,
            on_closed=lambda: None,
        )
