"""Who is who on NATS: one account per agent, service imports from a hub account, and the keys.

Permissions inside one account do not isolate agents: the server does not check reply subjects, and through them a
confined user can store forged messages in another agent's stream. So the streams live in the account HUB, each agent
has an account of its own, and what an agent may do reaches it as a *service import*: a forged reply then ends in the
forger's own account. The permissions inside the agent's account add no isolation; they turn a time-out into a refusal
that arrives within a millisecond.

The JetStream API is imported under `JS.hub.API`: on its own prefix it would collide with the account's own, and the
server would answer "JetStream not enabled for account".
"""

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import nkeys  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from coatcheck.errors import NotAuthorizedError
from coatcheck.messaging.account_config import Account, Login, Share, rendered
from coatcheck.messaging.keyring import KEYRING_FILE, Keyring
from schemas.agent_state import MODEL_PREFIX, SERVER_PREFIX, agent_key
from schemas.market import MARKET_PRICES
from schemas.streams import (
    AGENT_STATE,
    AUDIT_LOG,
    DEAD_LETTERS,
    MCP_REQUESTS,
    MCP_RESULTS,
    TOOL_STREAMS,
    StreamSpec,
    artifact_wildcard,
    bucket_streams,
    kv_changes,
    kv_subject,
)
from schemas.subjects import PREFIX, check_slug, deliverable_wildcard, service_wildcards

HUB: Final = "HUB"
"""Owns the streams; only the core worker lives in it."""
GATEWAY_ACCOUNT: Final = "GATEWAY"
CORE: Final = "core"
GATEWAY: Final = "gateway"
SYSTEM: Final = "sys"
OBSERVER: Final = "observer"
JUDGE: Final = "judge"
"""Reads everything and has its opinions stored; whoever judges runs uses it, a benchmark or a person."""

OWN_JS_PREFIX: Final = "$JS.API"
HUB_JS_PREFIX: Final = "JS.hub.API"

EVENTS: Final = "events"
TOOLS: Final = "tools"
ARCHIVE: Final = "archive"
LEDGER: Final = "ledger.*"
"""A service of several verbs: `agog.svc.ledger.<verb>.<agent>`."""
SERVICES: Final[Mapping[str, str]] = {
    "llm": GATEWAY_ACCOUNT,
    "claims": GATEWAY_ACCOUNT,
    TOOLS: GATEWAY_ACCOUNT,
    EVENTS: HUB,
    LEDGER: HUB,
    ARCHIVE: HUB,
}
"""Request-reply services that an agent may call, as `agog.svc.<service>.<agent>`, and the account that serves each.

The judge may call `events` too, whoever may read the streams `archive`; an operator with the key of `core`, `tools`.
"""
NEXT: Final = ".next"
PREVIOUS: Final = ".previous"
"""Endings of files beside a key that is being replaced: `rotation`."""
UPGRADE: Final = timedelta(hours=1)
"""For the workers of a release that did not sign to be replaced."""
REPLY_THRESHOLD: Final = "1h"
"""How long the server remembers where a service's reply goes; 2 minutes unless told otherwise."""

_BREAKERS: Final = tuple(kv_subject(AGENT_STATE, f"{prefix}>") for prefix in (MODEL_PREFIX, SERVER_PREFIX))
"""Circuit breakers of models and of MCP servers, shared by every gateway."""
_DEAD_CALLS: Final = f"{PREFIX}.dead.mcp.*"
_GATEWAY_PUBLISHES: Final = (*_BREAKERS, *MCP_REQUESTS.subjects, *MCP_RESULTS.subjects, _DEAD_CALLS)
_PULL: Final = f"CONSUMER.MSG.NEXT.{MCP_REQUESTS.name}.*"
_ACK: Final = f"$JS.ACK.{MCP_REQUESTS.name}.>"
_OUTCOMES: Final = MCP_RESULTS.republish_to or ""
"""What the hub repeats to gateways, each of which waits for some of them."""
_CHANGES: Final = (kv_changes(AGENT_STATE), kv_changes(MARKET_PRICES))
"""What the hub repeats to those who follow state or prices; stream exports, so nothing can be sent back by them."""

