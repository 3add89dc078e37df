"""Agent workers: one Temporal worker and one NATS identity per agent, and no other power.

Locally one process hosts all agents, each with its own connection; in production `coatcheck worker agents roy`
makes each a container of its own.
"""

import functools
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from temporalio.client import Client
from temporalio.worker import Worker

from activities.agents import stage_activity_for
from coatcheck.agents.author import Author, ModelAuthor
from coatcheck.agents.command import CommandAuthor
from coatcheck.agents.desk import Stores
from coatcheck.agents.loop import StageRunner
from coatcheck.agents.presence import Presence
from coatcheck.agents.proxy_model import TaskFinishedError
from coatcheck.config import load_config
from coatcheck.economy.grants import Grant, grant
from coatcheck.errors import TurnRefusedError
from coatcheck.messaging.artifacts import ArtifactStore
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.messaging.event_reports import report_events
from coatcheck.messaging.market import ShareReader
from coatcheck.settings import Settings
from coatcheck.workspace.checks import CheckRunner
from coatcheck.workspace.folder import WorkspaceFolder
from coatcheck.workspace.sandbox import Sandbox
from schemas import errors
from schemas.config import CheckLimits, Config
from schemas.conversation import Claim, RedeemReply, RedeemRequest
from schemas.roles import Role
from schemas.subjects import claims_subject, llm_subject, tools_subject
from schemas.task_queues import agent_queue
from workers.interceptors import CoatcheckInterceptor
from workers.nats import nats_client
from workers.runner import Lifecycle
from workers.temporal import BUILD_ID, measured_client

TURN_TIMEOUT_SECONDS: Final = 8.0
"""The proxy answers or says `pending` within 5 s; 3 s more and it is gone."""
REDEEM_TIMEOUT_SECONDS: Final = 30.0
"""For the bodies of some deliverables of up to 10 MB."""
COMMAND_MEMORY_MB: Final = 32 * 1024
"""Address space of a command agent: a JavaScript engine reserves many times what it uses."""
COMMAND_OUTPUT_MB: Final = 256
GRACE: Final = timedelta(seconds=20)
"""For the turn under way; whoever is cut off goes on from the journal."""
HEARTBEAT_INTERVAL: Final = timedelta(seconds=2.5)
"""Temporal sends at most one beat in this time; it would otherwise wait for 80% of the time-out."""


@dataclass(frozen=True)
class _Process:
    """What all agents of this process share."""

    settings: Settings
    lifecycle: Lifecycle
    client: Client
    config: Config
    workspaces: WorkspaceFolder

    @property
    def hidden(self) -> tuple[Path, ...]:
        """What no command may see: keys, logs, the servers' data."""
        return (self.settings.data_dir.absolute(), self.settings.keys_dir.absolute())


async def run(settings: Settings, lifecycle: Lifecycle, *, only: Sequence[str] = ()) -> None:
    """Poll the queues of all agents, or of those named in `only`, until stopped.

    Raises:
        ConfigError: the configuration file has a mistake.
        DependencyDownError: a server is away.
    """
    config = load_config(settings.config_file)
    workspaces = WorkspaceFolder(settings.workspaces_dir)
    workspaces.sweep()
    presences: list[Presence] = []
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(measured_client(settings, lifecycle.telemetry))
        process = _Process(settings, lifecycle, client, config, workspaces)
        for role in config.roles.values():
            if not only or role.agent in only:
                nats = await stack.enter_async_context(nats_client(settings, role.agent, lifecycle.telemetry))
                lifecycle.needs(f"nats as {role.agent}", functools.partial(_is_connected, nats))
                presence = await stack.enter_async_context(Presence(nats, role.agent, version=BUILD_ID))
                presences.append(presence)
                await stack.enter_async_context(_worker(role, nats, process, presence))
        await lifecycle.serve()
        for presence in presences:
            presence.stop()


def _is_connected(nats: NatsClient) -> bool:
    return nats.is_connected


def _worker(role: Role, nats: NatsClient, process: _Process, presence: Presence) -> Worker:
    sandbox = Sandbox(process.config.checks, hidden=process.hidden)
    stores = Stores(
        deliverables=DeliverableService(nats, streams=process.config.streams),
        artifacts=ArtifactStore(nats),
        checks=CheckRunner(sandbox, process.settings.workspaces_dir, grant=check_grant(role.agent, nats)),
    )
    runner = StageRunner(
        role,
        author=_author(role, nats, process),
        stores=stores,
        workspaces=process.workspaces,
        send_events=functools.partial(report_events, nats, role.agent),
        phoenix_url=process.settings.phoenix_url,
    )
    return Worker(
        process.client,
        task_queue=agent_queue(role.agent),
        activities=[stage_activity_for(role, runner, presence)],
        interceptors=[CoatcheckInterceptor()],
        build_id=BUILD_ID,
        max_concurrent_activities=process.settings.agent_slots,
        graceful_shutdown_timeout=GRACE,
        max_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
    )


def check_grant(agent: str, nats: NatsClient) -> Callable[[], Awaitable[Grant]]:
    """Asks the market, before each check of that agent, what the check has of this machine."""
    cpu, memory = ShareReader(nats, "check_cpu"), ShareReader(nats, "check_memory")

    async def ask() -> Grant:
        return grant(agent, cpu=await cpu.shares(), memory=await memory.shares())

    return ask


def _author(role: Role, nats: NatsClient, process: _Process) -> Author:
    if role.kind == "command":
        limits = CheckLimits(cpu_seconds=role.timeout_seconds, memory_mb=COMMAND_MEMORY_MB, output_mb=COMMAND_OUTPUT_MB)
        sandbox = Sandbox(limits, hidden=process.hidden)
        return CommandAuthor(role, redeem=functools.partial(_redeem, nats, role.agent), sandbox=sandbox)
    ask = functools.partial(_ask, nats, llm_subject(role.agent))
    may_call = role.agent in process.config.callers()
    ask_tools = functools.partial(_ask, nats, tools_subject(role.agent)) if may_call else None
    return ModelAuthor(role, ask=ask, stopping=lambda: process.lifecycle.stopping, ask_tools=ask_tools)


async def _redeem(nats: NatsClient, agent: str, task_key: str, text: str, claims: list[Claim]) -> str:
    request = RedeemRequest(task_key=task_key, text=text, claims=claims)
    payload = request.model_dump_json().encode()
    data = await nats.request(claims_subject(agent), payload, timeout=REDEEM_TIMEOUT_SECONDS)
    reply = RedeemReply.model_validate_json(data)
    if reply.notice is not None:
        raise TaskFinishedError(reply.notice)
    if reply.text is None:
        raise TurnRefusedError(reply.message, code=reply.code or errors.REQUEST_INVALID, retryable=reply.retryable)
    return reply.text


async def _ask(nats: NatsClient, subject: str, payload: bytes) -> bytes:
    return await nats.request(subject, payload, timeout=TURN_TIMEOUT_SECONDS)
