"""Attacks: what an agent's identity, the observer's and the gateway's try beyond their rights.

Two things must hold for each step: nothing arrives (no stream changes, no listener hears anything), and our own client
says so with a typed error at once instead of running into a time-out.
"""

import contextlib
import functools
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from coatcheck.errors import DeliverableNotFoundError, MessagingUnavailableError, NotAuthorizedError
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.accounts import LOGS, ensure_keys
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.messaging.service import serve
from schemas.streams import AGENTS, STREAMS, bucket_streams
from tests.integration.nats_clients import client_as, deliverable, raw_client_as

RESEARCH = "agog_features_research"
BACKEND = "agog_features_backend"
EVIL_STREAM = {"name": "EVIL", "subjects": ["agog.deliverables.>"], "storage": "memory"}
EVIL_CONSUMER = {
    "stream_name": RESEARCH,
    "config": {"durable_name": "evil", "ack_policy": "explicit", "deliver_subject": "agog.deliverables.cynthia.evil"},
}

FOREIGN_SUBJECTS = [
    "agog.deliverables.cynthia.research.customer-search",
    "agog.deliverables.sylvia.critique.customer-search",
    "agog.deliverables.ROY.backend.customer-search",
    "agog.events.agent.cynthia.stage-completed.run-1",
    "agog.events.system.core.run-completed.run-1",
    "agog.events.agent.roy.tool-completed.run-1",
    "agog.events.judge.judge.judge-scored.run-1",
    "agog.live.events.system.core.run-completed.run-1",
    "agog.dead.events-projector",
    "agog.svc.events.cynthia",
    "agog.svc.events.core",
    "agog.svc.archive.cynthia",
    "agog.svc.archive.core",
    "agog.svc.llm.cynthia",
    "agog.svc.ledger.pay.cynthia",
    "_INBOX_cynthia.abc",
    "_INBOX.abc",
    "_R_.abc",
    "$KV.agent_state.cynthia.balance",
    "$KV.agent_state.agent.cynthia",
    "$KV.agent_state.agent.roy.more",
    "$KV.agent_state.model.x",
    "agog.kv.agent_state.model.x",
    "$O.artifacts_cynthia.C.x",
    "$O.artifacts_cynthia.M.x",
    "$O.artifacts_roy",
    "$O.artifacts_roy2.M.x",
    "$JS.ACK.agog_features_research.evil.1.1.1.1.0",
    "$JS.FC.agog_features_research.evil.x",
    "$SRV.PING",
    "$SRV.INFO.llm",
    "$SYS.REQ.SERVER.PING",
    "$SYS.REQ.ACCOUNT.PING.CONNZ",
    "$SYS.REQ.USER.INFO",
]
MANAGEMENT: list[tuple[str, dict[str, Any]]] = [
    (f"STREAM.PURGE.{RESEARCH}", {}),
    (f"STREAM.DELETE.{RESEARCH}", {}),
    (f"STREAM.UPDATE.{RESEARCH}", {"name": RESEARCH, "subjects": ["agog.deliverables.roy.steal.>"]}),
    (f"STREAM.MSG.DELETE.{RESEARCH}", {"seq": 1}),
    (f"STREAM.PURGE.{BACKEND}", {}),
    (f"STREAM.DELETE.{BACKEND}", {}),
    ("STREAM.CREATE.EVIL", EVIL_STREAM),
    (f"STREAM.SNAPSHOT.{RESEARCH}", {"deliver_subject": "_INBOX_roy.snap"}),
    ("STREAM.RESTORE.EVIL", {"config": EVIL_STREAM}),
    (f"STREAM.LEADER.STEPDOWN.{RESEARCH}", {}),
    (f"CONSUMER.CREATE.{RESEARCH}", EVIL_CONSUMER),
    (f"CONSUMER.CREATE.{RESEARCH}.evil", EVIL_CONSUMER),
    (f"CONSUMER.DURABLE.CREATE.{RESEARCH}.evil", EVIL_CONSUMER),
    (f"CONSUMER.DELETE.{RESEARCH}.archiver", {}),
    (f"CONSUMER.LIST.{RESEARCH}", {}),
    (f"CONSUMER.MSG.NEXT.{RESEARCH}.archiver", {"batch": 1}),
    (f"DIRECT.GET.{RESEARCH}", {"seq": 1}),
    (f"DIRECT.GET.{RESEARCH}.agog.deliverables.cynthia.research.customer-search", {}),
    ("STREAM.PURGE.KV_agent_state", {}),
    ("STREAM.MSG.DELETE.KV_agent_state", {"seq": 1}),
    ("DIRECT.GET.KV_agent_state", {"seq": 1}),
    ("CONSUMER.CREATE.KV_agent_state", {"stream_name": "KV_agent_state", "config": {"ack_policy": "none"}}),
    ("STREAM.PURGE.OBJ_artifacts_roy", {}),
    ("STREAM.PURGE.OBJ_artifacts_cynthia", {"filter": "$O.artifacts_cynthia.M.>"}),
    ("STREAM.DELETE.OBJ_artifacts_roy", {}),
    ("STREAM.MSG.DELETE.OBJ_artifacts_roy", {"seq": 1}),
    ("STREAM.UPDATE.OBJ_artifacts_roy", {"name": "OBJ_artifacts_roy", "subjects": ["$O.>"]}),
    ("CONSUMER.CREATE.OBJ_artifacts_cynthia", {"stream_name": "OBJ_artifacts_cynthia", "config": {}}),
    ("DIRECT.GET.OBJ_artifacts_cynthia", {"seq": 1}),
    ("STREAM.CREATE.KV_agent_state", {"name": "KV_agent_state", "subjects": ["$KV.agent_state.>"]}),
    ("STREAM.PURGE.audit_log", {}),
    ("STREAM.DELETE.audit_log", {}),
    ("STREAM.MSG.DELETE.audit_log", {"seq": 1}),
    ("STREAM.UPDATE.audit_log", {"name": "audit_log", "subjects": ["agog.nothing.>"]}),
    ("STREAM.PURGE.dead_letters", {}),
    ("DIRECT.GET.audit_log", {"seq": 1}),
    ("CONSUMER.CREATE.audit_log", {"stream_name": "audit_log", "config": {"ack_policy": "none"}}),
    ("CONSUMER.CREATE.audit_log.events-projector", {"stream_name": "audit_log", "config": {"ack_policy": "none"}}),
    ("CONSUMER.MSG.NEXT.audit_log.events-projector", {"batch": 1}),
    ("CONSUMER.RESET.audit_log.events-projector", {"seq": 1_000_000}),
    ("CONSUMER.DELETE.audit_log.events-projector", {}),
    ("CONSUMER.PAUSE.audit_log.events-projector", {"pause_until": "2100-01-01T00:00:00Z"}),
    (f"CONSUMER.DELETE.{RESEARCH}.deliverables-archiver", {}),
    (f"CONSUMER.RESET.{RESEARCH}.deliverables-archiver", {"seq": 1_000_000}),
    (f"CONSUMER.MSG.NEXT.{RESEARCH}.deliverables-archiver", {"batch": 1}),
    ("META.LEADER.STEPDOWN", {}),
    ("ACCOUNT.PURGE.HUB", {}),
]
LISTENING = [
    (">", ""),
    ("*", ""),
    ("agog.>", ""),
    ("agog.deliverables.>", ""),
    ("agog.deliverables.cynthia.>", ""),
    ("agog.events.>", ""),
    ("agog.svc.llm.cynthia", ""),
    ("agog.svc.llm.roy", ""),
    ("agog.svc.llm.*", "q"),
    ("agog.svc.llm.cynthia", "q"),
    ("agog.svc.events.>", ""),
    ("agog.svc.events.roy", "q"),
    ("agog.svc.archive.>", ""),
    ("agog.svc.archive.roy", "q"),
    ("agog.svc.events.judge", "q"),
    ("agog.dead.>", ""),
    ("_INBOX.>", ""),
    ("_INBOX_cynthia.>", ""),
    ("*.>", ""),
    ("_R_.>", ""),
    ("$JS.>", ""),
    ("JS.hub.API.>", ""),
    ("$SRV.>", ""),
    ("$SYS.>", ""),
    ("$KV.>", ""),
    ("$O.>", ""),
    ("$O.artifacts_roy.>", ""),
]
STATE_CHANGES = [("agog.kv.agent_state.>", ""), ("agog.kv.agent_state.model.x", "q")]
"""For the gateway and the observer; not for agents."""