PROJECTOR: Final = "events-projector"
"""The durable consumer that brings the audit log into PostgreSQL."""
TRACER: Final = "events-tracer"
"""The durable consumer that makes the audit log's traces; it begins when there is somewhere to send them."""
ARCHIVER: Final = "deliverables-archiver"
"""The durable consumer, one of each stream of deliverables, that brings them into the archive."""
ARCHIVE_READERS: Final = (GATEWAY, OBSERVER, JUDGE)
"""Besides the agents: who may read the streams of deliverables and no folder of ours."""

LOGS: Final = (AUDIT_LOG, DEAD_LETTERS)
"""What happened, which core writes and agents do not even read."""
_LIVE: Final = AUDIT_LOG.republish_to or ""
"""What the hub repeats to those who follow the audit log."""

_ACCOUNTS: Final[Mapping[str, str]] = {
    CORE: HUB,
    GATEWAY: GATEWAY_ACCOUNT,
    SYSTEM: "SYS",
    OBSERVER: "OBSERVER",
    JUDGE: "JUDGE",
}
FIXED_IDENTITIES: Final = tuple(_ACCOUNTS)
"""Everybody who is no agent."""
_READ_STREAM: Final = ("STREAM.MSG.GET", "STREAM.INFO")
_READ_ALL: Final = (
    "STREAM.LIST",
    "STREAM.NAMES",
    "INFO",
    f"CONSUMER.INFO.{AUDIT_LOG.name}.{PROJECTOR}",
    f"CONSUMER.INFO.{AUDIT_LOG.name}.{TRACER}",
    *(f"STREAM.INFO.{spec.name}" for spec in TOOL_STREAMS),
)
"""What the observer may ask besides: the list of streams, the account's totals, how far projector and tracer are, and
how full the streams of tool calls are, whose messages are nobody's but the gateways'."""


class NatsUser(BaseModel):
    """One NATS identity, and what a client must know to use it."""

    model_config = ConfigDict(frozen=True)

    name: str
    account: str
    user: str
    """The nkey's public half, or the user name when there is a password."""
    nkey_file: Path | None = None
    password_file: Path | None = None
    password: SecretStr | None = Field(None, exclude=True)
    """For the rendered configuration only; never serialised."""
    accepted: tuple[str, ...] = ()
    """Public halves that the server takes besides, in the middle of a rotation."""
    keyring_file: Path
    """The public keys of everybody."""
    inbox_prefix: str
    """The only subjects on which this identity can hear replies."""
    js_prefix: str
    """The JetStream API as this identity's account sees it."""


def ensure_keys(keys_dir: Path, agents: Iterable[str]) -> dict[str, NatsUser]:
    """Make the keys that are missing and return every identity by name; existing keys stay as they are.

    The keyring gets the public halves. It is made together with the first keys; where keys are older than it, so may
    deliverables be, and for an hour more nothing has to be signed: so long may workers be older, too.

    Args:
        keys_dir: Made with mode 0700; seeds and passwords are files of mode 0600 in it.
        agents: Slugs; the names of the fixed identities and accounts are taken.

    Raises:
        ValueError: an agent's name is not a slug or is taken.
    """
    names = [check_agent_name(agent) for agent in agents]
    keys_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys_dir.chmod(0o700)
    is_older = _nkey_file(keys_dir, CORE).exists()
    for name in (*_ACCOUNTS, *names):
        if name == OBSERVER:
            write_once(_password_file(keys_dir, name), secrets.token_urlsafe(24).encode())
        else:
            write_once(_nkey_file(keys_dir, name), new_seed())
    users = {name: load_user(keys_dir, name) for name in (*_ACCOUNTS, *names)}
    _add_to_keyring(keys_dir / KEYRING_FILE, users.values(), is_older=is_older)
    return users


def _add_to_keyring(path: Path, users: Iterable[NatsUser], *, is_older: bool) -> None:
    if path.exists():
        before = after = Keyring.load(path)
    else:
        before, after = None, Keyring(unsigned_until=datetime.now(UTC) + UPGRADE if is_older else None)
    for user in users:
        if user.nkey_file is not None:
            after = after.with_key(user.name, user.user)
            if not user.accepted:  # somebody has taken the key away, and another was made
                after = after.retiring(user.name, but=user.user, at=datetime.now(UTC))
    if after != before:
        after.save(path)


