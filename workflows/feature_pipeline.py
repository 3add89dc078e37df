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
from schemas.budget import BLOCKED_BY_BUDGET, Budget, BudgetChange
from schemas.notice import Notice, Verdict
from schemas.pipeline import (
    DEFAULT_TENANT,
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
from schemas.program import FEATURE_WAITS, FeatureWaits
from schemas.task_queues import agent_queue
from schemas.tracing import TRACE_NOTE
from schemas.workflow_ids import MAX_WORKFLOW_ID_LENGTH, activity_id, run_key
from workflows.convergence import standstill
from workflows.outcomes import check_verdict, parked_delay, sends_back
from workflows.run_state import Round, RunState

DEFAULT_PRIORITY: Final = 3
"""Temporal's own; what is the default is left out of the history."""


BLOCKED: Final = "blocked: "
"""How the reason of a question begins that an agent's own blockers ask."""
FIRST_TASK_EVENTS: Final = 3
"""Of a history when its first task begins: started, task scheduled, task started."""


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
        self._parent_knows_of_wait = False
        self._decisions: dict[str, Decision] = {}
        self._funded: set[str] = set()
        """Stages that go on because the run may spend more, by a decision that sends nothing else back."""

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
            if _was_reset_to_its_beginning():
                self._note_reset(workflow.random_seed())
            self._run.open()
            workflow.register_random_seed_callback(self._note_reset)
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
        """Complete every stage, each as soon as those that it waits for are done; the first failure ends the others."""
        stages = [asyncio.create_task(self._start_in_turn(stage)) for stage in self._run.request.pipeline.stages]
        try:
            await workflow.wait(stages, return_when=asyncio.FIRST_EXCEPTION)
        except asyncio.CancelledError:  # not `finally`, since an evicted workflow must not wait again
            await _end(stages)
            raise
        await _end(stages)
        for task in stages:
            if not task.cancelled() and (error := task.exception()) is not None and not is_cancelled_exception(error):
                raise error
        if left := [stage.name for stage in self._run.request.pipeline.stages if not self._run.is_done(stage.name)]:
            raise ApplicationError(f"cancelled from outside the run: {', '.join(left)}", non_retryable=True)

    async def _start_in_turn(self, stage: Stage) -> None:
        if self._run.is_done(stage.name):
            return  # inherited
        waits_for = self._run.request.pipeline.waits_for(stage)
        await workflow.wait_condition(lambda: all(self._run.is_done(name) for name in waits_for))
        await self._complete_stage(stage)

    # --- one stage ----------------------------------------------------------------------------------------------

    async def _complete_stage(self, stage: Stage) -> None:
        """Run rounds of the stage until it is accepted: by itself, by its reviewer or by a person."""
        await self._settle(stage, await self._run_round(stage))

    async def _settle(self, stage: Stage, notice: Notice) -> None:
        """Do what the notice asks for, until nothing more is wanted of the stage."""
        while True:
            comment = ""
            if (reason := self._reason_to_ask(stage, notice)) is not None:
                decision = await self._ask(stage, reason)
                if decision.action is DecisionAction.APPROVE:
                    outcome = f"{reason}; approved by {decision.by}"
                    break
                comment = f"{decision.by}: {decision.comment}"
                if stage.name in self._funded:
                    self._funded.remove(stage.name)
                    notice = await self._run_round(stage, comment=comment)
                    continue
            elif (accepted := self._reason_to_accept(stage, notice)) is not None:
                outcome = accepted
                break
            notice = await self._send_back(stage, notice, comment)
        self._run.finish_stage(stage, outcome, workflow.now())

    def _reason_to_ask(self, stage: Stage, notice: Notice) -> str | None:
        """Why a person has to decide on this notice, or `None` when the pipeline can go on by itself."""
        if notice.status == "blocked":
            return f"{BLOCKED}{notice.blockers}"
        if notice.metadata.verdict is Verdict.REJECT:
            return f"the review rejects {stage.reviews}: {notice.summary}"
        if self._reason_to_accept(stage, notice) is None:
            return self._reason_to_stop(stage, notice)
        if stage.gate or stage.name in self._run.request.gates:
            return "this stage waits for an approval"
        return None

    def _reason_to_accept(self, stage: Stage, notice: Notice) -> str | None:
        """Why nothing has to be done again, in words for the result, or `None`."""
        if not sends_back(notice):
            rounds = self._run.round_count(stage.name)
            return "" if stage.kind is StageKind.WORK else f"{notice.metadata.verdict} in round {rounds}"
        still = standstill(self._run.findings(stage.name))
        return still.reason if still is not None and still.is_acceptable else None

    def _reason_to_stop(self, stage: Stage, notice: Notice) -> str | None:
        """Why another round is not worth its price, or `None`."""
        rounds = self._run.round_count(stage.name)
        if (still := standstill(self._run.findings(stage.name))) is not None:
            return f"{still.reason}, round {rounds}: {notice.summary}"
        return None if rounds < stage.max_rounds else f"not accepted after {rounds} rounds: {notice.summary}"

    async def _send_back(self, stage: Stage, notice: Notice, comment: str) -> Notice:
        """Have the work done again that this notice is about, then look at it again."""
        if stage.kind is StageKind.WORK:
            return await self._run_round(stage, comment=comment)
        verdict_ref = self._run.reference(stage.name)
        for name in self._targets(stage, notice):
            target = self._run.request.pipeline.stage(name)
            await self._settle(target, await self._run_round(target, extra=[verdict_ref], comment=comment))
        return await self._run_round(stage, comment=comment)

    def _targets(self, stage: Stage, notice: Notice) -> list[str]:
        if stage.reviews is not None:
            return [stage.reviews]
        assert stage.reworks
        named = [name for name in stage.reworks if name in (notice.metadata.rework or [])]
        return named or [stage.reworks[0]]

    async def _run_round(self, stage: Stage, extra: list[StageInputRef] | None = None, comment: str = "") -> Notice:
        await self._stand_still_while_paused()
        previous = [stage.name] if self._run.round_count(stage.name) else []
        inputs = [self._run.reference(name) for name in (*stage.needs, *previous)] + (extra or [])
        current = self._run.start_round(stage, workflow.now(), inputs, comment)
        await self._tell_parent()
        await self._record()
        order = StageOrder(
            run_key=self._run.run_key,
            feature=self._run.request.feature,
            stage=stage.name,
            round=current.number,
            inputs=inputs,
            comment=comment,
            reset=current.reset,
        )
        try:
            while (notice := await self._perform(current, order)) is None:
                pass  # it was parked
            check_verdict(stage, notice)
        except (ActivityError, ApplicationError) as error:
            current.has_failed = not is_cancelled_exception(error)
            raise
        self._run.finish_round(current, notice, workflow.now())
        await self._tell_parent()
        return notice

    async def _perform(self, current: Round, order: StageOrder) -> Notice | None:
        """Have the agent do the round; `None` when no model could be asked and the round has to begin again."""
        stage, request = current.stage, self._run.request
        try:
            notice: Notice = await workflow.execute_activity(
                stage_activity(stage.agent, stage.task_type),
                RunStageInput.of(order, workflow.info().run_id),
                result_type=Notice,
                activity_id=activity_id(stage.name, current.number),
                task_queue=agent_queue(stage.agent),
                start_to_close_timeout=activities.STAGE_START_TO_CLOSE,
                schedule_to_close_timeout=activities.STAGE_SCHEDULE_TO_CLOSE,
                heartbeat_timeout=activities.STAGE_HEARTBEAT_TIMEOUT,
                retry_policy=activities.STAGE_RETRY,
                summary=f"{stage.name}, round {current.number}",
                priority=Priority(
                    priority_key=None if request.priority == DEFAULT_PRIORITY else request.priority,
                    fairness_key=None if request.tenant == DEFAULT_TENANT else request.tenant,
                ),
            )
        except ActivityError as error:
            if (delay := parked_delay(error, current.parked_times)) is None:
                raise
            await self._park(current, error, delay)
            return None
        return notice

    async def _park(self, current: Round, error: ActivityError, delay: timedelta) -> None:
        """Wait until a model may be asked again: durably, without a worker's slot and without using up an attempt."""
        reason = error.cause.message if isinstance(error.cause, ApplicationError) else str(error)
        self._run.park(current, reason, workflow.now(), workflow.now() + delay)
        await self._record()
        await workflow.sleep(delay, summary=f"{current.stage.name} is parked")
        self._run.unpark(current)

    def _note_reset(self, seed: int) -> None:
        """Temporal changes the seed when, and only when, it takes a run back; the same way again in a replay."""
        self._run.note_reset(seed, workflow.now())

    # --- people -------------------------------------------------------------------------------------------------

    async def _ask(self, stage: Stage, reason: str) -> Decision:
        """Wait for the update `decide`, durably and not for ever."""
        limit = timedelta(seconds=self._run.request.decision_timeout_seconds)
        self._run.wait(stage, reason, workflow.now(), workflow.now() + limit)
        await self._show_status()
        await self._tell_parent()
        try:
            await workflow.wait_condition(
                lambda: stage.name in self._decisions, timeout=limit, timeout_summary=f"decision on {stage.name}"
            )
        except TimeoutError:
            raise RunEndedError(RunStatus.EXPIRED, f"nobody decided on {stage.name} within {limit}") from None
        decision = self._decisions.pop(stage.name)
        self._run.decided(decision, workflow.now())
        if decision.action is DecisionAction.REJECT:
            raise RunEndedError(RunStatus.REJECTED, f"{decision.by} rejected {stage.name}: {decision.comment or '-'}")
        workflow.upsert_search_attributes([search_attributes.STATUS.value_set(self._run.status)])
        await self._tell_parent()
        return decision

    async def _tell_parent(self) -> None:
        """A program gives this run's place to another feature while all that is left waits for people."""
        questions = list(self._run.waiting.values())
        stands_still = bool(questions) and not self._run.open_rounds()
        if (parent := workflow.info().parent) is None or stands_still == self._parent_knows_of_wait:
            return
        self._parent_knows_of_wait = stands_still
        stage, reason = (questions[0].stage, questions[0].reason) if stands_still else (None, "")
        waits = FeatureWaits(workflow_id=self._run.workflow_id, stage=stage, reason=reason)
        try:
            await workflow.get_external_workflow_handle(parent.workflow_id).signal(FEATURE_WAITS, waits)
        except ApplicationError:
            workflow.logger.warning("the program that started this run is gone")

    async def _stand_still_while_paused(self) -> None:
        if not self._pause_requested:
            return
        if not self._run.is_paused:
            self._run.set_paused(paused=True, now=workflow.now())
            await self._show_status()
        await workflow.wait_condition(lambda: not self._pause_requested)
        if not self._run.is_paused:
            return
        self._run.set_paused(paused=False, now=workflow.now())
        workflow.upsert_search_attributes([search_attributes.STATUS.value_set(self._run.status)])

    @workflow.update
    async def decide(self, decision: Decision) -> str:
        """Decide on the waiting stage: approve, revise or reject what has the given sha256."""
        self._decisions[decision.stage] = decision
        return f"{decision.action} recorded for {decision.stage}"

    @decide.validator
    def _validate_decision(self, decision: Decision) -> None:
        questions = self._state.waiting if self._state else {}
        open_questions = [name for name in questions if name not in self._decisions]
        if not open_questions:
            raise ApplicationError("nothing waits for a decision", type=errors.REQUEST_INVALID)
        if decision.stage not in open_questions:
            raise ApplicationError(
                f"{' and '.join(map(repr, open_questions))} waits for a decision, not {decision.stage!r}",
                type=errors.REQUEST_INVALID,
            )
        waiting = questions[decision.stage]
        if decision.sha256 != waiting.sha256:
            raise ApplicationError(
                f"the decision is on {decision.sha256[:12]}…, but round {waiting.round} of {waiting.stage} is "
                f"{waiting.sha256[:12]}…: look at it again",
                type=errors.REQUEST_INVALID,
            )

    @workflow.update
    async def set_budget(self, change: BudgetChange) -> str:
        """What the run may spend in all from now on; stages that stopped for want of budget go on with it."""
        told = self._run.budget_set(change, workflow.now())
        try:
            await self._record(change.budget)
        except ActivityError as error:
            self._run.withdraw(told)
            cause = error.cause if isinstance(error.cause, ApplicationError) else error
            raise ApplicationError(cause.message, type=errors.BUDGET_REFUSED) from error
        going_on = [item for item in self._run.waiting.values() if item.reason.startswith(BLOCKED + BLOCKED_BY_BUDGET)]
        for item in going_on:
            if item.stage not in self._decisions:
                self._funded.add(item.stage)
                self._decisions[item.stage] = Decision(
                    stage=item.stage,
                    action=DecisionAction.REVISE,
                    sha256=item.sha256,
                    by=change.by,
                    comment=f"the run may now spend {change.budget} in all: go on where you stopped",
                )
        names = " and ".join(item.stage for item in going_on)
        return f"the run may spend {change.budget} in all" + (f"; {names} goes on" if names else "")

    @set_budget.validator
    def _validate_budget(self, change: BudgetChange) -> None:  # noqa: ARG002  Temporal gives it the argument
        if self._state is None or self._state.completed_at is not None:
            raise ApplicationError("the run has not started or has ended", type=errors.REQUEST_INVALID)

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

    def _trace_note(self) -> str:
        """As the worker has it; details are in no history, so whoever replays may say another."""
        tell = workflow.extern_functions().get(TRACE_NOTE)
        return str(tell(self._run.run_key)) if tell else ""

    async def _show_status(self) -> None:
        workflow.upsert_search_attributes([search_attributes.STATUS.value_set(self._run.status)])
        await self._record()

    async def _record(self, budget: Budget | None = None) -> None:
        """Store the step in PostgreSQL: one local activity, one statement, no server round trip of its own."""
        workflow.set_current_details(self._run.details(self._trace_note()))
        if not self._run.is_recorded:
            workflow.upsert_search_attributes(
                [
                    search_attributes.FEATURE.value_set(self._run.request.feature),
                    search_attributes.STATUS.value_set(self._run.status),
                ]
            )
        step = self._run.take_step(workflow.now(), budget)
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


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _was_reset_to_its_beginning() -> bool:
    """Whether this is the first task of an execution that Temporal made by taking another one back to its first task.

    The seed changes before this code runs then, so nobody is told. A task that is replayed, after a reset to a later
    one, had only the three events of every beginning before it.
    """
    info = workflow.info()
    return info.run_id != info.first_execution_run_id and info.get_current_history_length() > FIRST_TASK_EVENTS


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
    return RunState(
        request=request,
        run_key=key,
        workflow_id=info.workflow_id,
        started_at=workflow.now(),
        namespace=info.namespace,
    )


def _explain(error: BaseException, state: RunState) -> ApplicationError:
    """A stage's failure as one sentence that names the stage, with the code as its type."""
    current = next((item for item in state.open_rounds() if item.has_failed), None)
    where = f"{current.stage.name}, round {current.number}" if current else "the pipeline"
    cause = error.cause if isinstance(error, ActivityError) else error
    message = cause.message if isinstance(cause, ApplicationError) else str(cause or error)
    code = cause.type if isinstance(cause, ApplicationError) else None
    return ApplicationError(f"{where}: {message}", type=code, non_retryable=True)