LIVE_EVENTS = [("agog.live.events.>", ""), ("agog.live.events.agent.roy.>", "q")]
"""For the observer and the judge; not for agents, nor for the gateway."""
READING_LOGS: list[tuple[str, dict[str, Any]]] = [
    ("STREAM.INFO.audit_log", {}),
    ("STREAM.INFO.dead_letters", {}),
    ("STREAM.MSG.GET.audit_log", {"seq": 1}),
    ("STREAM.MSG.GET.audit_log", {"seq": 1, "next_by_subj": "agog.events.agent.roy.>"}),
    ("STREAM.MSG.GET.dead_letters", {"seq": 1}),
    ("CONSUMER.INFO.audit_log.events-projector", {}),
]


class Witness:
    """What the hub heard on subjects that only others may use, and the streams before and after."""

    def __init__(self, core: NatsClient) -> None:
        self._core = core
        self.heard: list[str] = []
        self.writable = {BACKEND, "OBJ_artifacts_roy"}
        """Streams that the attacker may write to; for `roy`, unless the test says otherwise."""

    async def streams(self) -> dict[str, Any]:
        """Configuration and state of every stream."""
        found = (await self._core.api("STREAM.LIST"))["streams"]
        return {item["config"]["name"]: (item["config"], item["state"]) for item in found}

    async def changed(self, before: dict[str, Any]) -> set[str]:
        """Streams that are not as they were, without those that the attacker may write to."""
        after = await self.streams()
        names = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        return names - self.writable

    async def hear(self, message: Msg) -> None:
        """Note a message."""
        self.heard.append(message.subject)


