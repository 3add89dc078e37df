"""What `coatcheck demo` does: one run on the real servers, and the proof of what it claims."""

import asyncio
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coatcheck.cli.output import columns, emit
from coatcheck.cli.runs import FoundRun
from coatcheck.cli.session import load_settings, open_database, open_temporal
from coatcheck.cli.stack import stack_config, warn_of_other_config
from coatcheck.cli.starting import chosen_pipeline, start
from coatcheck.cli.voice import tell
from coatcheck.cli.watching import watch_found
from coatcheck.errors import CoatcheckError
from coatcheck.localstack.stack import start_detached
from coatcheck.localstack.status import StackState, StackStatus, load_status
from coatcheck.settings import Settings
from coatcheck.storage.database import Pool
from coatcheck.storage.journal import TurnInFlight, TurnJournal
from coatcheck.storage.state import tasks
from schemas.notice import Notice
from schemas.pipeline import FeatureRequest

WORKER: Final = "agents"
KILL_AT: Final = ("backend", "frontend", "qa")
"""Stages in whose model call the worker may be killed: late enough that there is something to lose."""
LOOK_SECONDS: Final = 0.02


@dataclass
class Kill:
    """What was done to the agent worker."""

    pid: int
    call: TurnInFlight
    at: float
    """Monotonic seconds."""


async def demonstrate(request: FeatureRequest, *, kill: bool, config: Path | None, data_dir: Path) -> None:
    """Start what is not running, run the request, and show what is left behind.

    Raises:
        CoatcheckError: the run did not complete, or with `kill` a finished model call was paid for again.
        DependencyDownError: a server or worker did not start.
    """
    status = await asyncio.to_thread(_ensure_stack, data_dir, config)
    settings = load_settings(data_dir)
    if (chosen := chosen_pipeline(None, config=status.config_file, data_dir=data_dir)) is not None:
        request = request.model_copy(update={"pipeline": chosen})
    async with AsyncExitStack() as resources:
        client = await open_temporal(settings)
        pool = await resources.enter_async_context(open_database(settings))
        found = await start(client, request, f"demo/{request.feature}/{uuid.uuid4().hex[:8]}")
        tell(f"started {found.workflow_id}: {request.brief.splitlines()[0]}")
        killing = asyncio.create_task(_kill_in_call(pool, found, data_dir)) if kill else None
        await watch_found(client, found, settings, as_json=False)
        ended = time.monotonic()
        history = (await found.handle(client).describe()).raw_description.workflow_execution_info.history_size_bytes
        emit("\n" + await _proof(pool, found, history))
        if killing is not None:
            emit(await _after_kill(pool, found, await killing, ended))
    emit(_next_steps(status, request, found, kill=kill, is_scripted=_is_scripted(settings)))


def _ensure_stack(data_dir: Path, config: Path | None) -> StackStatus:
    status = load_status(data_dir)
    if status.state == StackState.RUNNING:
        warn_of_other_config(status, config)
        return status
    wanted = stack_config(data_dir, Settings(), config=config)
    tell("starting Temporal, nats-server, PostgreSQL and three workers …")
    started = time.monotonic()
    status = start_detached(wanted)
    tell(f"ready after {time.monotonic() - started:.1f} s, in {status.data_dir}")
    return status


async def _kill_in_call(pool: Pool, found: FoundRun, data_dir: Path) -> Kill:
    """Wait until an agent is in the middle of a model call, then end its worker as a power cut would."""
    journal = TurnJournal(pool, "demo")
    while True:
        for call in await journal.in_flight(found.run_key):
            if call.task_key.rpartition("/")[2].rpartition("-")[0] not in KILL_AT:
                continue
            pid = load_status(data_dir).member(WORKER).pid
            if pid is None:
                raise CoatcheckError(f"the worker {WORKER!r} is not running", hint="`coatcheck status` shows its log")
            os.kill(pid, signal.SIGKILL)
            tell(f"killed the agent worker (pid {pid}) with SIGKILL in the middle of {call.agent}'s model call")
            return Kill(pid=pid, call=call, at=time.monotonic())
        await asyncio.sleep(LOOK_SECONDS)


