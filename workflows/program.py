"""`Program`: takes many features through their pipelines, so many at a time as it may.

Each feature is a child `FeaturePipeline` under the workflow id `feature/<slug>`. The program only starts, counts and
sums up; which feature is next is decided in `program_state`. A terminated program leaves its children alone
(`ParentClosePolicy.ABANDON`): they have paid for work that is theirs, and each is a whole run that people can watch,
decide and cancel by itself. Cancelling the program is the way to end them, and it waits until they have ended.
"""

import asyncio
from typing import Final

from pydantic import ValidationError
from temporalio import exceptions, workflow
from temporalio.common import Priority
from temporalio.exceptions import (
    ApplicationError,
    FailureError,
    TerminatedError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)
from temporalio.workflow import ParentClosePolicy

from schemas import errors
from schemas.pipeline import FeatureRequest, PipelineResult
from schemas.program import (
    FEATURE_WAITS,
    PIPELINE_WORKFLOW,
    FeatureState,
    FeatureWaits,
    MaxConcurrent,
    ProgramProgress,
    ProgramRequest,
    ProgramResult,
)
from schemas.task_queues import CORE, TASK_TIMEOUT
from workflows.program_state import Feature, ProgramState

DEFAULT_PRIORITY: Final = 3
DEFAULT_WEIGHT: Final = 1.0
"""Temporal's own defaults, left out of the history."""


@workflow.defn(name="Program", failure_exception_types=[ValidationError])
class ProgramWorkflow:
    """Many features with bounded concurrency, priorities, and fair shares for the tenants."""

    def __init__(self) -> None:
        self._state: ProgramState | None = None
        self._pause_requested = False

    @workflow.run
    async def run(self, request: ProgramRequest | None = None) -> ProgramResult:
        """Run every feature, then return what became of each; a feature that fails does not fail the program.

        Raises:
            ApplicationError: the input is missing or invalid (`request.invalid`).
        """
        self._state = _new_state(request, is_paused=self._pause_requested)
        self._show()
        runs: list[asyncio.Task[None]] = []
        try:
            await self._start_all(runs)
            await asyncio.gather(*runs)
        except asyncio.CancelledError:
            self._program.end_pending(FeatureState.CANCELLED, "not started: the program was cancelled")
            for run in runs:
                run.cancel()
            await asyncio.gather(*runs)
            self._show()
            raise
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self._program.result()

    async def _start_all(self, runs: list[asyncio.Task[None]]) -> None:
        """Start one feature after the other, each as soon as a place is free for it."""
        state = self._program
        while state.has_pending:
            await workflow.wait_condition(lambda: state.choose() is not None)
            feature = state.choose()
            assert feature is not None
            state.start(feature)
            runs.append(asyncio.create_task(self._run_feature(feature)))
            if state.choose() is None:
                self._show()

    async def _run_feature(self, feature: Feature) -> None:
        """Run one pipeline to its end, whatever that is; a cancellation is handed on to it and its end awaited."""
        try:
            result = await self._run_pipeline(feature.request, feature.workflow_id)
        except WorkflowAlreadyStartedError:
            self._program.end(feature, FeatureState.BLOCKED, f"already runs as {feature.workflow_id}")
        except (asyncio.CancelledError, FailureError) as error:
            self._program.end(feature, *_explain(error))
        else:
            self._program.finish(feature, result)
        self._show()

    async def _run_pipeline(self, request: FeatureRequest, workflow_id: str) -> PipelineResult:
        weight = self._program.request.weight(request.tenant)
        result: PipelineResult = await workflow.execute_child_workflow(
            PIPELINE_WORKFLOW,
            request,
            id=workflow_id,
            task_queue=CORE,
            result_type=PipelineResult,
            parent_close_policy=ParentClosePolicy.ABANDON,
            task_timeout=TASK_TIMEOUT,
            static_summary=f"{request.feature}, of the program {self._program.request.name}",
            priority=Priority(
                priority_key=None if request.priority == DEFAULT_PRIORITY else request.priority,
                fairness_key=request.tenant,
                fairness_weight=None if weight == DEFAULT_WEIGHT else weight,
            ),
        )
        return result

    # --- people, and the pipelines ------------------------------------------------------------------------------

    @workflow.signal(name=FEATURE_WAITS)
    def feature_waits(self, waits: FeatureWaits) -> None:
        """A pipeline waits for a person and needs no place, or goes on."""
        if self._state is not None:
            self._state.note_waiting(waits)
            self._show()

    @workflow.signal
    def pause(self) -> None:
        """Start no more features; those that have begun go on."""
        self._set_paused(paused=True)

    @workflow.signal
    def resume(self) -> None:
        """Start features again."""
        self._set_paused(paused=False)

    @workflow.update
    async def set_max_concurrent(self, limit: MaxConcurrent) -> str:
        """Work on more or fewer features at once; none that has begun is stopped."""
        self._program.max_concurrent = limit.max_concurrent
        self._show()
        return f"at most {limit.max_concurrent} features at once"

    @workflow.query
    def progress(self) -> ProgramProgress:
        """Where every feature is, and why."""
        return self._program.progress()

    def _set_paused(self, *, paused: bool) -> None:
        """Also before the first task of the program, when there is no state yet."""
        self._pause_requested = paused
        if self._state is not None:
            self._state.is_paused = paused
            self._show()

    @property
    def _program(self) -> ProgramState:
        if self._state is None:
            raise ApplicationError("the program has not started", type=errors.REQUEST_INVALID)
        return self._state

    def _show(self) -> None:
        workflow.set_current_details(self._program.details())


def _new_state(request: ProgramRequest | None, *, is_paused: bool) -> ProgramState:
    if not isinstance(request, ProgramRequest):
        raise ApplicationError(
            'Program takes one JSON object: {"name": "spring", "features": [{"feature": "…", "brief": "…"}]}',
            type=errors.REQUEST_INVALID,
            non_retryable=True,
        )
    return ProgramState(request, request.max_concurrent, is_paused)


def _explain(error: BaseException) -> tuple[FeatureState, str]:
    """What a pipeline that returned nothing ended with, in a state and a sentence."""
    if is_cancelled_exception(error):
        return FeatureState.CANCELLED, "the run was cancelled"
    cause = error.cause if isinstance(error, FailureError) and error.cause is not None else error
    if isinstance(cause, TerminatedError):
        return FeatureState.FAILED, "the run was terminated"
    if isinstance(cause, exceptions.TimeoutError):
        return FeatureState.FAILED, "the run timed out"
    code = f" ({cause.type})" if isinstance(cause, ApplicationError) and cause.type else ""
    return FeatureState.FAILED, f"{getattr(cause, 'message', cause)}{code}"