@pytest.fixture
async def witness(core: NatsClient) -> AsyncIterator[Witness]:
    """Listens in the hub and compares the streams at the end: whatever the test tried, nothing may have changed."""
    witness = Witness(core)
    quiet = ["agog.deliverables.cynthia.>", "agog.deliverables.sylvia.>", "agog.events.>", "$KV.agent_state.agent.>"]
    quiet += ["$O.artifacts_cynthia.>", "$O.artifacts_sylvia.>"]
    subscriptions = [await core.subscribe(subject, witness.hear) for subject in quiet]
    before = await witness.streams()
    yield witness
    for subscription in subscriptions:
        await core.unsubscribe(subscription)
    assert await witness.changed(before) == set()
    assert witness.heard == []


async def refused_at_once(attempt: Any) -> None:
    """The attempt fails with the typed error well before any time-out."""
    started = time.perf_counter()
    with pytest.raises(NotAuthorizedError):
        await attempt
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("subject", FOREIGN_SUBJECTS)
async def test_an_agent_cannot_publish_elsewhere(roy: NatsClient, witness: Witness, subject: str) -> None:
    """As a message, as a request and as a stored message, on every kind of subject that is not its own."""
    assert witness
    await refused_at_once(roy.send(subject, b"forged"))
    await refused_at_once(roy.request(subject, b"forged"))
    await refused_at_once(roy.publish(subject, b"forged", message_id="forged", stream=RESEARCH))


@pytest.mark.parametrize(("verb", "body"), MANAGEMENT, ids=[verb for verb, _ in MANAGEMENT])
async def test_an_agent_cannot_manage_streams(
    roy: NatsClient, witness: Witness, verb: str, body: dict[str, Any]
) -> None:
    """Neither under the imported API nor under the account's own."""
    assert witness
    await refused_at_once(roy.api(verb, body))
    await refused_at_once(roy.request(f"$JS.API.{verb}", json.dumps(body).encode()))


@pytest.mark.parametrize(("subject", "queue"), [*LISTENING, *STATE_CHANGES, *LIVE_EVENTS])
async def test_an_agent_cannot_listen(roy: NatsClient, subject: str, queue: str) -> None:
    """Not even on its own service subject, where it would answer itself."""

    async def ignore(_: Msg) -> None: ...

    await refused_at_once(roy.subscribe(subject, ignore, queue=queue))


async def test_no_refused_subscription_goes_unnoticed(roy: NatsClient) -> None:
    """nats-py's flush may overtake the subscription; with one round trip a fifth of these passed for accepted."""

    async def ignore(_: Msg) -> None: ...

    for number in range(100):
        await refused_at_once(roy.subscribe(f"agog.deliverables.cynthia.{number}", ignore))


