"""What every NATS identity should be able to do, worked out from the declared accounts, to hold a server against it.

Pure. An action is one subject, as one identity would use it; whether it is declared follows from the user's
permissions and from what its account shares with others, never from what is being tried (`authorization_trial`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from coatcheck.messaging.account_config import Account, Share
from coatcheck.messaging.accounts import (
    CORE,
    GATEWAY,
    HUB_JS_PREFIX,
    LOGS,
    OWN_JS_PREFIX,
    PROJECTOR,
    SERVICES,
    NatsUser,
)
from schemas.agent_state import agent_key
from schemas.streams import (
    AGENT_STATE,
    AUDIT_LOG,
    MCP_REQUESTS,
    MCP_RESULTS,
    TOOL_STREAMS,
    StreamSpec,
    artifact_wildcard,
    bucket_streams,
    kv_changes,
    kv_subject,
    live_subject,
)
from schemas.subjects import PREFIX

PROBE: Final = "authz-probe"
"""A token that nothing else has."""
READS: Final = ("STREAM.MSG.GET", "STREAM.INFO")
CHANGES: Final = (
    "STREAM.UPDATE",
    "STREAM.DELETE",
    "STREAM.PURGE",
    "STREAM.MSG.DELETE",
    "STREAM.RESTORE",
    "STREAM.SNAPSHOT",
    "CONSUMER.CREATE",
)
"""Of a stream; all but the last two would be the end of something."""
CONSUMER_CHANGES: Final = ("CONSUMER.DURABLE.CREATE", "CONSUMER.DELETE")
_SYSTEM: Final = "SYS"
_SYSTEM_SUBJECTS: Final = ("$SYS.", f"{OWN_JS_PREFIX}.")
"""JetStream's API is served in the system account, whose user runs the servers and is nobody's in daily work."""


@dataclass(frozen=True)
class Action:
    """One thing that an identity may try."""

    family: str
    target: str
    subject: str
    """`{js}` at its beginning stands for where the identity finds JetStream's API."""
    kind: Literal["store", "ask", "hear"] = "ask"
    """Store a message, ask whoever answers, or listen."""
    sender: str = CORE
    """Who says what is to be heard."""
    said: str = ""
    """The subject on which it is said, of those that are listened to."""
    is_shut: bool = False
    """Whether nobody at all has it, so that even who may try gets no answer."""
    is_destructive: bool = False
    """Whether it is left alone where it is declared: nothing may depend on how the server takes a wrong request."""


def actions(users: Mapping[str, NatsUser], streams: Sequence[StreamSpec]) -> list[Action]:
    """Everything that is tried, in the order of the matrix.

    Args:
        users: Every identity.
        streams: Every agent's stream.
    """
    agents = {spec.agent: spec for spec in streams if spec.agent in users}
    every = [*streams, *bucket_streams(agents), *LOGS, *TOOL_STREAMS]
    return [*_stores(agents), *_services(agents), *_api(every), *_hearing(next(iter(agents)))]


def _stores(agents: Mapping[str, StreamSpec]) -> Iterator[Action]:
    for agent, spec in agents.items():
        task_type = spec.name.rpartition("_")[2]
        yield Action("store deliverables", agent, f"{PREFIX}.deliverables.{agent}.{task_type}.{PROBE}", "store")
    for agent in agents:
        yield Action("store files", agent, artifact_wildcard(agent).replace(">", f"C.{PROBE}"), "store")
    for agent in agents:
        yield Action("store agents' state", agent, kv_subject(AGENT_STATE, agent_key(agent)), "store")
    yield Action("store models' state", "models", kv_subject(AGENT_STATE, f"model.{PROBE}"), "store")
    yield Action("store events", "audit_log", f"{PREFIX}.events.system.core.{PROBE}.{PROBE}", "store")
    yield Action("store dead letters", "events", f"{PREFIX}.dead.{PROJECTOR}", "store")
    yield Action("store dead letters", "tools", f"{PREFIX}.dead.mcp.{PROBE}", "store")
    yield Action("store tool calls", MCP_REQUESTS.name, f"{PREFIX}.mcp.requests.{PROBE}.{PROBE}", "store")
    for kind in ("results", "contents"):
        yield Action("store tool results", kind, f"{PREFIX}.mcp.{kind}.{PROBE}.{PROBE}", "store")


def _services(agents: Iterable[str]) -> Iterator[Action]:
    for service in SERVICES:
        for caller in (*agents, "judge", "observer", GATEWAY, CORE):
            subject = f"{PREFIX}.svc.{service.replace('*', 'balance')}.{caller}"
            yield Action(f"ask {service.partition('.')[0]}", f"as {caller}", subject)
    yield Action("discover services", "$SRV", "$SRV.PING")
    yield Action("ask the system account", "servers", "$SYS.REQ.SERVER.PING")


