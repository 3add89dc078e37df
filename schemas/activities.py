"""Signatures of the activities: names, inputs, results and default options. Implementations are in `activities/`.

A workflow calls these by name and never imports an implementation, so that no driver reaches the sandbox.
"""

from datetime import datetime, timedelta
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict
from temporalio.common import RetryPolicy

from schemas.budget import Budget
from schemas.deliverable import DeliverableRef
from schemas.errors import PAYLOADS_TOO_LARGE
from schemas.events import SystemEvent
from schemas.workflow_ids import activity_id, event_id, feature_of, run_key, task_key

MAX_RESULT_BYTES: Final = 8 * 1024
"""The claim-check rule: a larger activity result is refused by the worker's interceptor."""


class StageInputRef(BaseModel):
    """A reference to another stage's deliverable."""

    model_config = ConfigDict(frozen=True)

    stage: str
    ref: DeliverableRef


class StageOrder(BaseModel):
    """One round of one stage as the agent sees it: references, never bodies. The brief is claimed by the run key."""

    run_key: str
    feature: str
    stage: str
    round: int
    inputs: list[StageInputRef] = []
    """Deliverables handed to the agent; for a later round also its own last one and the review that asked for it."""
    comment: str = ""
    """A person's words, when a decision asked for this round."""
    reset: str = ""
    """Ends the occurrence of this round's events after a reset in Temporal; empty before the first."""

    @property
    def started_event(self) -> str:
        """The event that told of this round's start: the cause of all that it does."""
        return event_id(task_key(self.run_key, activity_id(self.stage, self.round)), "stage.started", self.reset)


class RunStageInput(BaseModel):
    """A `StageOrder` on the wire, without what the activity already knows: each byte is in every run's history."""

    run: str | None = None
    """The first execution's run id; left out while it is the current one, as it is until a reset."""
    feature: str | None = None
    """Left out when the workflow id tells it (`schemas.workflow_ids.feature_of`)."""
    inputs: dict[str, str] = {}
    """Stage → ticket (`DeliverableRef.to_ticket`)."""
    comment: str = ""
    reset: str = ""

    @classmethod
    def of(cls, order: StageOrder, run_id: str) -> Self:
        """The wire form for an activity of the execution `run_id`; empty fields are left unset and so left out."""
        fields: dict[str, Any] = {}
        workflow_id, _, first_run_id = order.run_key.rpartition("/")
        if first_run_id != run_id:
            fields["run"] = first_run_id
        if feature_of(workflow_id) != order.feature:
            fields["feature"] = order.feature
        if order.inputs:
            fields["inputs"] = {item.stage: item.ref.to_ticket() for item in order.inputs}
        if order.comment:
            fields["comment"] = order.comment
        if order.reset:
            fields["reset"] = order.reset
        return cls(**fields)

    def order(self, workflow_id: str, run_id: str, activity_id: str) -> StageOrder:
        """The order that this input means inside the activity `activity_id` of the execution `run_id`."""
        stage, _, round_number = activity_id.rpartition("-")
        return StageOrder(
            run_key=run_key(workflow_id, self.run or run_id),
            feature=self.feature or feature_of(workflow_id),
            stage=stage,
            round=int(round_number),
            inputs=references(self.inputs),
            comment=self.comment,
            reset=self.reset,
        )


def references(tickets: dict[str, str]) -> list[StageInputRef]:
    """Stage → ticket, read.

    Raises:
        ValueError: one is no ticket.
    """
    return [StageInputRef(stage=stage, ref=DeliverableRef.from_ticket(ticket)) for stage, ticket in tickets.items()]


def stage_activity(agent: str, task_type: str) -> str:
    """Activity type `<agent>.<taskType>`: one per agent, since replay tests cannot tell a generic one apart."""
    return f"{agent}.{task_type}"


STAGE_START_TO_CLOSE: Final = timedelta(minutes=60)
STAGE_SCHEDULE_TO_CLOSE: Final = timedelta(hours=24)
STAGE_HEARTBEAT_TIMEOUT: Final = timedelta(seconds=6)
"""How long a dead agent worker goes unnoticed. Short, so that a run goes on within 10 s of a worker being back."""
STAGE_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2,
    maximum_interval=timedelta(seconds=3),
    maximum_attempts=60,
    non_retryable_error_types=[PAYLOADS_TOO_LARGE],  # ours carry the flag themselves; this one is the SDK's
)
"""Attempts are for worker deaths and outages. Provider failures are bounded by the LLM proxy, per turn and durably.

An attempt in an outage waits for half a minute or more by itself (`PUBLISH_PATIENCE_SECONDS`, `PROXY_AWAY_SECONDS`), so
the pause between attempts can be short, and must be: heartbeat timeout and pause together are what a run stands still
for when a worker has died, the fifth time as well as the first (tests/chaos).
"""

RECORD_STATE: Final = "state.record"
"""Local activity on the core worker: one statement writes the rows of one step of a run."""
RECORD_SCHEDULE_TO_CLOSE: Final = timedelta(hours=24)
RECORD_START_TO_CLOSE: Final = timedelta(seconds=10)
RECORD_LOCAL_RETRY_THRESHOLD: Final = timedelta(seconds=10)
RECORD_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(milliseconds=200), backoff_coefficient=2, maximum_interval=timedelta(seconds=5)
)


class RunRow(BaseModel):
    """Absolute state of the run's `workflows` row after a step; writing it twice changes nothing."""

    run_key: str
    revision: int
    """Grows from step to step, also after a Temporal reset; an older revision never overwrites a newer one."""
    temporal_workflow_id: str
    namespace: str = "default"
    """Temporal's, in which the run is: another one knows nothing of it."""
    feature: str
    tenant: str
    status: str
    current_step: str | None
    total_steps: int
    completed_steps: int
    step_results: dict[str, Any]
    """Stage → its last notice."""
    assigned_agents: list[str]
    error: str | None = None
    started_at: datetime
    completed_at: datetime | None = None
    brief: str | None = None
    """Only in the first step; it becomes the row's description."""
    budget: Budget | str | None = None
    """In the first step what the request says, later what a person has set. What is written is always a `Budget`."""


class TaskRow(BaseModel):
    """Absolute state of one `task_executions` row: one round of one stage."""

    task_key: str
    agent: str
    stage: str
    task_type: str
    round: int
    status: str
    input_data: dict[str, Any] = {}
    output_data: dict[str, Any] | None = None
    """The notice, once complete."""
    error: str | None = None
    retry_count: int = 0
    started_at: datetime
    completed_at: datetime | None = None
    reset: str = ""
    """As in its `StageOrder`; not stored."""


class RecordInput(BaseModel):
    """Input of `state.record`: what one step of a run changes, and what it has to tell."""

    run: RunRow
    tasks: list[TaskRow] = []
    events: list[SystemEvent] = []