@pytest.mark.parametrize(("verb", "body"), MANAGEMENT, ids=[verb for verb, _ in MANAGEMENT])
async def test_the_observer_cannot_manage_streams(
    observer: NatsClient, witness: Witness, verb: str, body: dict[str, Any]
) -> None:
    """The observer reads and nothing else."""
    assert witness
    await refused_at_once(observer.api(verb, body))


@pytest.mark.parametrize("reader", [*AGENTS, "gateway"])
async def test_nobody_else_reads_what_happened(nats_server: NatsStatus, core: NatsClient, reader: str) -> None:
    """Not even an agent its own events: tool errors of others and people's decisions are beside them."""
    assert core

    async def ignore(_: Msg) -> None: ...

    async with client_as(nats_server, reader) as client:
        for verb, body in READING_LOGS:
            await refused_at_once(client.api(verb, body))
        for subject, queue in LIVE_EVENTS:
            await refused_at_once(client.subscribe(subject, ignore, queue=queue))


@pytest.mark.parametrize("caller", [*AGENTS, "gateway", "observer", "judge"])
async def test_each_reports_events_under_its_own_name(nats_server: NatsStatus, core: NatsClient, caller: str) -> None:
    """Every identity against every reporter's subject: only its own arrives, and is answered."""

    async def answer(name: str, _: bytes) -> bytes:
        return name.encode()

    reporters = [*AGENTS, "judge"]
    endpoints = {f"agog.svc.events.{name}": functools.partial(answer, name) for name in reporters}
    async with (
        serve(core, name="events", version="1.0.0", endpoints=endpoints),
        client_as(nats_server, caller) as client,
    ):
        for name in reporters:
            attempt = client.request(f"agog.svc.events.{name}", b"{}")
            if name == caller:
                assert await attempt == name.encode()
            else:
                await refused_at_once(attempt)


async def test_the_judge_judges_and_nothing_else(nats_server: NatsStatus, core: NatsClient, witness: Witness) -> None:
    """It reads everything, follows the events, and stores nothing itself."""
    assert core
    async with client_as(nats_server, "judge") as judge:
        for spec in [*STREAMS, *bucket_streams(AGENTS), *LOGS]:
            assert (await judge.api(f"STREAM.INFO.{spec.name}"))["config"]["name"] == spec.name
        for subject in [*FOREIGN_SUBJECTS, "agog.deliverables.roy.backend.x", "agog.svc.llm.judge", "agog.svc.llm.roy"]:
            await refused_at_once(judge.send(subject, b"forged"))
        for verb, body in MANAGEMENT:
            await refused_at_once(judge.api(verb, body))
        for subject, queue in [*LISTENING, *STATE_CHANGES]:
            await refused_at_once(judge.subscribe(subject, witness.hear, queue=queue))
        await judge.subscribe("agog.live.events.>", witness.hear)


async def test_the_observer_cannot_publish(observer: NatsClient, witness: Witness) -> None:
    """Nor ask a service, nor on an agent's behalf."""
    assert witness
    for subject in [*FOREIGN_SUBJECTS, "agog.deliverables.roy.backend.x", "agog.svc.llm.roy", "agog.svc.llm.observer"]:
        await refused_at_once(observer.send(subject, b"forged"))


async def test_the_gateway_cannot_write(nats_server: NatsStatus, core: NatsClient, witness: Witness) -> None:
    """It serves model turns and reads deliverables; it stores nothing and manages nothing."""
    assert witness
    async with client_as(nats_server, "gateway") as gateway:
        for subject in ["agog.deliverables.cynthia.research.x", "agog.events.system.core.x.y", "_INBOX_roy.x"]:
            await refused_at_once(gateway.send(subject, b"forged"))
        for verb, body in MANAGEMENT:
            await refused_at_once(gateway.api(verb, body))
        for subject in [
            ">",
            "agog.svc.events.>",
            "agog.svc.events.roy",
            "agog.deliverables.>",
            "_INBOX_roy.>",
            "agog.svc.ledger.>",
        ]:
            await refused_at_once(gateway.subscribe(subject, witness.hear))
    assert core


