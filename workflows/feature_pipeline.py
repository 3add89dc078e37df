"""`FeaturePipeline`: takes one feature request through the stages of its pipeline.

Decides what happens next; never sees a deliverable. Agents return notices, and later stages are handed references,
so the history stays small whatever the agents write. All bookkeeping is in `run_state`.
"""

import asyncio
from datetime import timedelta
from typing import Final

from pydantic import ValidationError
from temporalio import workflow
from temporalio.common import Priority
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

from schemas import activities, errors, search_attributes
from schemas.activities import RunStageInput, StageInputRef, StageOrder, stage_activity
from schemas.notice import Notice, Verdict
from schemas.pipeline import (
    Decision,
    DecisionAction,
    FeatureRequest,
    PipelineResult,
    Progress,
    RunStatus,
    Stage,
    StageKind,
    TaskNotice,
)
from schemas.task_queues import agent_queue
from schemas.workflow_ids import MAX_WORKFLOW_ID_LENGTH, activity_id, run_key
from workflows.run_state import RunState


class RunEndedError(Exception):
    """Control flow: a person rejected the work, or nobody decided in time."""

    def __init__(self, status: RunStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@workflow.defn(name="FeaturePipeline", failure_exception_types=[ValidationError])
class FeaturePipelineWorkflow:
    """One feature through research, critique, backend, frontend, QA and statistics, or a pipeline of your own."""

    def __init__(self) -> None:
        self._state: RunState | None = None
        self._pause_requested = False
        self._decision: Decision | None = None

    @workflow.run
    async def run(self, request: FeatureRequest | None = None) -> PipelineResult:
        """Run the stages in order, then return where everything is.

        Raises:
            ApplicationError: the input is missing or invalid (`request.invalid`), or a stage failed for good; the
                type is the code of what went wrong, the message is for people.
        """
        self._state = _new_state(request)
        status, reason = RunStatus.COMPLETED, "every stage is done"
        try:
            await self._run_stages()
        except RunEndedError as ended:
            status, reason = ended.status, ended.reason
        except (asyncio.CancelledError, ActivityError, ApplicationError) as error:
            if is_cancelled_exception(error):
                await self._close(RunStatus.CANCELLED, "cancelled on request")
                raise
            failure = _explain(error, self._run)
            await self._close(RunStatus.FAILED, failure.message)
            raise failure from error
        await self._close(status, reason)
        return self._run.result(status, reason)

    async def _run_stages(self) -> None:
        self._run.open()
        for stage in self._run.request.pipeline.stages:
            await self._complete_stage(stage)

    # --- one stage ----------------------------------------------------------------------------------------------

    async def _complete_stage(self, stage: Stage) -> None:
        """Run rounds of the stage until it is accepted: by itself, by its reviewer or by a person."""
        notice = await self._run_round(stage)
        while True:
            comment = ""
            if (reason := self._reason_to_ask(stage, notice)) is not None:
                decision = await self._ask(stage, reason)
                if decision.action is DecisionAction.APPROVE:
                    break
                comment = f"{decision.by}: {decision.comment}"
            elif not _sends_back(notice):
                break
            notice = await self._send_back(stage, notice, comment)
        self._run.finish_stage(stage)

    def _reason_to_ask(self, stage: Stage, notice: Notice) -> str | None:
        """Why a person has to decide on this notice, or `None` when the pipeline can go on by itself."""
        if notice.status == "blocked":
            return f"blocked: {notice.blockers}"
        if notice.metadata.verdict is Verdict.REJECT:
            return f"the review rejects {stage.reviews}: {notice.summary}"
        if _sends_back(notice):
            rounds = self._run.round_count(stage.name)
            return None if rounds < stage.max_rounds else f"not accepted after {rounds} rounds: {notice.summary}"
        if stage.gate or stage.name in self._run.request.gates:
            return "this stage waits for an approval"
        return None

    async def _send_back(self, stage: Stage, notice: Notice, comment: str) -> Notice:
        """Have the work done again that this notice is about, then look at it again."""
        if stage.kind is StageKind.WORK:
            return await self._run_round(stage, comment=comment)
        verdict_ref = self._run.reference(stage.name)
        for name in self._targets(stage, notice):
            target = self._run.request.pipeline.stage(name)
            await self._run_round(target, extra=[verdict_ref], comment=comment)
            self._run.finish_stage(target)
        return await self._run_round(stage, comment=comment)

    def _targets(self, stage: Stage, notice: Notice) -> list[str]:
        if stage.reviews is not None:
            return [stage.reviews]
        named = [name for name in stage.reworks if name in (notice.metadata.rework or [])]
        return named or [stage.reworks[0]]

    async def _run_round(self, stage: Stage, extra: list[StageInputRef] | None = None, comment: str = "") -> Notice:
        await self._stand_still_while_paused()
        previous = [stage.name] if self._run.round_count(stage.name) else []
        inputs = [self._run.reference(name) for name in (*stage.needs, *previous)] + (extra or [])
        current = self._run.start_round(stage, workflow.now(), inputs, comment)
        await self._record()
        order = StageOrder(
            run_key=self._run.run_key,
            feature=self._run.request.feature,
            stage=stage.name,
            round=current.number,
            inputs=inputs,
            tickets=self._run.other_references({item.stage for item in inputs}),
            comment=comment,
        )
        notice: Notice = await workflow.execute_activity(
            stage_activity(stage.agent, stage.task_type),
            RunStageInput.of(order),
            result_type=Notice,
            activity_id=activity_id(stage.name, current.number),
            task_queue=agent_queue(stage.agent),
            start_to_close_timeout=activities.STAGE_START_TO_CLOSE,
            schedule_to_close_timeout=activities.STAGE_SCHEDULE_TO_CLOSE,
            heartbeat_timeout=activities.STAGE_HEARTBEAT_TIMEOUT,
            retry_policy=activities.STAGE_RETRY,
            summary=f"{stage.agent}: {stage.name}, round {current.number}",
            priority=Priority(fairness_key=self._run.request.tenant),
        )
        _check_verdict(stage, notice)
        self._run.finish_round(current, notice, workflow.now())
        return notice

    # --- people -------------------------------------------------------------------------------------------------

    async def _ask(self, stage: Stage, reason: str) -> Decision:
        """Wait for the update `decide`, durably and not for ever."""
        limit = timedelta(seconds=self._run.request.decision_timeout_seconds)
        self._run.wait(stage, reason, workflow.now(), workflow.now() + limit)
        await self._show_status()
        try:
            await workflow.wait_condition(
                lambda: self._decision is not None, timeout=limit, timeout_summary=f"decision on {stage.name}"
            )
        except TimeoutError:
            raise RunEndedError(RunStatus.EXPIRED, f"nobody decided on {stage.name} within {limit}") from None
        decision, self._decision = self._decision, None
        assert decision is not None
        self._run.decided(decision, workflow.now())
        if decision.action is DecisionAction.REJECT:
            raise RunEndedError(RunStatus.REJECTED, f"{decision.by} rejected {stage.name}: {decision.comment or '-'}")
        workflow.upsert_search_attributes([search_attributes.STATUS.value_set(self._run.status)])
        return decision

    async def _stand_still_while_paused(self) -> None:
        if not self._pause_requested:
            return
        self._run.set_paused(paused=True, now=workflow.now())
        await self._show_status()
        await workflow.wait_condition(lambda: not self._pause_requested)
        self._run.set_paused(paused=False, now=workflow.now())
        workflow.upsert_search_attributes([search_attributes.STATUS.value_set(self._run.status)])

    @workflow.update
    async def decide(self, decision: Decision) -> str:
        """Decide on the waiting stage: approve, revise or reject what has the given sha256."""
        self._decision = decision
        return f"{decision.action} recorded for {decision.stage}"

    @decide.validator
    def _validate_decision(self, decision: Decision) -> None:
        waiting = self._state.waiting if self._state else None
        if waiting is None or self._decision is not None:
            raise ApplicationError("nothing waits for a decision", type=errors.REQUEST_INVALID)
        if decision.stage != waiting.stage:
            raise ApplicationError(
                f"{waiting.stage!r} waits for a decision, not {decision.stage!r}", type=errors.REQUEST_INVALID
            )
        if decision.sha256 != waiting.sha256:
            raise ApplicationError(
                f"the decision is on {decision.sha256[:12]}…, but round {waiting.round} of {waiting.stage} is "
                f"{waiting.sha256[:12]}…: look at it again",
                type=errors.REQUEST_INVALID,
            )

    @workflow.signal
    def pause(self) -> None:
        """Stop before the next stage starts; a stage under way is finished."""
        self._pause_requested = True

    @workflow.signal
    def resume(self) -> None:
        """Go on after a pause."""
        self._pause_requested = False

    @workflow.query
    def progress(self) -> Progress:
        """Where every stage is: state, round, verdict, subject, tokens, cost; and what a person is asked."""
        return self._run.progress()

    @workflow.query
    def notices(self) -> list[TaskNotice]:
        """Every notice so far, in order."""
        return self._run.notices()

    # --- rows ---------------------------------------------------------------------------------------------------

    @property
    def _run(self) -> RunState:
        if self._state is None:
            raise ApplicationError("the run has not started", type=errors.REQUEST_INVALID)
        return self._state

    async def _show_status(self) -> None:
        workflow.upsert_search_attributes([search_attributes.STATUS.value_set(self._run.status)])
        await self._record()

    async def _record(self) -> None:
        """Store the step in PostgreSQL: one local activity, one statement, no server round trip of its own."""
        workflow.set_current_details(self._run.details())
        if not self._run.is_recorded:
            workflow.upsert_search_attributes(
                [
                    search_attributes.FEATURE.value_set(self._run.request.feature),
                    search_attributes.STATUS.value_set(self._run.status),
                ]
            )
        step = self._run.take_step(workflow.now())
        await workflow.execute_local_activity(
            activities.RECORD_STATE,
            step,
            schedule_to_close_timeout=activities.RECORD_SCHEDULE_TO_CLOSE,
            start_to_close_timeout=activities.RECORD_START_TO_CLOSE,
            local_retry_threshold=activities.RECORD_LOCAL_RETRY_THRESHOLD,
            retry_policy=activities.RECORD_RETRY,
        )
        self._run.confirm_step(step)

    async def _close(self, status: RunStatus, reason: str) -> None:
        self._run.end(status, reason, workflow.now())
        await self._show_status()
        await workflow.wait_condition(workflow.all_handlers_finished)


def _new_state(request: FeatureRequest | None) -> RunState:
    info = workflow.info()
    if not isinstance(request, FeatureRequest):
        raise ApplicationError(
            'FeaturePipeline takes one JSON object: {"feature": "customer-search", "brief": "…"}',
            type=errors.REQUEST_INVALID,
            non_retryable=True,
        )
    if len(info.workflow_id) > MAX_WORKFLOW_ID_LENGTH:
        raise ApplicationError(
            f"the workflow id has {len(info.workflow_id)} characters, at most {MAX_WORKFLOW_ID_LENGTH} are allowed",
            type=errors.REQUEST_INVALID,
            non_retryable=True,
        )
    key = run_key(info.workflow_id, info.first_execution_run_id)
    return RunState(request=request, run_key=key, workflow_id=info.workflow_id, started_at=workflow.now())


def _sends_back(notice: Notice) -> bool:
    return notice.metadata.verdict in {Verdict.REVISE, Verdict.FAIL}


_VERDICTS: Final[dict[StageKind, frozenset[Verdict | None]]] = {
    StageKind.WORK: frozenset({None}),
    StageKind.REVIEW: frozenset({Verdict.APPROVE, Verdict.REVISE, Verdict.REJECT}),
    StageKind.TEST: frozenset({Verdict.PASS, Verdict.FAIL}),
}


def _check_verdict(stage: Stage, notice: Notice) -> None:
    """A stage that judges must judge; one that does not cannot send anything back."""
    if notice.metadata.verdict not in _VERDICTS[stage.kind]:
        raise ApplicationError(
            f"{stage.agent} gave the verdict {notice.metadata.verdict!r} for {stage.name}, a {stage.kind} stage",
            type=errors.AGENT_INVALID_OUTPUT,
            non_retryable=True,
        )


def _explain(error: BaseException, state: RunState) -> ApplicationError:
    """A stage's failure as one sentence that names the stage, with the code as its type."""
    current = state.open_round()
    where = f"{current.stage.name}, round {current.number}" if current else "the pipeline"
    cause = error.cause if isinstance(error, ActivityError) else error
    message = cause.message if isinstance(cause, ApplicationError) else str(cause or error)
    code = cause.type if isinstance(cause, ApplicationError) else None
    return ApplicationError(f"{where}: {message}", type=code, non_retryable=True)
