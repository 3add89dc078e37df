"""A provider that answers 429 to all for 30 s and then takes five calls at a time: it costs time, and nothing else."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
from nats.aio.msg import Msg
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowHandle

from coatcheck.localstack import DEFAULT_WORKERS
from coatcheck.localstack.status import NatsStatus
from tests.chaos.lab import Lab, open_lab
from tests.providers.bill import paid, paid_twice, read_bill
from tests.providers.script import rate_limited

RUNS = 40
TENANTS = ("red", "blue")
AT_A_TIME = 5
STORM_SECONDS = 30.0
RETRY_AFTER_SECONDS = 5
WINDOWS = int(STORM_SECONDS / RETRY_AFTER_SECONDS) + 1
"""Most that fit into the storm, the one that reaches beyond its end included."""
STAGES: list[dict[str, Any]] = [
    {"name": "research", "agent": "cynthia", "task_type": "research"},
    {"name": "backend", "agent": "roy", "task_type": "backend", "needs": ["research"]},
    {"name": "frontend", "agent": "jen", "task_type": "frontend", "needs": ["backend"]},
    {"name": "statistics", "agent": "priya", "task_type": "statistics", "needs": ["frontend"]},
]
"""Work alone, one turn each: what is judged is how they wait."""

Handle = WorkflowHandle[Any, Any]


async def test_forty_runs_in_a_storm_of_429s(tmp_path: Path) -> None:
    """Two gateways. No run fails, no attempt is used up, each window is opened once, both tenants get the same."""
    [gateway] = [spec for spec in DEFAULT_WORKERS if spec.name == "gateway"]
    second = gateway.model_copy(update={"name": "gateway-2"})
    async with open_lab(tmp_path, workers=(*DEFAULT_WORKERS, second)) as lab, _windows(lab) as opened:
        lab.provider.script.add(
            rate_limited(first_seconds=STORM_SECONDS, times=None, headers={"retry-after": str(RETRY_AFTER_SECONDS)}),
            rate_limited(while_answering=AT_A_TIME, times=None, headers={"retry-after": "1"}),
        )
        handles = await asyncio.gather(*(_start(lab.temporal, number) for number in range(RUNS)))
        busy = asyncio.create_task(_working_in_the_middle_of_the_storm(handles))
        results = await asyncio.gather(*(handle.result() for handle in handles))
        histories = await asyncio.gather(*(_activities(handle) for handle in handles))
        assert [result["status"] for result in results] == ["completed"] * RUNS
        assert await busy <= RUNS / 4
    _judge_histories(histories)
    _judge_windows(opened)
    _judge_bill(lab.provider.bill, opened)


async def _start(temporal: Client, number: int) -> Handle:
    tenant = TENANTS[number % len(TENANTS)]
    request = {
        "feature": f"storm-{tenant}-{number}",
        "brief": "Build it.",
        "tenant": tenant,
        "pipeline": {"name": "storm", "stages": STAGES},
    }
    return await temporal.start_workflow(
        "FeaturePipeline", request, id=f"chaos/{request['feature']}", task_queue="coatcheck"
    )


async def _working_in_the_middle_of_the_storm(handles: list[Handle]) -> int:
    """How many runs hold a worker's slot then, because they have an activity; the parked ones have a timer."""
    await asyncio.sleep(STORM_SECONDS / 2)
    described = await asyncio.gather(*(handle.describe() for handle in handles))
    return sum(bool(item.raw_description.pending_activities) for item in described)


async def _activities(handle: Handle) -> list[tuple[int, str]]:
    """Attempt and end of every activity of an agent."""
    started: dict[int, int] = {}
    ended: list[tuple[int, str]] = []
    async for event in handle.fetch_history_events():
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED:
            started[event.event_id] = event.activity_task_started_event_attributes.attempt
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
            completed = event.activity_task_completed_event_attributes
            ended.append((started.pop(completed.started_event_id), "completed"))
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED:
            failed = event.activity_task_failed_event_attributes
            ended.append((started.pop(failed.started_event_id), failed.failure.application_failure_info.type))
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT:
            ended.append((0, "timed out"))
    return ended


@asynccontextmanager
async def _windows(lab: Lab) -> AsyncIterator[list[dict[str, Any]]]:
    """Every state of the breaker that was stored, as anybody can follow it."""
    status = lab.stack.status().nats
    assert status is not None
    states: list[dict[str, Any]] = []

    async def hear(message: Msg) -> None:
        states.append(json.loads(message.data))

    async with await _observer(status) as observer:
        await observer.subscribe("agog.kv.agent_state.model.>", cb=hear)
        await observer.flush()
        yield states


async def _observer(status: NatsStatus) -> nats.NATS:
    user = status.users["observer"]
    assert user.password_file is not None
    return await nats.connect(
        status.url, user=user.user, password=user.password_file.read_text().strip(), inbox_prefix=user.inbox_prefix
    )


def _judge_histories(histories: list[list[tuple[int, str]]]) -> None:
    """Each activity was started once; parked rounds are new activities, and nothing else failed."""
    ends = Counter(end for history in histories for end in history)
    parked = [sum(end == "provider.parked" for _, end in history) for history in histories]
    print(f"{dict(ends)}; parked {min(parked)} to {max(parked)} times")
    assert ends.keys() == {(1, "completed"), (1, "provider.parked")}
    assert ends[1, "completed"] == RUNS * len(STAGES)


def _judge_windows(states: list[dict[str, Any]]) -> None:
    """A window begins when the one before is over, and is counted by one: not by gateway and not by call."""
    opens = [state for state in states if state["state"] == "open"]
    windows = {state["opens"]: state for state in opens}  # the last one of each: it may have been made longer
    assert sorted(windows) == list(range(1, len(windows) + 1))
    first = {number: next(state for state in opens if state["opens"] == number) for number in windows}
    for number in range(2, len(windows) + 1):
        assert first[number]["since"] >= windows[number - 1]["until"]
    storm = [state for state in first.values() if state["since"] < first[1]["since"] + STORM_SECONDS]
    print(f"{len(windows)} windows, {len(storm)} of them in the storm")
    assert 3 <= len(storm) <= WINDOWS


def _judge_bill(bill: Path, states: list[dict[str, Any]]) -> None:
    """One refused call opens a window for all but those that were under way with it; both tenants got their half."""
    assert paid_twice(bill) == {}
    windows = max(state["opens"] for state in states)
    refused = sum(line.step == "error" for line in read_bill(bill))
    tenants = [re.sub(r"storm-(\w+)-\d+", r"\1", line.feature) for line in paid(bill)]
    share = Counter(tenants[: len(tenants) // 2])  # while both had work to do
    jain = share.total() ** 2 / (len(TENANTS) * sum(count**2 for count in share.values()))
    print(f"{refused} calls refused in {windows} windows; Jain's index {jain:.3f} over {dict(share)}")
    assert jain >= 0.9
    assert refused <= RUNS + AT_A_TIME * windows