FORGED_REPLIES = [
    "agog.deliverables.cynthia.research.customer-search",
    "agog.events.agent.cynthia.stage-completed.run-1",
    "agog.events.system.core.run-completed.run-1",
    "agog.svc.events.cynthia",
    "agog.svc.events.judge",
    "agog.live.events.system.core.run-completed.run-1",
    "$JS.API.CONSUMER.RESET.audit_log.events-projector",
    "agog.svc.llm.cynthia",
    "_INBOX_cynthia.abc",
    f"$JS.API.STREAM.PURGE.{RESEARCH}",
    f"JS.hub.API.STREAM.DELETE.{RESEARCH}",
    f"$JS.API.CONSUMER.CREATE.{RESEARCH}",
    "$KV.agent_state.model.x",
    "agog.kv.agent_state.model.x",
    "$O.artifacts_cynthia.C.x",
    "$O.artifacts_cynthia.M.x",
    "$JS.API.STREAM.PURGE.OBJ_artifacts_cynthia",
]
ANSWERED = [
    pytest.param("agog.deliverables.{own}.x.y", b"bytes of the attacker's choice", id="PubAck"),
    pytest.param(f"JS.hub.API.STREAM.MSG.GET.{BACKEND}", b'{"seq": 1}', id="message by sequence"),
    pytest.param(
        f"JS.hub.API.STREAM.MSG.GET.{BACKEND}",
        b'{"last_by_subj": "agog.deliverables.roy.backend.bait"}',
        id="by subject",
    ),
    pytest.param(f"JS.hub.API.STREAM.INFO.{BACKEND}", b"", id="stream info"),
    pytest.param(f"JS.hub.API.DIRECT.GET.{BACKEND}", b'{"seq": 1}', id="direct get"),
    pytest.param("$O.artifacts_{own}.C.bait", b"bytes of the attacker's choice", id="PubAck of a chunk"),
    pytest.param("JS.hub.API.STREAM.MSG.GET.OBJ_artifacts_roy", b'{"seq": 1}', id="chunk"),
    pytest.param("agog.svc.llm.{own}", b"echo", id="service reply"),
    pytest.param("agog.svc.events.{own}", b"echo", id="reply of the hub's own service"),
]


@pytest.fixture
async def echo_service(nats_server: NatsStatus, core: NatsClient) -> AsyncIterator[None]:
    """Answers the model turns of every agent, and the events of all who report any, with what they sent."""

    async def echo(payload: bytes) -> bytes:
        return payload

    async with client_as(nats_server, "gateway") as gateway:
        endpoints = {f"agog.svc.llm.{agent}": echo for agent in ("roy", "cynthia")}
        reports = {f"agog.svc.events.{name}": echo for name in ("roy", "cynthia", "judge")}
        async with (
            serve(gateway, name="echo", version="1.0.0", endpoints=endpoints),
            serve(core, name="events", version="1.0.0", endpoints=reports),
        ):
            yield


@pytest.mark.usefixtures("echo_service")
@pytest.mark.parametrize("reply", FORGED_REPLIES)
@pytest.mark.parametrize(("subject", "payload"), ANSWERED)
@pytest.mark.parametrize("attacker", ["roy", "gateway", "observer", "judge"])
async def test_forged_reply_subjects_reach_nobody(  # noqa: PLR0917
    nats_server: NatsStatus,
    core: NatsClient,
    witness: Witness,
    attacker: str,
    subject: str,
    payload: bytes,
    reply: str,
) -> None:
    """The server checks no reply subject; the answer to a forged one must end in the attacker's own account."""
    async with contextlib.AsyncExitStack() as stack:
        royal = await stack.enter_async_context(client_as(nats_server, "roy"))
        bait = "agog.deliverables.roy.backend.bait"
        await royal.publish(bait, b'{"content": "forged"}', message_id="bait", stream=BACKEND)
        await royal.publish("$O.artifacts_roy.C.bait", b"forged", message_id="bait", stream="OBJ_artifacts_roy")
        raw = await stack.enter_async_context(await raw_client_as(nats_server, attacker))
        victim = await stack.enter_async_context(await raw_client_as(nats_server, "cynthia"))
        await victim.subscribe("_INBOX_cynthia.>", cb=witness.hear)
        await victim.flush()
        await raw.publish(subject.format(own=attacker), payload, reply=reply)
        await raw.flush()
        await _fence(core, victim)


