"""Starts a program, and what a person does with one that is under way: look, limit, pause, resume, cancel."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from temporalio.client import WorkflowExecutionStatus, WorkflowUpdateFailedError
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from coatcheck.cli.output import emit, emit_json
from coatcheck.cli.program_view import ProgramReader, find_program
from coatcheck.cli.program_watching import follow, report
from coatcheck.cli.session import load_settings, open_temporal, temporal_errors
from coatcheck.cli.steering import UPDATE_SECONDS
from coatcheck.cli.voice import tell
from coatcheck.errors import CoatcheckError, DependencyDownError
from schemas.program import MaxConcurrent, ProgramRequest, program_workflow_id
from schemas.task_queues import CORE, TASK_TIMEOUT
from workflows.program import ProgramWorkflow


async def run_program(request: ProgramRequest, *, wait: bool, as_json: bool, data_dir: Path) -> None:
    """Start the program, say what it is called, and with `wait` follow it to its end.

    Raises:
        CoatcheckError: a program of that name is open, or (with `wait`) not every feature went through.
        DependencyDownError: Temporal does not answer.
    """
    client = await open_temporal(load_settings(data_dir))
    workflow_id = program_workflow_id(request.name)
    try:
        with temporal_errors():
            await client.start_workflow(
                ProgramWorkflow.run,
                request,
                id=workflow_id,
                task_queue=CORE,
                static_summary=f"{len(request.features)} features, {request.max_concurrent} at once",
                task_timeout=TASK_TIMEOUT,
                id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            )
    except WorkflowAlreadyStartedError as error:
        raise CoatcheckError(
            f"{workflow_id} is already running",
            hint=f"`coatcheck program watch {request.name}` follows it; --name gives a second one a name of its own",
        ) from error
    reader = await find_program(client, request.name)
    run_id = reader.handle.run_id
    if wait:
        tell(f"started {workflow_id}, run id {run_id}, {len(request.features)} features")
        await follow(reader, as_json=as_json)
        return
    if as_json:
        emit_json({"workflow_id": workflow_id, "run_id": run_id, "features": len(request.features)})
    else:
        emit(f"workflow id  {workflow_id}\nrun id       {run_id}\nfeatures     {len(request.features)}")
    tell(f"hint: `coatcheck program watch {request.name}` shows how far it is")


async def show_status(name: str, *, as_json: bool, data_dir: Path) -> None:
    """Print where every feature is.

    Raises:
        RunNotFoundError: there is no such program.
        DependencyDownError: Temporal does not answer, or no worker does.
    """
    report(await (await _find(name, data_dir)).read(), as_json=as_json)


async def watch(name: str, *, as_json: bool, data_dir: Path) -> None:
    """Follow the program to its end; raises as `program_watching.follow` does, and `RunNotFoundError`."""
    await follow(await _find(name, data_dir), as_json=as_json)


async def pause(name: str, *, data_dir: Path) -> None:
    """Start no more features.

    Raises:
        CoatcheckError: there is no such program, or it has ended.
        DependencyDownError: Temporal does not answer.
    """
    async with _open_program(name, data_dir) as program:
        await program.handle.signal(ProgramWorkflow.pause)
    tell(f"{program.name} starts no more features; those that have begun go on")
    tell(f"hint: `coatcheck program resume {program.name}` lets it go on")


async def resume(name: str, *, data_dir: Path) -> None:
    """Start features again; raises as `pause` does."""
    async with _open_program(name, data_dir) as program:
        await program.handle.signal(ProgramWorkflow.resume)
    tell(f"{program.name} goes on")


async def cancel(name: str, *, data_dir: Path) -> None:
    """Ask the program and every run that it has started to end; raises as `pause` does."""
    async with _open_program(name, data_dir) as program:
        await program.handle.cancel()
    tell(f"{program.name} is being cancelled, with the runs that it has started; what they delivered stays")


async def limit(name: str, max_concurrent: int, *, data_dir: Path) -> None:
    """Work on at most so many features at once; raises as `pause` does, also when no worker answers."""
    async with _open_program(name, data_dir) as program:
        update = program.handle.execute_update(
            ProgramWorkflow.set_max_concurrent, MaxConcurrent(max_concurrent=max_concurrent)
        )
        try:
            async with asyncio.timeout(UPDATE_SECONDS):
                tell(f"{program.name}: {await update}")
        except TimeoutError as error:
            raise DependencyDownError(
                f"no worker confirmed it within {UPDATE_SECONDS:g} s; it may still be taken",
                hint=f"`coatcheck program status {program.name} --json` shows whether it was",
            ) from error
        except WorkflowUpdateFailedError as error:
            raise CoatcheckError(str(getattr(error.cause, "message", error.cause))) from error


async def _find(name: str, data_dir: Path) -> ProgramReader:
    return await find_program(await open_temporal(load_settings(data_dir)), name)


@asynccontextmanager
async def _open_program(name: str, data_dir: Path) -> AsyncGenerator[ProgramReader]:
    """A program that has not ended, also not while something is asked of it."""
    program = await _find(name, data_dir)
    with temporal_errors():
        described = await program.handle.describe()
        if described.status is not WorkflowExecutionStatus.RUNNING:
            status = described.status.name.lower() if described.status else "closed"
            raise CoatcheckError(f"{program.name} has ended ({status})")
        try:
            yield program
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                raise CoatcheckError(f"{program.name} has ended") from error
            raise