async def _proof(pool: Pool, found: FoundRun, history_bytes: int) -> str:
    """Where the bytes went: the bodies on the streams, tickets everywhere else."""
    notices = [Notice.model_validate(row.output_data) for row in await tasks(pool, found.run_key) if row.output_data]
    last = list({notice.agent: notice for notice in notices}.values())
    bodies = sum(notice.metadata.bytes for notice in notices)
    small = sum(len(notice.to_wire()) for notice in notices)
    usage = await TurnJournal(pool, "demo").usage(found.run_key)
    rows = [
        ["deliverables on the streams", f"{len(notices)}", _kilobytes(bodies)],
        ["files of the last rounds", f"{sum(notice.files_modified for notice in last)}", ""],
        ["checks that passed in the last test", _checks(last), ""],
        ["notices to the orchestrator", f"{len(notices)}", _kilobytes(small)],
        ["Temporal's history of the run", "1", _kilobytes(history_bytes)],
        ["model turns, each journalled", f"{sum(task.turns for task in usage)}", ""],
        ["model calls paid", f"{sum(task.calls for task in usage)}", ""],
    ]
    return columns(("what this run left", "count", "size"), rows)


def _checks(last: list[Notice]) -> str:
    found = [notice.metadata.evidence for notice in last if notice.metadata.evidence is not None]
    return ", ".join(f"{item.passed} of {item.passed + item.failed}" for item in found)


async def _after_kill(pool: Pool, found: FoundRun, kill: Kill, ended: float) -> str:
    usage = await TurnJournal(pool, "demo").usage(found.run_key)
    again = sum(task.calls - task.turns for task in usage)
    stage = kill.call.task_key.rpartition("/")[2]
    story = (
        f"The agent worker was killed in the middle of a model call of {stage}; the run was complete "
        f"{ended - kill.at:.1f} s later.\nModel calls that were paid for again: {again}"
    )
    if again:
        raise CoatcheckError(story)
    return story


def _next_steps(status: StackStatus, request: FeatureRequest, found: FoundRun, *, kill: bool, is_scripted: bool) -> str:
    subject = f"agog.deliverables.roy.backend.{request.feature}"
    steps = [
        ("the backend, by its subject", f"fetch {subject}"),
        ("its files: a module and its tests, ready to run", f"fetch {subject} --out backend"),
        ("where a run is, what it waits for, who spent what", f"why {request.feature}"),
        ("every deliverable of the feature", f"deliverables {request.feature}"),
        ("what happened, in order", f"events {found.workflow_id}"),
        (
            "hold that against the rules of every run, without a model call",
            f"bench replay --correlation {found.run_key}",
        ),
        ("do it again from QA on, paying only from there", f"bench fork {found.workflow_id} --from qa --wait"),
        ("kill the worker in mid-call and see the run resume", "demo --kill"),
        ("stop the stack (the data stay)", "down"),
    ]
    program = _program()
    shown = [f"  # {what}\n  {program}{command}" for what, command in steps if not (kill and "--kill" in command)]
    note = (
        "The texts were written by the scripted author, not by a language model: set OPENAI_API_KEY or\n"
        "ANTHROPIC_API_KEY and restart the stack for a real one. Everything else was real.\n\n"
    )
    ui = status.temporal.ui_url if status.temporal else None
    where = f"\nThe stack goes on running in {status.data_dir}." + (f" Temporal's Web UI: {ui}" if ui else "")
    return f"\n{note if is_scripted else ''}Next:\n" + "\n".join(shown) + f"\n{where}"


def _program() -> str:
    """How the reader can call us again: by name when it is on the PATH, else as they did."""
    return "coatcheck " if shutil.which("coatcheck") else f"{os.path.relpath(sys.argv[0])} "


def _is_scripted(settings: Settings) -> bool:
    keys: Sequence[object] = (settings.openai_api_key, settings.openai_base_url, settings.anthropic_api_key)
    return settings.model == "scripted" if settings.model else not any(keys)


def _kilobytes(size: int) -> str:
    return f"{size / 1000:.1f} KB"