def check_agent_name(name: str) -> str:
    """Return the name when an agent may have it.

    Raises:
        ValueError: it is not a slug, or one of the fixed identities or accounts has it.
    """
    check_slug(name)
    if name in _ACCOUNTS or name.upper() in _ACCOUNTS.values():
        raise ValueError(f"no agent can be named {name!r}: it is one of the fixed NATS identities or accounts")
    return name


def load_user(keys_dir: Path, name: str) -> NatsUser:
    """Read one identity; a process needs no other file than its own.

    Raises:
        NotAuthorizedError: there is no key for that name.
    """
    account = _ACCOUNTS.get(name, name.upper())
    known: dict[str, Any] = {
        "name": name,
        "account": account,
        "keyring_file": keys_dir / KEYRING_FILE,
        "inbox_prefix": f"_INBOX_{name}",
        "js_prefix": OWN_JS_PREFIX if account == HUB else HUB_JS_PREFIX,
    }
    nkey_file, password_file = _nkey_file(keys_dir, name), _password_file(keys_dir, name)
    if nkey_file.exists():
        key = nkeys.from_seed(bytearray(nkey_file.read_bytes().strip()))
        accepted = _in_rotation(nkey_file)
        return NatsUser(user=key.public_key.decode(), nkey_file=nkey_file, accepted=accepted, **known)
    if password_file.exists():
        password = SecretStr(password_file.read_text().strip())
        return NatsUser(user=name, password_file=password_file, password=password, **known)
    raise NotAuthorizedError(
        f"there is no NATS key for {name!r} in {keys_dir}", hint="`coatcheck up` makes the keys of the local stack"
    )


def _in_rotation(nkey_file: Path) -> tuple[str, ...]:
    """The public halves of the next key and of the previous one, as far as there are any."""
    following, previous = (nkey_file.with_name(nkey_file.name + suffix) for suffix in (NEXT, PREVIOUS))
    found = []
    if following.exists():
        found.append(nkeys.from_seed(bytearray(following.read_bytes().strip())).public_key.decode())
    if previous.exists():
        found.append(previous.read_text().strip())
    return tuple(found)


def render_accounts(users: Mapping[str, NatsUser], streams: Sequence[StreamSpec]) -> str:
    """The text of `accounts.conf`, to be included by the server's configuration.

    Holds public keys and the observer's password, so the file is as private as that password.

    Args:
        users: As `ensure_keys` gives them.
        streams: Every agent's stream; each agent reads all and writes only its own subjects. The buckets are added.
    """
    body = "\n".join(map(rendered, declared_accounts(users, streams)))
    return (
        f"# Written by coatcheck from its list of agents and streams.\naccounts {{\n{body}\n}}\nsystem_account: SYS\n"
    )


def declared_accounts(users: Mapping[str, NatsUser], streams: Sequence[StreamSpec]) -> list[Account]:
    """Every account, what its user may do, and what it shares; arguments as of `render_accounts`."""
    agents = [user for name, user in users.items() if name not in _ACCOUNTS]
    streams = [*streams, *bucket_streams(agent.name for agent in agents)]
    return [
        _hub(users, agents, streams),
        _gateway(users[GATEWAY], agents, streams),
        *(_agent(user, streams) for user in agents),
        _observer(users[OBSERVER], streams),
        _judge(users[JUDGE], streams),
        _account(users[SYSTEM]),
    ]