@pytest.mark.parametrize("reply", FORGED_REPLIES)
async def test_acknowledgements_of_state_reach_nobody_else(
    nats_server: NatsStatus, core: NatsClient, witness: Witness, reply: str
) -> None:
    """The gateway may put the state of models; the acknowledgement ends in its own account too."""
    witness.writable = {"KV_agent_state"}
    before = (await core.api("STREAM.INFO.KV_agent_state"))["state"]["last_seq"]
    async with (
        await raw_client_as(nats_server, "gateway") as raw,
        await raw_client_as(nats_server, "cynthia") as victim,
    ):
        await victim.subscribe("_INBOX_cynthia.>", cb=witness.hear)
        await victim.flush()
        await raw.publish("$KV.agent_state.model.bait", b"bytes of the attacker's choice", reply=reply)
        await raw.flush()
        await _fence(core, victim)
    assert (await core.api("STREAM.INFO.KV_agent_state"))["state"]["last_seq"] == before + 1


async def _fence(core: NatsClient, victim: Client) -> None:
    """JetStream answers in order: what was asked before has been answered, and delivered, when these return."""
    await core.api(f"STREAM.INFO.{BACKEND}")
    await core.api(f"STREAM.INFO.{RESEARCH}")
    await victim.flush()


async def test_the_attack_works_inside_one_account(nats_server: NatsStatus, core: NatsClient) -> None:
    """The control: from inside the hub forged replies *are* stored, and the tests above look late enough to see it."""
    await core.publish("agog.deliverables.roy.backend.bait", b"{}", message_id="control", stream=BACKEND)
    requests = [
        ("agog.deliverables.roy.backend.control", b"x"),
        (f"$JS.API.STREAM.MSG.GET.{BACKEND}", b'{"last_by_subj": "agog.deliverables.roy.backend.bait"}'),
        (f"$JS.API.STREAM.INFO.{BACKEND}", b""),
    ]
    async with await raw_client_as(nats_server, "core") as raw, await raw_client_as(nats_server, "cynthia") as victim:
        for number, (subject, payload) in enumerate(requests * 10):
            reply = f"agog.deliverables.priya.control.forged-{number}"
            await raw.publish(subject, payload, reply=reply)
            await raw.flush()
            await _fence(core, victim)
            assert await core.fetch_by_subject("agog_features_statistics", reply)


async def test_raw_clients_change_nothing(nats_server: NatsStatus, core: NatsClient, witness: Witness) -> None:
    """Everything again, by nats-py clients that ignore what the server says."""
    assert core
    for attacker in ("roy", "observer", "judge"):
        complaints: list[str] = []
        async with await raw_client_as(nats_server, attacker, complaints) as raw:
            for subject, queue in LISTENING:
                await raw.subscribe(subject, queue, cb=witness.hear)
            for subject in FOREIGN_SUBJECTS:
                await raw.publish(subject, b"forged", reply=raw.new_inbox())
            for verb, body in MANAGEMENT:
                await raw.publish(f"$JS.API.{verb}", json.dumps(body).encode(), reply=raw.new_inbox())
                await raw.publish(f"JS.hub.API.{verb}", json.dumps(body).encode(), reply=raw.new_inbox())
            await raw.flush()
            await raw.flush()
        steps = len(LISTENING) + len(FOREIGN_SUBJECTS) + 2 * len(MANAGEMENT)
        assert sum("permissions violation" in text for text in complaints) == steps


async def test_raw_requests_are_never_answered(nats_server: NatsStatus, core: NatsClient) -> None:
    """Nor is a consumer made, nor anything read, when the attacker waits for the reply."""
    assert core
    async with await raw_client_as(nats_server, "roy") as raw:
        for verb, body in MANAGEMENT[:4]:
            with pytest.raises((nats.errors.TimeoutError, nats.errors.NoRespondersError)):
                await raw.request(f"JS.hub.API.{verb}", json.dumps(body).encode(), timeout=0.05)


async def test_another_agents_message_id_poisons_nothing(roy: NatsClient, cynthia: NatsClient) -> None:
    """An id used first by somebody else, on the only stream he can write, does not swallow the owner's message."""
    key = "feature/poisoned/run-1/research-1"
    await roy.publish("agog.deliverables.roy.backend.poison", b"{}", message_id=key, stream=BACKEND)
    subject = "agog.deliverables.cynthia.research.poisoned"
    published = await DeliverableService(cynthia).publish_report(
        deliverable("cynthia", "research", "poisoned", "# The real one"), task_key=key, stream=RESEARCH, subject=subject
    )
    assert (await DeliverableService(roy).fetch(published.ref)).deliverable.content == "# The real one"


