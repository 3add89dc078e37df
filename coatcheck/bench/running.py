"""Runs a scenario on servers that are there: starts it, does what its people do, and reads what was recorded.

The runner sees only what any observer sees, the events; it acts when one of them says so. A run that it has given up
is cancelled, so that a benchmark leaves nothing under way.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from temporalio.client import Client, WorkflowFailureError, WorkflowHandle

from coatcheck.bench.conditions import matches
from coatcheck.bench.findings import Violation
from coatcheck.bench.matching import violations
from coatcheck.bench.recording import Recorded, Recording, read_recording
from coatcheck.bench.reports import report_of
from coatcheck.bench.results import RunReport
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.events import EventLog, StoredEvent
from schemas.deliverable import HEADER_MESSAGE_ID
from schemas.pipeline import Decision, DecisionAction, FeatureRequest, PipelineResult
from schemas.rehearsal import with_cues
from schemas.scenario import Action, Scenario
from schemas.task_queues import CORE, TASK_TIMEOUT
from schemas.workflow_ids import run_key
from workflows.feature_pipeline import FeaturePipelineWorkflow

Judging = Callable[[Recording, Scenario], Awaitable[None]]
"""Has the judges speak of a run that has ended; their opinions are events of it then."""
_CANCEL_SECONDS: Final = 10.0
"""For a run that is cancelled to tell so."""
Handle = WorkflowHandle[FeaturePipelineWorkflow, PipelineResult]


@dataclass(frozen=True)
class Runner:
    """Runs scenarios against one stack."""

    temporal: Client
    nats: NatsClient
    """As the observer."""
    judging: Judging | None = None

    async def run(self, scenario: Scenario, repeat: int = 1) -> RunReport:
        """Run it once and judge what was recorded.

        Raises:
            RPCError: Temporal does not answer.
            DependencyDownError: NATS does not answer.
        """
        handle = await self._start(scenario)
        assert handle.first_execution_run_id is not None
        key = run_key(handle.id, handle.first_execution_run_id)
        found = await self._see_it_through(handle, key, scenario)
        recording = await read_recording(self.nats, key)
        if self.judging is not None and scenario.expect.judges and recording.has_ended:
            await self.judging(recording, scenario)
            recording = await read_recording(self.nats, key)
        found += violations(recording, scenario, is_judged=self.judging is not None)
        return report_of(recording, found, scenario=scenario, repeat=repeat)

    async def _start(self, scenario: Scenario) -> Handle:
        request = request_of(scenario)
        return await self.temporal.start_workflow(
            FeaturePipelineWorkflow.run,
            request,
            id=f"bench/{request.feature}/{scenario.id}-{uuid.uuid4().hex[:8]}",
            task_queue=CORE,
            static_summary=f"benchmark {scenario.id}",
            task_timeout=TASK_TIMEOUT,
        )

    async def _see_it_through(self, handle: Handle, key: str, scenario: Scenario) -> list[Violation]:
        """Do what people do until the run has ended; by then all that it has to tell is stored."""
        acting = asyncio.create_task(self._act(handle, key, scenario.input.people))
        ending = asyncio.create_task(_ended(handle))
        patience = scenario.input.patience_seconds
        try:
            await asyncio.wait([acting, ending], timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if acting.done():
                acting.result()  # what went wrong while acting
            if ending.done():
                ending.result()
                return []
            await handle.cancel()
            await asyncio.wait([ending], timeout=_CANCEL_SECONDS)
            return [Violation(rule="time", message=f"the run had not ended after {patience:g} s and was cancelled")]
        except asyncio.CancelledError:  # Ctrl-C, or another run of this benchmark could not go on
            await asyncio.shield(handle.cancel())
            raise
        finally:
            for task in (acting, ending):
                task.cancel()
            await asyncio.gather(acting, ending, return_exceptions=True)

    async def _act(self, handle: Handle, key: str, people: Sequence[Action]) -> None:
        left = list(people)
        async with aclosing(EventLog(self.nats).follow_run(key)) as events:
            async for stored in events:
                message = _recorded(stored)
                for action in [item for item in left if matches(item.when, message)]:
                    left.remove(action)
                    await _do(handle, action, message)


def request_of(scenario: Scenario) -> FeatureRequest:
    """What the run is given: the request, with the author's cues in the brief."""
    request = scenario.input.request
    return request.model_copy(update={"brief": with_cues(request.brief, scenario.input.rehearsal)})


async def _ended(handle: Handle) -> None:
    try:
        await handle.result(follow_runs=False)
    except WorkflowFailureError:
        return  # failed or cancelled, which its events tell better


async def _do(handle: Handle, action: Action, message: Recorded) -> None:
    match action.do:
        case "pause":
            await handle.signal(FeaturePipelineWorkflow.pause)
        case "resume":
            await handle.signal(FeaturePipelineWorkflow.resume)
        case "cancel":
            await handle.cancel()
        case _:
            decision = Decision(
                stage=message.payload["stage"],
                action=DecisionAction(action.do),
                sha256=message.payload["sha256"],
                by=action.by,
                comment=action.comment,
            )
            await handle.execute_update(FeaturePipelineWorkflow.decide, decision)


def _recorded(stored: StoredEvent) -> Recorded:
    return Recorded(
        sequence=stored.sequence,
        stored_at=stored.stored_at,
        subject=stored.subject,
        message_id=stored.headers.get(HEADER_MESSAGE_ID, ""),
        body=stored.event.to_wire().decode(),
    )