def _api(streams: Iterable[StreamSpec]) -> Iterator[Action]:
    names = [spec.name for spec in streams]
    for verb in READS:
        yield from (Action("read streams", f"{verb} {name}", f"{{js}}.{verb}.{name}") for name in names)
    for name in names:
        yield Action("read replicas", name, f"{{js}}.DIRECT.GET.{name}", is_shut=True)
    for verb in ("STREAM.LIST", "STREAM.NAMES", "INFO"):
        yield Action("list streams", verb, f"{{js}}.{verb}")
    yield Action("change streams", "STREAM.CREATE", f"{{js}}.STREAM.CREATE.{PROBE}", is_destructive=True)
    for verb in CHANGES:
        for name in names:
            yield Action("change streams", f"{verb} {name}", f"{{js}}.{verb}.{name}", is_destructive=True)
    for verb in CONSUMER_CHANGES:
        for name in names:
            yield Action("change consumers", f"{verb} {name}", f"{{js}}.{verb}.{name}.{PROBE}", is_destructive=True)
    for name in names:
        yield Action("look at consumers", name, f"{{js}}.CONSUMER.LIST.{name}")
    yield Action("look at consumers", PROJECTOR, f"{{js}}.CONSUMER.INFO.{AUDIT_LOG.name}.{PROJECTOR}")
    yield Action("acknowledge tool calls", MCP_REQUESTS.name, f"$JS.ACK.{MCP_REQUESTS.name}.{PROBE}.1.1.1.1.0")
    yield Action("JetStream past its door", "audit_log", f"{OWN_JS_PREFIX}.STREAM.INFO.{AUDIT_LOG.name}")


def _hearing(agent: str) -> Iterator[Action]:
    def hear(what: str, pattern: str, said: str, sender: str = CORE) -> Action:
        return Action("hear", what, pattern, "hear", sender, said)

    deliverable = f"{PREFIX}.deliverables.{agent}.x.{PROBE}"
    yield hear("everything", ">", deliverable)
    yield hear("deliverables", f"{PREFIX}.deliverables.>", deliverable)
    yield hear("events", f"{PREFIX}.events.>", f"{PREFIX}.events.{PROBE}")
    yield hear("the audit log", live_subject(AUDIT_LOG.subjects[0]), f"{PREFIX}.live.events.{PROBE}")
    yield hear("puts of state", kv_subject(AGENT_STATE, ">"), kv_subject(AGENT_STATE, PROBE))
    yield hear("changes of state", kv_changes(AGENT_STATE), kv_changes(AGENT_STATE, PROBE))
    yield hear("files", "$O.>", artifact_wildcard(agent).replace(">", f"C.{PROBE}"))
    yield hear("tool results", live_subject(MCP_RESULTS.subjects[0]), f"{PREFIX}.live.mcp.results.{PROBE}.{PROBE}")
    yield hear("model calls", f"{PREFIX}.svc.llm.*", f"{PREFIX}.svc.llm.{agent}", agent)
    yield hear("calls of the ledger", f"{PREFIX}.svc.ledger.>", f"{PREFIX}.svc.ledger.balance.{agent}", agent)
    yield hear("core's replies", "_INBOX_core.>", f"_INBOX_core.{PROBE}")


def subject_for(action: Action, user: NatsUser) -> str:
    """The subject as this identity uses it."""
    return action.subject.replace("{js}", user.js_prefix, 1)


def is_declared(action: Action, user: NatsUser, accounts: Sequence[Account]) -> bool:
    """Whether `user` should be able to do it."""
    own = next(account for account in accounts if account.login.name == user.name)
    if action.kind != "hear":
        return not action.is_shut and _reached(subject_for(action, user), own, accounts) is not None
    allowed = own.login.subscribe
    if allowed is not None and not any(covers(pattern, action.subject) for pattern in allowed):
        return False
    sender = next(account for account in accounts if account.login.name == action.sender)
    if own is sender:
        return True
    if (taker := _reached(action.said, sender, accounts)) is not None and taker is not sender:
        return taker is own
    return any(
        share.kind == "stream" and sender.name in share.accounts and covers(share.subject, action.said)
        for share in own.imports
        if _offered("stream", action.said, sender, own)
    )


def _reached(subject: str, own: Account, accounts: Sequence[Account]) -> Account | None:
    """The account in which a message ends that `own`'s user publishes; `None` when nobody hears it."""
    allowed = own.login.publish
    if allowed is not None and not any(covers(pattern, subject) for pattern in allowed):
        return None
    for share in own.imports:
        found = _behind(share, subject)
        exporter = next((account for account in accounts if account.name == share.accounts[0]), None)
        if found is not None and exporter is not None and _offered("service", found, exporter, own):
            return exporter
    serves_it = any(covers(f"{PREFIX}.svc.{service}.*", subject) for service, at in SERVICES.items() if at == own.name)
    in_hub = own.jetstream and _is_streams(subject)
    in_system = own.name == _SYSTEM and subject.startswith(_SYSTEM_SUBJECTS)
    return own if serves_it or in_hub or in_system else None


def _behind(share: Share, subject: str) -> str | None:
    """What an imported service is called where it is, for a subject that an account publishes on."""
    if share.kind != "service" or not covers(share.to or share.subject, subject):
        return None
    return subject.replace(HUB_JS_PREFIX, OWN_JS_PREFIX, 1) if share.to else subject


def _offered(kind: str, subject: str, exporter: Account, to: Account) -> bool:
    return any(
        share.kind == kind and to.name in share.accounts and covers(share.subject, subject)
        for share in exporter.exports
    )


def _is_streams(subject: str) -> bool:
    """JetStream's API, or a subject of one of our streams."""
    kinds = ("deliverables", "events", "dead", "mcp")
    prefixes = (f"{OWN_JS_PREFIX}.", "$JS.ACK.", "$KV.", "$O.", *(f"{PREFIX}.{kind}." for kind in kinds))
    return subject.startswith(prefixes)


def covers(pattern: str, subject: str) -> bool:
    """Whether every subject of `subject`, itself perhaps a pattern, fits `pattern`."""
    wanted, given = pattern.split("."), subject.split(".")
    for number, part in enumerate(wanted):
        if part == ">":
            return len(given) > number
        if number >= len(given) or given[number] == ">" or part not in ("*", given[number]):
            return False
    return len(wanted) == len(given)
