"""Agents as NATS micro services, so that standard tools find them. Core serves: agents answer nobody (ADR 0026)."""

import functools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.keyvalue import kv_get
from coatcheck.messaging.service import serve
from schemas.agent_state import AgentState, agent_key
from schemas.config import Config
from schemas.streams import AGENT_STATE
from schemas.subjects import agents_subject
from schemas.task_queues import agent_queue


@asynccontextmanager
async def discoverable(nats: NatsClient, team: Config) -> AsyncIterator[None]:
    """A service per agent until the block ends."""
    async with AsyncExitStack() as stack:
        for role in team.roles.values():
            metadata = {
                "agent": role.agent,
                "task_type": role.task_type,
                "kind": role.kind,
                "task_queue": agent_queue(role.agent),
            }
            endpoints = {agents_subject(role.agent): functools.partial(_presence, nats, role.agent)}
            service = serve(nats, name=f"agent-{role.agent}", version="1.0.0", endpoints=endpoints, metadata=metadata)
            await stack.enter_async_context(service)
        yield


async def _presence(nats: NatsClient, agent: str, _: bytes) -> bytes:
    """What the agent's workers say of themselves, as JSON (`AgentState`)."""
    entry = await kv_get(nats, AGENT_STATE, agent_key(agent))
    return AgentState().model_dump_json().encode() if entry is None else entry[0]
