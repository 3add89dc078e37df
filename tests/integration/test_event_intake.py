"""What agents and judges may have stored, and what is refused whole."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from coatcheck.errors import EventRefusedError
from coatcheck.events.intake import EventIntake
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.accounts import LOGS
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.event_reports import report_events
from coatcheck.messaging.events import EventLog
from coatcheck.messaging.service import serve
from coatcheck.messaging.streams import ensure_streams
from coatcheck.storage import state
from coatcheck.storage.database import Pool
from coatcheck.storage.known_tasks import KnownTasks
from schemas.activities import RecordInput
from schemas.event_payloads import Scored, ToolCompleted
from schemas.event_reports import EventReply
from schemas.events import JUDGE, JudgeScored
from schemas.events import ToolCompleted as ToolEvent
from schemas.subjects import events_subject
from tests.integration.nats_clients import client_as
from tests.integration.storage_rows import RUN_KEY, TASK_KEY, run_row, task_row

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def tool_event(call: str, *, agent: str = "cynthia", task: str = TASK_KEY, error: str = "") -> ToolEvent:
    """What an agent tells of a tool."""
    said = ToolCompleted(
        stage="research",
        round=1,
        tool="read_file",
        tool_call_id=call,
        outcome="ok",
        seconds=1,
        result_bytes=2,
        error=error,
    )
    return ToolEvent.of(
        entity_id=task,
        occurrence=call,
        source=agent,
        agent=agent,
        correlation_id=RUN_KEY,
        session_id="feature/customer-search",
        occurred_at=NOW,
        payload=said,
    )


def score(run_key: str = RUN_KEY) -> JudgeScored:
    """What a judge tells."""
    return JudgeScored.of(
        entity_id=run_key,
        correlation_id=run_key,
        session_id="feature/customer-search",
        occurred_at=NOW,
        payload=Scored(judge="checks", kind="check", criterion="evidence", score=1),
    )


@pytest.fixture
async def log(core: NatsClient, owner: Pool) -> AsyncIterator[EventLog]:
    """The intake of a core worker, for one run with one task of cynthia's."""
    await ensure_streams(core, LOGS)
    await state.record(owner, RecordInput(run=run_row(1), tasks=[task_row("running")]))
    tasks = KnownTasks(owner)
    log = EventLog(core)
    intake = EventIntake(log, own_tasks=tasks.own, known_runs=partial(state.known_runs, owner))
    endpoints = {events_subject(name): partial(intake.handle, name) for name in ("cynthia", "roy", JUDGE)}
    async with serve(core, name="events", version="1.0.0", endpoints=endpoints):
        yield log


async def stored(log: EventLog) -> list[str]:
    """Occurrences of the run's events of agents and judges."""
    return [item.event.event_id async for item in log.read_run(RUN_KEY)]


async def test_an_agent_tells_of_its_own_task(log: EventLog, nats_server: NatsStatus) -> None:
    """Stored on the agent's own subject, once however often it is told."""
    events = [tool_event(f"own-{number}") for number in range(150)]
    before = len(await stored(log))
    async with client_as(nats_server, "cynthia") as cynthia:
        for _ in range(2):
            await report_events(cynthia, "cynthia", events)
    assert (await stored(log))[before:] == [event.event_id for event in events]
    assert {
        item.subject.split(".")[2:5] == ["agent", "cynthia", "tool-completed"] async for item in log.read_run(RUN_KEY)
    } == {True}


async def test_a_judge_tells_of_a_run(log: EventLog, nats_server: NatsStatus) -> None:
    """A run that is recorded; of any other one it is refused."""
    async with client_as(nats_server, JUDGE) as judge:
        await report_events(judge, JUDGE, [score()])
        with pytest.raises(EventRefusedError, match="judge cannot tell about feature/other/1"):
            await report_events(judge, JUDGE, [score("feature/other/1")])
    assert score().event_id in await stored(log)


@pytest.mark.parametrize(
    ("reporter", "event", "words"),
    [
        ("roy", tool_event("r1"), "roy cannot tell what is cynthia's to tell"),
        ("roy", tool_event("r2", agent="roy"), f"roy cannot tell about {TASK_KEY}"),
        ("cynthia", tool_event("r3", task=f"{RUN_KEY}/research-2"), "cynthia cannot tell about"),
        ("cynthia", tool_event("r4", task=f"{TASK_KEY}\0"), "cynthia cannot tell about"),
        ("cynthia", score(), "cynthia cannot tell what is judge's to tell"),
    ],
)
async def test_nobody_tells_for_another(
    log: EventLog, nats_server: NatsStatus, reporter: str, event: Any, words: str
) -> None:
    """The whole report is refused, what would be good in it too."""
    before = await stored(log)
    async with client_as(nats_server, reporter) as client:
        with pytest.raises(EventRefusedError, match=words):
            await report_events(client, reporter, [tool_event("good"), event] if reporter == "cynthia" else [event])
    assert await stored(log) == before


@pytest.mark.parametrize(
    "change",
    [
        {"event_type": "stage.completed"},
        {"event_type": "tool.exploded"},
        {"version": 2},
        {"event_id": "0d4ef2ba-716b-54b8-a6a8-d2b5333c3997"},
        {"occurrence": "another"},
        {"correlation_id": "feature/other/1"},
        {"occurred_at": "2026-11-21T00:00:00"},
        {"payload": {}},
    ],
    ids=str,
)
async def test_what_is_no_event_is_refused(log: EventLog, nats_server: NatsStatus, change: dict[str, Any]) -> None:
    """System events, unregistered types, newer versions, ids that are not their own, times without a zone."""
    before = await stored(log)
    body = {"events": [json.loads(tool_event("forged").to_wire()) | change]}
    async with client_as(nats_server, "cynthia") as cynthia:
        reply = EventReply.model_validate_json(
            await cynthia.request(events_subject("cynthia"), json.dumps(body).encode())
        )
    assert (reply.stored, reply.code, reply.retryable) == (0, "event.refused", False)
    assert await stored(log) == before


async def test_an_event_that_fits_into_no_message_is_refused(log: EventLog, nats_server: NatsStatus) -> None:
    """By its size and not by a time-out."""
    before = await stored(log)
    big = tool_event("big").model_copy(update={"traceparent": "x" * 61_000})
    async with client_as(nats_server, "cynthia") as cynthia:
        with pytest.raises(EventRefusedError, match="more than 61,440 bytes"):
            await report_events(cynthia, "cynthia", [big])
    assert await stored(log) == before