def _hub(users: Mapping[str, NatsUser], agents: Sequence[NatsUser], streams: Sequence[StreamSpec]) -> Account:
    auditors = [users[OBSERVER].account, users[JUDGE].account]
    readers = [*(user.account for user in (*agents, users[GATEWAY])), *auditors]
    exports = [_export(f"{OWN_JS_PREFIX}.{verb}", readers) for verb in _stream_verbs(streams)]
    exports += [_export(f"{OWN_JS_PREFIX}.{verb}", auditors) for verb in _stream_verbs(LOGS)]
    exports += [_export(f"{OWN_JS_PREFIX}.{verb}", [users[OBSERVER].account]) for verb in _READ_ALL]
    exports += [_export(f"{OWN_JS_PREFIX}.{verb}", [users[OBSERVER].account]) for verb in _archiver_verbs(streams)]
    exports.append(_export_stream(_LIVE, auditors))
    exports += [_export(subject, [agent.account]) for agent in agents for subject in _writes(agent.name)]
    gateway = [users[GATEWAY].account]
    exports += [_export(subject, gateway) for subject in (*_GATEWAY_PUBLISHES, _ACK)]
    exports += [_export(f"{OWN_JS_PREFIX}.{verb}", gateway) for verb in _stream_verbs([MCP_RESULTS])]
    exports.append(_export(f"{OWN_JS_PREFIX}.{_PULL}", gateway, streamed=True))
    exports.append(_export_stream(_OUTCOMES, gateway))
    exports += [_export_stream(changes, [users[GATEWAY].account, users[OBSERVER].account]) for changes in _CHANGES]
    exports += _served_by(HUB, agents)
    exports.append(_export(_service(EVENTS, JUDGE), [users[JUDGE].account], REPLY_THRESHOLD))
    exports += [_export(_service(ARCHIVE, name), [users[name].account], REPLY_THRESHOLD) for name in ARCHIVE_READERS]
    # Discovery, and the tools as an operator may try them.
    imports = [_import(subject, account=GATEWAY_ACCOUNT) for subject in ("$SRV.>", _service(TOOLS, CORE))]
    return _account(users[CORE], exports=exports, imports=imports, jetstream=True)


def _gateway(user: NatsUser, agents: Sequence[NatsUser], streams: Sequence[StreamSpec]) -> Account:
    """Not in the hub: there a gateway that was taken over could forge deliverables through reply subjects."""
    for_hub = [_export("$SRV.>", [HUB], streamed=True), _export(_service(TOOLS, CORE), [HUB], REPLY_THRESHOLD)]
    verbs = _stream_verbs([*streams, MCP_RESULTS])
    return _account(
        user,
        publish=[
            *_GATEWAY_PUBLISHES,
            _ACK,
            _service(ARCHIVE, GATEWAY),
            *(f"{HUB_JS_PREFIX}.{verb}" for verb in (*verbs, _PULL)),
        ],
        subscribe=[
            *_CHANGES,
            _OUTCOMES,
            *(_service(name, "*") for name, account in SERVICES.items() if account == user.account),
            "$SRV.>",
            f"{user.inbox_prefix}.>",
        ],
        # It answers whoever asked, once, on the reply subject of the request and on no other.
        responses=f'allow_responses: {{ max: 1, expires: "{REPLY_THRESHOLD}" }}',
        exports=[*_served_by(user.account, agents), *for_hub],
        imports=[
            *(_import(subject) for subject in (*_GATEWAY_PUBLISHES, _ACK)),
            _import(_service(ARCHIVE, GATEWAY)),
            *map(_import_stream, (*_CHANGES, _OUTCOMES)),
            *(_import_js(verb) for verb in (*verbs, _PULL)),
        ],
    )


def _served_by(account: str, agents: Sequence[NatsUser]) -> list[Share]:
    names = [name for name, server in SERVICES.items() if server == account]
    return [_export(_service(name, agent.name), [agent.account], REPLY_THRESHOLD) for name in names for agent in agents]


def _agent(user: NatsUser, streams: Sequence[StreamSpec]) -> Account:
    imports = [_import(subject) for subject in _writes(user.name)]
    imports += [_import(_service(name, user.name), account=account) for name, account in SERVICES.items()]
    imports += [_import_js(verb) for verb in _stream_verbs(streams)]
    return _account(
        user,
        publish=[
            *_writes(user.name),
            *service_wildcards(user.name),
            *(f"{HUB_JS_PREFIX}.{verb}" for verb in _stream_verbs(streams)),
        ],
        subscribe=[f"{user.inbox_prefix}.>"],
        imports=imports,
    )