async def test_in_a_stream_of_two_writers_one_suppresses_the_other(roy: NatsClient, core: NatsClient) -> None:
    """The control, and why the audit log has one writer: where an agent may publish, it takes the system's id first.

    The real event is then acknowledged as a duplicate and never stored. The naive set-up is a stream with subjects of
    both; the real one refuses the first step.
    """
    event = "5d0c6f0e-0000-5000-8000-000000000001"
    naive = {"name": "naive_log", "subjects": ["naive.system.>", "naive.roy.>"], "duplicate_window": 60 * 10**9}
    await core.api("STREAM.CREATE.naive_log", naive)
    try:
        await core.publish("naive.roy.noise", b"{}", message_id=event, stream="naive_log")
        suppressed = await core.publish("naive.system.run-failed", b"{}", message_id=event, stream="naive_log")
        assert suppressed.duplicate
        with pytest.raises(DeliverableNotFoundError):
            await core.fetch_by_subject("naive_log", "naive.system.run-failed")
    finally:
        await core.api("STREAM.DELETE.naive_log")
    for subject in ("agog.events.agent.roy.tool-completed.x", "agog.events.noise"):
        await refused_at_once(roy.publish(subject, b"{}", message_id=event, stream="audit_log"))
    # On every stream that the agent can write, the id is another stream's: nothing is suppressed there.
    await roy.publish("agog.deliverables.roy.backend.noise", b"{}", message_id=event, stream=BACKEND)
    stored = await core.publish("agog.events.system.core.run-failed.x", b"{}", message_id=event, stream="audit_log")
    assert not stored.duplicate


async def test_an_agent_fills_only_its_own_bucket(nats_server: NatsStatus, core: NatsClient, witness: Witness) -> None:
    """By a client that does not look at refusals, with every header that could replace or remove something."""
    headers = [{}, {"Nats-Rollup": "all"}, {"Nats-Rollup": "sub"}, {"Nats-TTL": "1s"}, {"KV-Operation": "PURGE"}]
    before = (await core.api("STREAM.INFO.OBJ_artifacts_cynthia"))["state"]
    async with await raw_client_as(nats_server, "roy") as raw:
        for subject in ("$O.artifacts_cynthia.C.x", "$O.artifacts_cynthia.M.x", "$KV.agent_state.model.x"):
            for header in headers:
                await raw.publish(subject, b"forged", headers=header)
        await raw.flush()
    assert (await core.api("STREAM.INFO.OBJ_artifacts_cynthia"))["state"] == before
    assert witness.heard == []


async def test_rollup_and_delete_headers_do_nothing(roy: NatsClient) -> None:
    """A message cannot roll up its stream, be it the agent's own."""
    first = await roy.publish("agog.deliverables.roy.backend.rollup", b"1", message_id="rollup-1", stream=BACKEND)
    with pytest.raises(Exception, match="rollup"):
        await roy.publish(
            "agog.deliverables.roy.backend.rollup",
            b"2",
            message_id="rollup-2",
            stream=BACKEND,
            headers={"Nats-Rollup": "all"},
        )
    assert (await roy.fetch_by_sequence(BACKEND, first.sequence)).data == b"1"


async def test_what_an_agent_may_do(nats_server: NatsStatus, core: NatsClient, roy: NatsClient) -> None:
    """Its own deliverables, its own requests, reading everybody's deliverables."""
    ack = await roy.publish("agog.deliverables.roy.backend.may", b"{}", message_id="may", stream=BACKEND)
    assert (await core.fetch_by_sequence(BACKEND, ack.sequence)).subject == "agog.deliverables.roy.backend.may"
    for service in ("llm", "events"):
        with pytest.raises(MessagingUnavailableError, match="nobody answers"):
            await roy.request(f"agog.svc.{service}.roy", b"{}")
    for spec in [*STREAMS, *bucket_streams(AGENTS)]:
        assert (await roy.api(f"STREAM.INFO.{spec.name}"))["config"]["name"] == spec.name
    assert nats_server


async def test_a_wrong_key_is_refused_at_once(nats_server: NatsStatus, tmp_path: Path) -> None:
    """A key that the server does not know is an authorisation error, not an outage."""
    stranger = ensure_keys(tmp_path / "other-keys", ["priya"])["priya"]
    await refused_at_once(NatsClient(nats_server.url, user=stranger, name="priya").__aenter__())
    await refused_at_once(NatsClient(nats_server.url, name="anonymous").__aenter__())
