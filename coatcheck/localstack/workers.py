"""The worker processes of a stack and the environment that each of them gets.

A worker is given what it needs and nothing else, as in production: agent workers see neither a database password
nor a provider's key, unless a command agent's role names it.
"""

import os
import sys
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from schemas.config import Config


Access = Literal["database", "gateway_database", "providers", "commands", "object_storage", "payloads"]

_VARIABLES: Final[dict[Access, tuple[str, ...]]] = {
    "database": ("DATABASE_URL", "PHOENIX_API_KEY"),  # the core worker sends scores
    "gateway_database": ("GATEWAY_DATABASE_URL",),
    "payloads": ("COATCHECK_PAYLOAD_KEYS",),
}
_COMMANDS_OWN: Final = ("COATCHECK_CODEC_TOKEN", "COATCHECK_MCP_TOKEN", "COATCHECK_MCP_READ_TOKEN")
"""What those who ask `coatcheck codec-server` and `coatcheck mcp` have to show; no worker is asked."""
_PROVIDER_PREFIXES: Final = ("OPENAI_", "ANTHROPIC_")
_STORAGE_PREFIXES: Final = ("AWS_", "GOOGLE_", "AZURE_")
"""Of the credentials of object storage, where the archive may be."""


class WorkerSpec(BaseModel):
    """A process that the supervisor keeps alive after the servers are ready.

    It says that it is ready by creating the file named by `COATCHECK_READY_FILE`, and stops on SIGTERM.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    argv: tuple[str, ...]
    env: dict[str, str] = {}
    access: tuple[Access, ...] = ()
    """What it may know beyond the addresses of Temporal and NATS and the NATS keys."""
    grace_seconds: float = 30
    """From SIGTERM to SIGKILL."""


def _default(name: str, *access: Access) -> WorkerSpec:
    return WorkerSpec(name=name, argv=(sys.executable, "-m", "workers", name), access=access)


DEFAULT_WORKERS: Final = (
    _default("core", "database", "object_storage", "payloads"),
    _default("gateway", "gateway_database", "providers"),
    _default("agents", "commands", "payloads"),
)
PROJECTOR_WORKER: Final = _default("projector", "database")
ARCHIVER_WORKER: Final = _default("archiver", "database", "object_storage")
"""The core worker has both; apart from it for those who want that."""


def worker_environment(
    spec: WorkerSpec, connections: Mapping[str, str], extra: Mapping[str, str], team: "Config"
) -> dict[str, str]:
    """The whole environment of a worker: ours, minus the secrets it has no access to, plus where the servers are.

    A command agent calls its provider itself, so the worker that runs it is given the keys that its role names.
    """
    inherited = {**os.environ, **extra, **connections}
    named = {name for role in team.roles.values() if role.kind == "command" for name in role.env}
    secrets = {name for server in team.mcp.values() for name in server.variables}
    visible = {name for name in inherited if _visible(name, spec.access, named=named, secrets=secrets)}
    return {name: inherited[name] for name in visible} | spec.env


def _visible(name: str, access: tuple[Access, ...], *, named: Collection[str], secrets: Collection[str]) -> bool:
    """Whether a worker may see a variable.

    Args:
        name: Of the variable.
        access: What the worker may know.
        named: Variables that command agents' roles name.
        secrets: Variables that MCP servers are given, which the gateway starts.
    """
    if name in named and "commands" in access and not any(name in names for names in _VARIABLES.values()):
        return True
    if name in _COMMANDS_OWN:
        return False
    if any(name in names for names in _VARIABLES.values()):
        return any(name in names and right in access for right, names in _VARIABLES.items())
    if name.endswith("_API_KEY") or name.startswith(_PROVIDER_PREFIXES) or name in secrets:
        return "providers" in access
    if name.startswith(_STORAGE_PREFIXES):
        return "object_storage" in access
    return True
