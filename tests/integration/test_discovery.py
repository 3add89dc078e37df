"""Agents as NATS micro services: what `nats micro list`, `info` and a request see."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.keyvalue import kv_put
from schemas.agent_state import AgentState, AgentWorker, WorkerState, agent_key
from schemas.config import DEFAULT_CONFIG
from schemas.streams import AGENT_STATE, AGENTS
from schemas.subjects import agents_subject
from tests.integration.nats_clients import client_as, raw_client_as
from workers.discovery import discoverable


async def test_every_agent_is_found_by_standard_tools(core: NatsClient, nats_server: NatsStatus) -> None:
    """One service per agent, with what it does; its endpoint tells what its workers say of themselves."""
    now = datetime.now(UTC)
    said = AgentWorker(state=WorkerState.IDLE, since=now, started_at=now, last_heartbeat=now, version="1")
    state = AgentState(workers={"w": said})
    async with client_as(nats_server, "roy") as roy:
        await kv_put(roy, AGENT_STATE, agent_key("roy"), state.to_wire())
    async with discoverable(core, DEFAULT_CONFIG):
        operator = await raw_client_as(nats_server, "core")
        try:
            found = await _gather(operator, "$SRV.INFO", expected=len(AGENTS))
            answer = await operator.request(agents_subject("roy"), b"", timeout=5)
            silent = await operator.request(agents_subject("priya"), b"", timeout=5)
        finally:
            await operator.close()
    assert {item["name"] for item in found} >= {f"agent-{agent}" for agent in AGENTS}
    [roys] = [item for item in found if item["name"] == "agent-roy"]
    assert {"agent": "roy", "task_type": "backend", "kind": "llm"}.items() <= roys["metadata"].items()
    assert [endpoint["subject"] for endpoint in roys["endpoints"]] == [agents_subject("roy")]
    assert AgentState.model_validate_json(answer.data) == state
    assert AgentState.model_validate_json(silent.data).workers == {}


async def _gather(client: Any, subject: str, *, expected: int) -> list[dict[str, Any]]:
    """Every answer of the services: at least so many."""
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)
    await client.publish(subject, b"", reply=inbox)
    async with asyncio.timeout(10):
        return [json.loads((await subscription.next_msg(timeout=10)).data) for _ in range(expected)]
