"""What a person does with a run that is under way: look, decide, pause, resume, cancel."""

import asyncio
import getpass
from collections.abc import Generator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from temporalio.client import Client, WorkflowQueryFailedError, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from coatcheck.cli.output import emit, emit_json
from coatcheck.cli.progress import (
    QUERY_TIMEOUT,
    WORKFLOW,
    ProgressReader,
    Seen,
    question,
    recorded_progress,
    table,
)
from coatcheck.cli.runs import FoundRun, RunNotFoundError, find
from coatcheck.cli.session import load_settings, open_database, open_temporal, temporal_errors
from coatcheck.cli.voice import MisuseError, tell
from coatcheck.errors import CoatcheckError, DependencyDownError
from coatcheck.settings import Settings
from schemas.budget import Budget, BudgetChange
from schemas.pipeline import Decision, DecisionAction, Waiting
from workflows.feature_pipeline import FeaturePipelineWorkflow

if TYPE_CHECKING:
    from coatcheck.storage.budgets import RunBudget

MIN_SHA256_PREFIX: Final = 8
UPDATE_SECONDS: Final = 15.0
"""The worker has just answered a query; an update takes it one workflow task."""


async def show_progress(run: str, *, as_json: bool, data_dir: Path) -> None:
    """Print where every stage of the run is.

    Raises:
        RunNotFoundError: there is no such run.
        DependencyDownError: neither Temporal nor PostgreSQL answers.
    """
    settings = load_settings(data_dir)
    seen = await look(run, settings)
    if seen.source != WORKFLOW:
        tell(f"note: {seen.source}")
    if seen.progress is None:
        raise CoatcheckError(
            f"there is no progress of {run}",
            hint=f"`coatcheck watch {run}` says how it ended, if it did; `coatcheck doctor` checks the workers",
        )
    budget = await _budget(seen.progress.run_key, settings)
    if as_json:
        emit_json(seen.progress.model_dump() | ({"budget": budget} if budget else {}))
        return
    emit(table(seen.progress))
    if budget:
        from coatcheck.cli.screen import budget_line  # noqa: PLC0415  what a run without a budget needs not load

        emit(budget_line(budget) + "\n")
    for line in question(seen.progress):
        tell(line)


async def _budget(run_key: str, settings: Settings) -> "RunBudget | None":
    """What the run may spend and has spent; `None` without a budget, or when PostgreSQL does not say."""
    from coatcheck.storage.budgets import run_budget  # noqa: PLC0415  takes as long to load as all the rest

    with suppress(DependencyDownError):
        async with open_database(settings) as pool:
            return await run_budget(pool, run_key)
    return None


async def look(run: str, settings: Settings) -> Seen:
    """Where the run is, from itself or else from the rows; raises as `show_progress` does."""
    try:
        client = await open_temporal(settings)
        found = await find(client, run)
    except (DependencyDownError, RunNotFoundError) as error:
        async with open_database(settings) as pool:
            return Seen(await recorded_progress(pool, run), f"{error}; these are the recorded rows")
    async with AsyncExitStack() as resources:
        return await ProgressReader(client, found, settings, resources).read()


async def decide(
    run: str,
    stage: str,
    action: DecisionAction,
    *,
    sha256: str | None,
    latest: bool,
    by: str | None,
    comment: str,
    data_dir: Path,
) -> None:
    """Answer a waiting run and say what comes of it; raises as `decision` does."""
    said = await decision(run, stage, action, sha256=sha256, latest=latest, by=by, comment=comment, data_dir=data_dir)
    tell(said)


async def decision(
    run: str,
    stage: str,
    action: DecisionAction,
    *,
    sha256: str | None,
    latest: bool,
    by: str | None,
    comment: str,
    data_dir: Path,
) -> str:
    """Answer a waiting run; the decision is bound to the sha256 of what was reviewed.

    Returns:
        What the run says to it.

    Raises:
        MisuseError: neither or both of `sha256` and `latest`, or a prefix that is too short.
        CoatcheckError: nothing waits, another stage waits, or something else than what was reviewed.
        DependencyDownError: Temporal or its worker does not answer.
    """
    if (sha256 is None) != latest:
        raise MisuseError(
            "say what was reviewed: either --sha256 or --latest",
            hint="`coatcheck progress RUN` shows what waits; --latest takes it unseen",
        )
    if sha256 is not None and len(sha256) < MIN_SHA256_PREFIX:
        raise MisuseError(f"--sha256 needs at least {MIN_SHA256_PREFIX} characters")
    client = await open_temporal(load_settings(data_dir))
    found = await find(client, run)
    waiting = await _waiting(client, found, stage)
    if sha256 is not None and not waiting.sha256.startswith(sha256.lower()):
        raise CoatcheckError(
            f"round {waiting.round} of {stage} is {waiting.sha256[:12]}…, not {sha256[:12]}…",
            hint="an earlier round was reviewed: look at what waits now",
        )
    decided = Decision(stage=stage, action=action, sha256=waiting.sha256, by=by or my_name(), comment=comment)
    return await update(client, found, "decide", decided)