def _observer(user: NatsUser, streams: Sequence[StreamSpec]) -> Account:
    verbs = [*_stream_verbs([*streams, *LOGS]), *_READ_ALL, *_archiver_verbs(streams)]
    archive = _service(ARCHIVE, OBSERVER)
    return _account(
        user,
        publish=[archive, *(f"{HUB_JS_PREFIX}.{verb}" for verb in verbs)],
        subscribe=[*_CHANGES, _LIVE, f"{user.inbox_prefix}.>"],
        imports=[
            _import(archive),
            *map(_import_stream, (*_CHANGES, _LIVE)),
            *(_import_js(verb) for verb in verbs),
        ],
    )


def _judge(user: NatsUser, streams: Sequence[StreamSpec]) -> Account:
    verbs, services = _stream_verbs([*streams, *LOGS]), [_service(EVENTS, JUDGE), _service(ARCHIVE, JUDGE)]
    return _account(
        user,
        publish=[*services, *(f"{HUB_JS_PREFIX}.{verb}" for verb in verbs)],
        subscribe=[_LIVE, f"{user.inbox_prefix}.>"],
        imports=[
            *(_import(service) for service in services),
            _import_stream(_LIVE),
            *(_import_js(verb) for verb in verbs),
        ],
    )


def _writes(agent: str) -> tuple[str, ...]:
    return deliverable_wildcard(agent), artifact_wildcard(agent), kv_subject(AGENT_STATE, agent_key(agent))


def _service(service: str, agent: str) -> str:
    return f"{PREFIX}.svc.{service}.{agent}"


def _stream_verbs(streams: Sequence[StreamSpec]) -> list[str]:
    return [f"{verb}.{stream.name}" for stream in streams for verb in _READ_STREAM]


def _archiver_verbs(streams: Sequence[StreamSpec]) -> list[str]:
    """How far the archiver is; the buckets among the streams have none, and then the answer says so."""
    return [f"CONSUMER.INFO.{stream.name}.{ARCHIVER}" for stream in streams]


def _account(
    user: NatsUser,
    *,
    publish: Sequence[str] | None = None,
    subscribe: Sequence[str] | None = None,
    responses: str = "",
    exports: Sequence[Share] = (),
    imports: Sequence[Share] = (),
    jetstream: bool = False,
) -> Account:
    login = Login(
        user.name,
        tuple(_credentials(user)),
        None if publish is None else tuple(publish),
        None if subscribe is None else tuple(subscribe),
        responses,
    )
    return Account(user.account, login, tuple(exports), tuple(imports), jetstream)


def _export(subject: str, accounts: Sequence[str], threshold: str | None = None, *, streamed: bool = False) -> Share:
    limit = f', threshold: "{threshold}"' if threshold else ", response_type: stream" if streamed else ""
    return Share("service", subject, tuple(accounts), more=limit)


def _export_stream(subject: str, accounts: Sequence[str]) -> Share:
    return Share("stream", subject, tuple(accounts))


def _import_stream(subject: str) -> Share:
    return Share("stream", subject, (HUB,))


def _import(subject: str, *, account: str = HUB, to: str | None = None) -> Share:
    return Share("service", subject, (account,), to)


def _import_js(verb: str) -> Share:
    return _import(f"{OWN_JS_PREFIX}.{verb}", to=f"{HUB_JS_PREFIX}.{verb}")


def _credentials(user: NatsUser) -> Iterator[str]:
    if user.password is not None:
        yield f"user: {json.dumps(user.user)}, password: {json.dumps(user.password.get_secret_value())}"
        return
    for key in (user.user, *user.accepted):
        yield f"nkey: {key}"


def new_seed() -> bytes:
    """The private half of a new NKey of a user, as NATS spells it."""
    seed: bytes = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)
    return seed


def _nkey_file(keys_dir: Path, name: str) -> Path:
    return keys_dir / f"{name}.nk"


def _password_file(keys_dir: Path, name: str) -> Path:
    return keys_dir / f"{name}.password"


def write_once(path: Path, data: bytes) -> None:
    """Create the file whole and private, or leave the one that is there; safe against a second process and a crash."""
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
