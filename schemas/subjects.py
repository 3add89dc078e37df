"""NATS subjects and the names that become their tokens.

A name that people choose (a feature) is validated and refused; a name that the system meets (a workflow id, a run)
goes through `encode_token`, which is reversible. Nothing is ever mangled in silence: NATS stores `*` and `>` in a
published subject literally, so a later wildcard would match other messages.
"""

import hashlib
import re
import unicodedata
from typing import Annotated, Final

from pydantic import AfterValidator

PREFIX: Final = "agog"
"""First token of every subject and of the stream names; the seed's."""

MAX_SLUG_LENGTH: Final = 64
MAX_TOKEN_LENGTH: Final = 200
_SLUG: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_PLAIN: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_-")


def check_slug(value: str) -> str:
    """Return `value` when it is a slug.

    Raises:
        ValueError: it is empty, longer than 64 characters, or not lower-case letters, digits and single hyphens.
    """
    if len(value) > MAX_SLUG_LENGTH:
        raise ValueError(f"a slug has at most {MAX_SLUG_LENGTH} characters, this one has {len(value)}")
    if not _SLUG.fullmatch(value):
        raise ValueError(
            "a slug is lower-case letters, digits and single hyphens, like 'customer-search' "
            r"(^[a-z0-9]+(-[a-z0-9]+)*$)"
        )
    return value


Slug = Annotated[str, AfterValidator(check_slug)]
"""A name that people choose and that becomes a subject token: lower case, digits, hyphens, at most 64."""


def encode_token(name: str) -> str:
    """Turn any text into one token that is legal in subjects, KV keys and paths.

    NFC; `[a-z0-9_-]` stay, every other UTF-8 byte becomes `=HH`, the empty text `=`; over 200 characters the token
    is `=h` and 40 hex digits of the sha256, the only form that `decode_token` cannot reverse.
    """
    data = unicodedata.normalize("NFC", name).encode()
    token = "".join(chr(byte) if byte in _PLAIN else f"={byte:02X}" for byte in data) or "="
    return token if len(token) <= MAX_TOKEN_LENGTH else "=h" + hashlib.sha256(data).hexdigest()[:40]


def decode_token(token: str) -> str:
    """Reverse `encode_token`.

    Raises:
        ValueError: the token is a hash of a long name, or was not made by `encode_token`.
    """
    if token == "=":  # noqa: S105  an encoded name
        return ""
    if token.startswith("=h"):
        raise ValueError(f"{token!r} is the hash of a long name and cannot be decoded")
    data = re.sub(rb"=([0-9A-F]{2})", lambda match: bytes([int(match[1], 16)]), token.encode())
    name = data.decode()
    if encode_token(name) != token:
        raise ValueError(f"{token!r} is not an encoded token")
    return name


def deliverable_subject(agent: str, task_type: str, feature: str) -> str:
    """`agog.deliverables.<agent>.<taskType>.<feature>`, the seed's form (seed 003, Agent Streams)."""
    return f"{PREFIX}.deliverables.{check_slug(agent)}.{check_slug(task_type)}.{check_slug(feature)}"


def agent_of(subject: str) -> str:
    """The agent in a deliverable's subject: who may publish there, and nobody else."""
    return subject.split(".")[2]


def deliverable_wildcard(agent: str) -> str:
    """The subjects of one agent's stream."""
    return f"{PREFIX}.deliverables.{agent}.>"


def events_subject(reporter: str) -> str:
    """The request-reply subject on which an agent, or `judge`, has its events stored."""
    return f"{PREFIX}.svc.events.{reporter}"


def llm_subject(agent: str) -> str:
    """The request-reply subject on which `agent`, and nobody else, asks for a model turn."""
    return f"{PREFIX}.svc.llm.{agent}"


def claims_subject(agent: str) -> str:
    """The request-reply subject on which `agent` has the claims of a text redeemed."""
    return f"{PREFIX}.svc.claims.{agent}"


def agents_subject(agent: str) -> str:
    """The request-reply subject that tells what an agent's workers say of themselves, and makes it discoverable."""
    return f"{PREFIX}.svc.agents.{agent}"


def tools_subject(caller: str) -> str:
    """The request-reply subject on which an agent, or `core`, asks for tools and their calls."""
    return f"{PREFIX}.svc.tools.{caller}"


def tool_request_subject(server: str, agent: str) -> str:
    """Where a call for an MCP server waits; `*` as the agent for all of a server's."""
    return f"{PREFIX}.mcp.requests.{server}.{agent}"


def tool_result_subject(agent: str, call_token: str) -> str:
    """Where the outcome of one call is told; `call_token` is `schemas.mcp.call_token`'s."""
    return f"{PREFIX}.mcp.results.{agent}.{call_token}"


def tool_content_subject(agent: str, call_token: str) -> str:
    """Where a result is stored that is too long for a prompt."""
    return f"{PREFIX}.mcp.contents.{agent}.{call_token}"


def archive_subject(reader: str) -> str:
    """The request-reply subject on which an identity reads what retention has dropped."""
    return f"{PREFIX}.svc.archive.{reader}"


def ledger_subject(verb: str, agent: str) -> str:
    """The request-reply subject on which `agent` asks about its own account; `*` is every verb."""
    return f"{PREFIX}.svc.ledger.{verb}.{agent}"


def service_wildcards(agent: str) -> tuple[str, ...]:
    """Every request-reply subject of `agent`: `agog.svc.<service>.<agent>`, `agog.svc.<service>.<verb>.<agent>`."""
    return f"{PREFIX}.svc.*.{agent}", f"{PREFIX}.svc.*.*.{agent}"
