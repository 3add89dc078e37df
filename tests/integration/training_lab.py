"""Runs for the exporter: events in a real audit log, deliverables on their streams, conversations in the journal."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from coatcheck.gateway.claims import ClaimDesk
from coatcheck.localstack.status import NatsStatus, PostgresStatus
from coatcheck.messaging.client import NatsClient, StoredMessage
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.messaging.events import EventLog
from coatcheck.messaging.notices import create_notice
from coatcheck.objects.destinations import Destination
from coatcheck.storage import state
from coatcheck.storage.database import open_pool
from coatcheck.storage.journal import MAX_TURN, TurnJournal
from coatcheck.training.auditlog import AuditLog
from coatcheck.training.dialogues import DialogueMaker
from coatcheck.training.exporting import Exporter
from coatcheck.training.redaction import Redactor
from coatcheck.training.scanning import FinishedScan
from schemas import event_payloads as payloads
from schemas import events
from schemas.activities import RecordInput, RunRow, TaskRow
from schemas.deliverable import Deliverable, DeliverableMetadata, DeliverableRef
from schemas.events import Event
from schemas.notice import Notice, Verdict
from schemas.pipeline import DecisionAction
from schemas.streams import AGENTS, AUDIT_LOG, STREAMS, bucket_streams, stream_name
from schemas.subjects import deliverable_subject
from schemas.workflow_ids import activity_id, task_key
from tests.integration.nats_clients import client_as, identity

FEATURE: Final = "customer-search"
NOW: Final = datetime.now(UTC)
AGENT_OF: Final = {"research": "cynthia", "critique": "sylvia", "backend": "roy"}
RULE_CACHE: Final = Path(__file__).parents[2] / ".pytest_cache" / "kingfisher"
"""Its rules take 7 s to compile, once."""


@dataclass
class Texts:
    """What people, models and tools say in a run; a test puts its canaries here."""

    brief: str = "Find customers by name."
    comment: str = "Please mind the index."
    tool_argument: str = "notes.md"
    tool_result: str = "three lines"
    tool_error: str = ""
    answer: str = "I will read first."
    report: str = "# Research\n\nSearch needs an index."
    better_report: str = "# Research, again\n\nSearch needs a trigram index."
    summary: str = "Search needs an index."
    blockers: str = "None"
    reason: str = "every finding is settled"
    decision: str = "Go on."
    person: str = "Alice Example"
    explanation: str = "Says what is needed."
    label: str = "good"


class BackdatedClient(NatsClient):
    """A client of a server whose clock runs `a day in so many messages`: what is stored now looks older.

    Message n of N is stored `(N - n) // per_day` days ago, so that a log of a minute has days that are over.
    """

    per_day: int = 0
    newest: int = 0
    reads: int = 0
    """By sequence."""

    async def _get(self, stream: str, query: dict[str, Any]) -> StoredMessage:
        message = await super()._get(stream, query)
        self.reads += "next_by_subj" not in query
        if not self.per_day or stream != AUDIT_LOG.name:
            return message
        age = timedelta(days=(self.newest - message.sequence) // self.per_day)
        fields = {name: getattr(message, name) for name in StoredMessage.__slots__}
        return StoredMessage(**{**fields, "stored_at": message.stored_at - age})


class RunMaker:
    """Makes one run after the other: research is sent back once by its critique, and then accepted."""

    def __init__(self, nats: NatsStatus, database: PostgresStatus | None, core: NatsClient) -> None:
        self._nats = nats
        self._database = database
        self._core = core
        self._count = 0

    async def run(self, texts: Texts, *, at: datetime = NOW, tools: int = 1) -> str:
        """Everything of one run: rows, conversation, deliverables, events. Returns its run key."""
        assert self._database is not None
        self._count += 1
        key = f"feature/{FEATURE}/0199c2f0-0000-7000-8000-{self._count:012d}"
        async with (
            open_pool(self._database.dsn) as owner,
            open_pool(self._database.gateway_dsn) as pool,
            client_as(self._nats, "cynthia") as cynthia,
        ):
            journal = TurnJournal(pool, f"gateway-{self._count}")
            await journal.beat()
            refs = []
            for number, report in enumerate((texts.report, texts.better_report), 1):
                task = task_key(key, activity_id("research", number))
                await state.record(owner, _step(key, 2 * number, task, number, texts, status="running"))
                await _converse(journal, task, texts, number, refs[-1] if refs else None)
                ref = await _publish(cynthia, task, report)
                await state.record(
                    owner,
                    _step(key, 2 * number + 1, task, number, texts, status="completed", notice=_notice(ref, texts)),
                )
                refs.append(ref)
        await EventLog(self._core).publish(run_events(key, texts, refs, at=at, tools=tools))
        return key


def run_events(
    key: str, texts: Texts, refs: Sequence[DeliverableRef], *, at: datetime = NOW, tools: int = 1
) -> list[Event]:
    """What such a run tells."""
    clock = (at + timedelta(seconds=number) for number in range(10_000))
    told: list[Event] = []
    running = payloads.RunPoint(status="running", current_step="research")

    def tell(kind: Any, payload: Any, *, stage: str | None = None, number: int = 0, **fields: Any) -> None:
        entity = key if stage is None else task_key(key, activity_id(stage, number))
        if stage is not None:
            fields.setdefault("agent", AGENT_OF[stage])
        fields |= {"correlation_id": key, "session_id": key.rpartition("/")[0], "occurred_at": next(clock)}
        told.append(kind.of(entity_id=entity, payload=payload, **fields))

    tell(
        events.RunStarted,
        payloads.RunStarted(
            workflow_id=f"feature/{FEATURE}",
            feature=FEATURE,
            tenant="default",
            stages=["research", "critique"],
            agents=["cynthia", "sylvia"],
            brief_sha256="b" * 64,
            brief_bytes=len(texts.brief),
            run=running,
        ),
    )
    for number, ref in enumerate(refs, 1):
        inputs = {} if number == 1 else {"research": refs[number - 2].to_ticket()}
        started = payloads.StageStarted(
            stage="research", task_type="research", round=number, inputs=inputs, comment=texts.comment, run=running
        )
        tell(events.StageStarted, started, stage="research", number=number)
        for call in range(tools):
            tool = payloads.ToolCompleted(
                stage="research",
                round=number,
                tool="read_file",
                tool_call_id=f"call-{call}",
                outcome="error" if texts.tool_error else "ok",
                seconds=0.25,
                result_bytes=120,
                error=texts.tool_error,
            )
            tell(
                events.ToolCompleted,
                tool,
                stage="research",
                number=number,
                source="cynthia",
                occurrence=f"call-{call}",
            )
        done = payloads.StageCompleted(stage="research", round=number, notice=_notice(ref, texts), run=running)
        tell(events.StageCompleted, done, stage="research", number=number)
        for turn in (1, 2):
            said = payloads.TurnCompleted(
                stage="research",
                round=number,
                turn=turn,
                model="openai:gpt-5-mini",
                calls=1,
                tokens_in=100,
                tokens_out=10,
                cost_usd="0.001",
                seconds=1.5,
                messages=2,
                tool_calls=[payloads.ToolCall(tool="read_file", tool_call_id="call-0")] if turn == 1 else [],
            )
            tell(events.TurnCompleted, said, stage="research", number=number, occurrence=str(turn))
        verdict = Verdict.REVISE if number < len(refs) else Verdict.APPROVE
        judged = payloads.StageCompleted(
            stage="critique", round=number, notice=_notice(ref, texts, "sylvia", "critique", verdict), run=running
        )
        tell(events.StageCompleted, judged, stage="critique", number=number)
    accepted = payloads.StageAccepted(stage="research", rounds=len(refs), reason=texts.reason, run=running)
    tell(events.StageAccepted, accepted, stage="research", number=len(refs))
    decided = payloads.DecisionMade(
        stage="research",
        round=len(refs),
        action=DecisionAction.APPROVE,
        by=texts.person,
        comment=texts.decision,
        sha256="c" * 64,
        run=running,
    )
    tell(events.DecisionMade, decided)
    ended = payloads.RunChanged(reason=texts.reason, run=payloads.RunPoint(status="completed", completed_steps=2))
    tell(events.RunCompleted, ended)
    for number in range(1, len(refs) + 1):
        scored = payloads.Scored(
            judge="checks",
            kind="check",
            criterion="complete",
            score=number / len(refs),
            label=texts.label,
            explanation=texts.explanation,
            stage="research",
            round=number,
        )
        tell(events.JudgeScored, scored, occurrence=f"checks/{number}")
    return told


async def _converse(journal: TurnJournal, task: str, texts: Texts, number: int, earlier: DeliverableRef | None) -> None:
    prompt = f"Do the research.\n\n[[brief]]\n\n{texts.comment}"
    if earlier is not None:
        prompt += f"\n\n[[deliverable:research:{earlier.stream}:{earlier.sequence}]]"
    call = {"part_kind": "tool-call", "tool_name": "read_file", "tool_call_id": "call-0"}
    returned = {"part_kind": "tool-return", "tool_name": "read_file", "tool_call_id": "call-0", "outcome": "success"}
    arguments = json.dumps({"path": texts.tool_argument})
    turns: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
        (
            [{"kind": "request", "parts": [{"part_kind": "user-prompt", "content": prompt}]}],
            {"kind": "response", "parts": [{"part_kind": "text", "content": texts.answer}, call | {"args": arguments}]},
        ),
        (
            [{"kind": "request", "parts": [returned | {"content": texts.tool_result}]}],
            {"kind": "response", "parts": [call | {"tool_name": "submit_report", "args": {"report": texts.report}}]},
        ),
    ]
    assert number
    for turn, (asked, answer) in enumerate(turns, 1):
        await journal.claim(task, turn, agent="cynthia", request_sha256="b" * 64, model="openai:gpt-5-mini")
        await journal.complete(
            task,
            turn,
            agent="cynthia",
            request_messages=asked,
            response=answer,
            model="openai:gpt-5-mini",
            tokens_in=100,
            tokens_out=10,
            tokens_cached=0,
            cost_usd=None,
        )


async def _publish(client: NatsClient, task: str, report: str) -> DeliverableRef:
    metadata = DeliverableMetadata(agent="cynthia", taskType="research", feature=FEATURE, timestamp=NOW)
    published = await DeliverableService(client).publish_report(
        Deliverable(content=report, metadata=metadata),
        task_key=task,
        stream=stream_name("research"),
        subject=deliverable_subject("cynthia", "research", FEATURE),
    )
    return published.ref


def _notice(
    ref: DeliverableRef,
    texts: Texts,
    agent: str = "cynthia",
    task_type: str = "research",
    verdict: Verdict | None = None,
) -> Notice:
    return create_notice(
        agent=agent,
        feature=FEATURE,
        subject=deliverable_subject(agent, task_type, FEATURE),
        ref=ref,
        summary=texts.summary,
        status="complete",
        complexity="Low",
        blockers=texts.blockers,
        ready_for_next_stage=True,
        files_modified=0,
        completion_time=NOW,
        round=1,
        **({} if verdict is None else {"verdict": verdict}),
    )


def _step(
    key: str, revision: int, task: str, number: int, texts: Texts, *, status: str, notice: Notice | None = None
) -> RecordInput:
    run = RunRow(
        run_key=key,
        revision=revision,
        temporal_workflow_id=key.rpartition("/")[0],
        feature=FEATURE,
        tenant="default",
        status="running",
        current_step="research",
        total_steps=2,
        completed_steps=0,
        step_results={},
        assigned_agents=["cynthia"],
        started_at=NOW,
        brief=texts.brief,
    )
    row = TaskRow(
        task_key=task,
        agent="cynthia",
        stage="research",
        task_type="research",
        round=number,
        status=status,
        started_at=NOW,
        output_data=notice.model_dump(mode="json", exclude_none=True) if notice else None,
        completed_at=NOW if notice else None,
    )
    return RecordInput(run=run, tasks=[row])


@asynccontextmanager
async def exporter(
    nats: NatsStatus,
    database: PostgresStatus | None,
    destination: Destination,
    staging: Path,
    *,
    secrets: Iterable[str] = (),
    client: NatsClient | None = None,
    cache: Path = RULE_CACHE,
) -> AsyncIterator[Exporter]:
    """An exporter as the command line composes it, on the observer's connection."""
    async with open_pool(database.dsn if database else "postgresql://nowhere", min_size=0) as pool:
        observer = client or client_as(nats, "observer")
        async with observer:
            journal = TurnJournal(pool, "export")
            deliverables = DeliverableService(observer)

            async def history(task: str) -> list[dict[str, Any]]:
                return await journal.history(task, MAX_TURN + 1)

            async def read_brief(run_key: str) -> str:
                return await state.read_brief(pool, run_key)

            known = list(secrets)
            yield Exporter(
                AuditLog(observer),
                dialogues=DialogueMaker(
                    history=history,
                    deliverables=deliverables,
                    claims=ClaimDesk(deliverables=deliverables, read_brief=read_brief),
                ),
                redactor=Redactor(known),
                scan=FinishedScan(known, cache=cache),
                destination=destination,
                staging=staging,
            )


