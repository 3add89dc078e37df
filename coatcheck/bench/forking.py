"""Forks a run: a new run that takes over what was done before a stage, and pays only from there on.

The prefix is the recorded one: every round that was complete when the stage was first started, of the stages that do
not wait for it. Their deliverables are read once here, so that what retention has dropped is found before the start.
"""

from collections.abc import Iterable
from typing import Final

from temporalio.client import Client

from coatcheck.errors import CoatcheckError
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.messaging.events import EventLog, StoredEvent
from schemas.events import RunStarted, StageCompleted, StageStarted
from schemas.pipeline import FeatureRequest, ForkPoint, InheritedRound
from schemas.workflow_ids import run_key

FORK_PREFIX: Final = "fork"
"""Of a forked run's workflow id: `fork/<feature>/<chance>`."""


class ForkError(CoatcheckError):
    """The run cannot be forked there."""

    code = "bench.fork"


async def read_request(client: Client, workflow_id: str, first_run_id: str) -> FeatureRequest:
    """The request with which a run was started, from the first event of its history.

    Raises:
        ForkError: it is not a run of `FeaturePipeline`.
        temporalio.service.RPCError: Temporal does not hold its history any more, or does not answer.
    """
    handle = client.get_workflow_handle(workflow_id, run_id=first_run_id)
    async for event in handle.fetch_history_events(page_size=1):
        payloads = event.workflow_execution_started_event_attributes.input.payloads
        if payloads:
            [request] = await client.data_converter.decode(payloads, [FeatureRequest])
            assert isinstance(request, FeatureRequest)
            return request
        break
    raise ForkError(f"{run_key(workflow_id, first_run_id)} was started without a request")


async def fork_request(
    request: FeatureRequest, stage: str, *, key: str, log: EventLog, deliverables: DeliverableService
) -> FeatureRequest:
    """The request of a run that goes on from `stage` with what the run `key` had done by then.

    Args:
        request: Of the run that is forked.
        stage: The first stage that is done anew.
        key: Run key of the run that is forked.
        log: As somebody who may read the audit log.
        deliverables: As somebody who may read every stream.

    Raises:
        ForkError: there is no such stage, or the run never came so far.
        DeliverableError: a deliverable that the stage needs is not there any more.
        MessagingUnavailableError: NATS does not answer.
    """
    try:
        anew = request.pipeline.downstream(stage)
    except ValueError as error:
        raise ForkError(str(error)) from error
    rounds = prefix([stored async for stored in log.read_run(key)], stage=stage, anew=anew)
    latest = {item.stage: item for item in rounds}
    missing = [item.name for item in request.pipeline.stages if item.name not in anew and item.name not in latest]
    if missing:
        raise ForkError(f"{key} has no finished round of {', '.join(missing)}, which come before {stage}")
    for item in latest.values():
        await deliverables.fetch(item.notice.ref)
    try:
        return FeatureRequest.model_validate(
            request.model_dump() | {"fork": ForkPoint(run_key=key, stage=stage, rounds=tuple(rounds)).model_dump()}
        )
    except ValueError as error:
        raise ForkError(str(error)) from error


def prefix(stored: Iterable[StoredEvent], *, stage: str, anew: frozenset[str]) -> list[InheritedRound]:
    """The rounds that were complete when `stage` was first started, without those of the stages in `anew`.

    Raises:
        ForkError: it never was.
    """
    rounds: list[InheritedRound] = []
    for item in stored:
        match item.event:
            case RunStarted(payload=said):
                rounds += [inherited for inherited in said.inherited if inherited.stage not in anew]
            case StageCompleted(payload=done, entity_id=task) if done.stage not in anew:
                rounds.append(InheritedRound(stage=done.stage, round=done.round, task_key=task, notice=done.notice))
            case StageStarted(payload=begun) if begun.stage == stage:
                return _last_of_each(rounds)
    raise ForkError(f"the run never came to {stage}", hint="`coatcheck events RUN --type stage.started` shows how far")


def _last_of_each(rounds: list[InheritedRound]) -> list[InheritedRound]:
    """A round that happened again after a reset counts once, where it happened last."""
    return list({(item.stage, item.round): item for item in reversed(rounds)}.values())[::-1]