def my_name() -> str:
    """Who is sitting here.

    Raises:
        MisuseError: the system does not know.
    """
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:  # a container's user may have no name
        raise MisuseError("who decides? this system does not know your name", hint="add --by NAME") from error


async def _waiting(client: Client, found: FoundRun, stage: str) -> Waiting:
    try:
        progress = await found.handle(client).query(FeaturePipelineWorkflow.progress, rpc_timeout=QUERY_TIMEOUT)
    except RPCError as error:
        raise DependencyDownError(
            "no core worker answers, and only it can take a decision", hint="`coatcheck doctor` checks the workers"
        ) from error
    except WorkflowQueryFailedError as error:
        raise CoatcheckError(f"{found.workflow_id} has not got to its first stage") from error
    if not progress.waiting:
        raise CoatcheckError(f"{found.workflow_id} is {progress.status}: nothing waits for a decision")
    for waiting in progress.waiting:
        if waiting.stage == stage:
            return waiting
    names = " and ".join(waiting.stage for waiting in progress.waiting)
    raise CoatcheckError(f"{names} waits for a decision, not {stage}", hint="`coatcheck progress RUN` shows it")


async def update(client: Client, found: FoundRun, name: str, argument: Decision | BudgetChange) -> str:
    """Have the run take something, and return what it says.

    Raises:
        CoatcheckError: it refuses.
        DependencyDownError: Temporal or its worker does not answer.
    """
    try:
        async with asyncio.timeout(UPDATE_SECONDS):
            with temporal_errors():
                said: str = await found.handle(client).execute_update(name, argument, result_type=str)
                return said
    except TimeoutError as error:
        raise DependencyDownError(
            f"no worker confirmed it within {UPDATE_SECONDS:g} s; it may still be taken",
            hint="`coatcheck progress RUN` shows whether it was",
        ) from error
    except WorkflowUpdateFailedError as error:
        cause = error.cause
        raise CoatcheckError(cause.message if isinstance(cause, ApplicationError) else str(cause)) from error


async def set_budget(run: str, budget: Budget, *, by: str | None, data_dir: Path) -> None:
    """Set what the run may spend in all.

    Raises:
        CoatcheckError: there is no such run, it has ended, or its tenant cannot pay.
        DependencyDownError: Temporal or its worker does not answer.
    """
    client, found = await _open_run(run, data_dir)
    tell(await update(client, found, "set_budget", BudgetChange(budget=budget, by=by or my_name())))


async def pause(run: str, *, data_dir: Path) -> None:
    """Have the run stand still before its next stage.

    Raises:
        CoatcheckError: there is no such run, or it has ended.
        DependencyDownError: Temporal does not answer.
    """
    client, found = await _open_run(run, data_dir)
    with temporal_errors(), _still_open(found):
        await found.handle(client).signal(FeaturePipelineWorkflow.pause)
    tell(f"{found.workflow_id} stops before its next stage; a stage under way is finished")
    tell(f"hint: `coatcheck resume {run}` lets it go on")


async def resume(run: str, *, data_dir: Path) -> None:
    """Have a paused run go on; raises as `pause` does."""
    client, found = await _open_run(run, data_dir)
    with temporal_errors(), _still_open(found):
        await found.handle(client).signal(FeaturePipelineWorkflow.resume)
    tell(f"{found.workflow_id} goes on")


async def cancel(run: str, *, data_dir: Path) -> None:
    """Ask the run to end; raises as `pause` does."""
    client, found = await _open_run(run, data_dir)
    with temporal_errors(), _still_open(found):
        await found.handle(client).cancel()
    tell(f"{found.workflow_id} is being cancelled; what it delivered stays")


async def _open_run(run: str, data_dir: Path) -> tuple[Client, FoundRun]:
    client = await open_temporal(load_settings(data_dir))
    found = await find(client, run)
    if not found.is_open:
        status = found.status.name.lower() if found.status else "closed"
        raise CoatcheckError(f"{found.workflow_id} has ended ({status})")
    return client, found


@contextmanager
def _still_open(found: FoundRun) -> Generator[None]:
    """It may have ended since we looked."""
    try:
        yield
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise CoatcheckError(f"{found.workflow_id} has ended") from error
        raise