def backdated(nats: NatsStatus, *, per_day: int, newest: int) -> BackdatedClient:
    """The observer on a server whose log is days long."""
    client = BackdatedClient(nats.url, user=identity(nats, "observer"), name="observer")
    client.per_day, client.newest = per_day, newest
    return client


def every_stream() -> list[Any]:
    """All that a run writes to."""
    return [*STREAMS, *bucket_streams(AGENTS), AUDIT_LOG]


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


async def last_sequence(core: NatsClient) -> int:
    """Of the audit log."""
    return int((await core.api(f"STREAM.INFO.{AUDIT_LOG.name}"))["state"]["last_seq"])


def gather_runs(count: int, *, tools: int, spread: timedelta) -> list[Event]:
    """Events of many runs without conversations, interleaved, about 14 and two per tool each."""
    ref = DeliverableRef(stream=stream_name("research"), sequence=1, sha256="a" * 64, bytes=10)
    runs = []
    for number in range(count):
        key = f"feature/{FEATURE}-{number}/0199c2f0-0000-7000-8000-{number:012d}"
        texts = Texts(comment=f"Ask alice{number}@example.com", summary=f"Run {number}")
        told = run_events(key, texts, [ref, ref], at=NOW - spread * (count - number) / count, tools=tools)
        runs.append([event for event in told if not isinstance(event, events.TurnCompleted)])
    return [run[position] for position in range(max(map(len, runs))) for run in runs if position < len(run)]


async def publish_all(core: NatsClient, told: Sequence[Event]) -> None:
    """In blocks, so that the server is not asked for 10,000 acknowledgements at once."""
    log = EventLog(core)
    for start in range(0, len(told), 500):
        await log.publish(told[start : start + 500])
        await asyncio.sleep(0)
