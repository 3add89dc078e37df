"""Runs for judges, made by hand: their events, and deliverables that are fetched from memory."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from coatcheck.bench.judging import JudgeCase
from coatcheck.errors import DeliverableExpiredError
from coatcheck.messaging.deliverables import encode_deliverable
from schemas.deliverable import Deliverable, DeliverableMetadata, DeliverableRef, StoredDeliverable
from schemas.event_payloads import RunChanged, RunPoint, StageCompleted, StageStarted, ToolCompleted, TurnCompleted
from schemas.event_payloads import RunRepaired as RunRepairedPayload
from schemas.events import EVENT_TYPES, Event
from schemas.events import StageCompleted as StageCompletedEvent
from schemas.events import StageStarted as StageStartedEvent
from schemas.events import ToolCompleted as ToolCompletedEvent
from schemas.events import TurnCompleted as TurnCompletedEvent
from schemas.notice import Notice, NoticeMetadata
from schemas.streams import stream_name
from schemas.subjects import deliverable_subject
from schemas.workflow_ids import activity_id, task_key

RUN = "feature/search/0199c2f0-run"
FEATURE = "search"
BRIEF = """Sales people must find a customer by name or city.

- The search forgives one typing error.
- Results come twenty to a page.
"""
WORK = (
    "Sales people find each customer by name and by city. The search forgives a typing error; results: twenty a page."
)
T0 = datetime(2026, 11, 21, 9, tzinfo=UTC)
AGENTS = {"research": "cynthia", "critique": "sylvia", "backend": "roy", "frontend": "jen", "qa": "billy"}
POINT = RunPoint(status="running")


class RunBuilder:
    """Collects the events of one run, in order."""

    def __init__(self, brief: str = BRIEF) -> None:
        self.brief = brief
        self.events: list[Event] = []
        self.bodies: dict[DeliverableRef, StoredDeliverable] = {}

    def stage(
        self,
        name: str,
        content: str = WORK,
        *,
        round_number: int = 1,
        inputs: Mapping[str, str] | None = None,
        **meta: Any,
    ) -> DeliverableRef:
        """A round that was started and completed; `meta` goes into its notice's metadata."""
        agent = AGENTS[name]
        deliverable = Deliverable(
            content=content, metadata=DeliverableMetadata(agent=agent, taskType=name, feature=FEATURE, timestamp=T0)
        )
        body = encode_deliverable(deliverable)
        digest = hashlib.sha256(body).hexdigest()
        ref = DeliverableRef(stream=stream_name(name), sequence=len(self.bodies) + 1, sha256=digest, bytes=len(body))
        subject = deliverable_subject(agent, name, FEATURE)
        key = task_key(RUN, activity_id(name, round_number))
        self.bodies[ref] = StoredDeliverable(subject=subject, ref=ref, task_key=key, deliverable=deliverable)
        notice = Notice(
            status="complete",
            agent=agent,
            task=FEATURE,
            nats_channel=subject,
            summary="Done.",
            completion_time=T0,
            metadata=NoticeMetadata(**ref.model_dump(), round=round_number, **meta),
        )
        started = StageStarted(stage=name, task_type=name, round=round_number, inputs=dict(inputs or {}), run=POINT)
        self._add(StageStartedEvent, key, started, agent=agent)
        completed = StageCompleted(stage=name, round=round_number, notice=notice, run=POINT)
        self._add(StageCompletedEvent, key, completed, agent=agent)
        return ref

    def turn(self, tokens: int, cost: str | None, *, stage: str = "backend", turn: int = 1) -> None:
        """A model turn."""
        payload = TurnCompleted(
            stage=stage,
            round=1,
            turn=turn,
            model="openai:gpt-test",
            calls=1,
            tokens_in=tokens,
            tokens_out=0,
            cost_usd=None if cost is None else Decimal(cost),
            seconds=1,
            messages=2,
        )
        self._add(TurnCompletedEvent, task_key(RUN, f"{stage}-1"), payload, occurrence=str(turn))

    def tool(self, name: str, outcome: str, call: str) -> None:
        """A tool that returned."""
        payload = ToolCompleted(
            stage="backend", round=1, tool=name, tool_call_id=call, outcome=outcome, seconds=0.1, result_bytes=10
        )
        fields = {"occurrence": call, "agent": "roy", "source": "roy"}
        self._add(ToolCompletedEvent, task_key(RUN, "backend-1"), payload, **fields)

    def end(self, status: str = "completed") -> None:
        """The end of the run."""
        self._add(EVENT_TYPES[f"run.{status}"], RUN, RunChanged(run=RunPoint(status=status)))

    def repaired(self, status: str) -> None:
        """Reconcile found the end of the run."""
        payload = RunRepairedPayload(found="running", reason="terminated", run=RunPoint(status=status))
        self._add(EVENT_TYPES["run.repaired"], RUN, payload, occurrence="1")

    def reset(self) -> None:
        """A person took the run back."""
        self._add(EVENT_TYPES["run.reset"], RUN, RunChanged(run=POINT), occurrence="1")

    def case(self, *, brief: str | None = None, scenario: str | None = None, extra: Sequence[Event] = ()) -> JudgeCase:
        """What a judge is given."""

        async def fetch(ref: DeliverableRef) -> StoredDeliverable:
            if ref not in self.bodies:
                raise DeliverableExpiredError(f"{ref.stream}.{ref.sequence} is no longer kept")
            return self.bodies[ref]

        return JudgeCase(
            run_key=RUN,
            feature=FEATURE,
            brief=self.brief if brief is None else brief,
            scenario=scenario,
            events=[*self.events, *extra],
            fetch=fetch,
        )

    def _add(self, kind: Any, entity: str, payload: Any, **fields: Any) -> None:
        known = {"source": "core", "correlation_id": RUN, "session_id": "feature/search"}
        moment = T0 + timedelta(seconds=len(self.events))
        self.events.append(kind.of(entity_id=entity, payload=payload, occurred_at=moment, **{**known, **fields}))


def good_run() -> RunBuilder:
    """Two stages of work and a test with evidence, completed."""
    run = RunBuilder()
    research = run.stage("research", "# Research\nCustomers are found by name or city; typing errors are forgiven.")
    run.stage("backend", inputs={"research": research.to_ticket()}, tokens_in=100, cost_usd=Decimal("0.01"))
    run.stage("qa", "All good.", verdict="pass", evidence={"passed": 3, "failed": 0})
    run.end()
    return run
