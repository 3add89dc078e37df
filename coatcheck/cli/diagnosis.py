"""`doctor`: looks at everything that a run depends on and says what to do about what is wrong.

Each check has its own connections and its own time limit, so that one dead server hides nothing about the others.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

import typer
from pydantic import BaseModel
from pydantic_core import from_json
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.workflowservice.v1 import GetSystemInfoRequest

from activities.queues import pollers
from coatcheck.archive.monitoring import archive_lags
from coatcheck.cli import toolbench
from coatcheck.cli.archiving import ARCHIVE_HINT, archive_problems
from coatcheck.cli.event_log import backbone_problems
from coatcheck.cli.events import MAX_LAG
from coatcheck.cli.output import columns, emit, emit_json
from coatcheck.cli.reconciling import check as check_reconciled
from coatcheck.cli.session import UP_HINT, load_settings, open_database, open_nats, open_temporal, temporal_errors
from coatcheck.cli.voice import EXIT_DEPENDENCY_DOWN, EXIT_FAILED, tell
from coatcheck.config import load_config
from coatcheck.errors import CoatcheckError, DependencyDownError, MessagingUnavailableError
from coatcheck.events.monitoring import backbone_status
from coatcheck.localstack.status import StackState, load_status
from coatcheck.messaging.accounts import CORE as CORE_IDENTITY
from coatcheck.messaging.accounts import LOGS
from coatcheck.messaging.archive import ArchiveClient
from coatcheck.messaging.streams import check_sync_always, stream_statuses
from coatcheck.settings import Settings
from coatcheck.storage.migrate import pending
from coatcheck.workspace.isolation import describe
from coatcheck.workspace.sandbox import Sandbox
from schemas.streams import TOOL_STREAMS
from schemas.task_queues import CORE, agent_queue
from workers.temporal import check_search_attributes

CHECK_SECONDS: Final = 10.0
"""For one check with its connection; each connects within 3 s or is away."""
LEAST_FREE_BYTES: Final = 2 * 1024**3
"""PostgreSQL, JetStream and Temporal stop working on a full disk; a thousand runs take about 200 MB."""
_RESTART_HINT: Final = "`coatcheck down` and `coatcheck up` make the agents, their keys and streams follow the file"
_WORKER_HINT: Final = "`coatcheck up` runs the workers; `coatcheck worker {kind}` runs one alone"


class Verdict(StrEnum):
    """What a check says."""

    OK = "ok"
    FAILED = "failed"
    """It is there and not as it must be."""
    DOWN = "down"
    """It does not answer."""


class Finding(BaseModel):
    """One check's result."""

    check: str
    verdict: Verdict
    detail: str
    remedy: str | None = None


Check = Callable[[Settings], Awaitable[str]]
"""Returns what is well, or raises what is wrong with a hint that says what to do."""


async def doctor(*, as_json: bool, data_dir: Path) -> None:
    """Run every check and print what each found.

    Raises:
        Exit: with 3 when something is down, with 1 when something else is wrong.
    """
    settings = load_settings(data_dir)
    findings = await asyncio.gather(*(_finding(name, check, settings) for name, check in CHECKS.items()))
    if as_json:
        emit_json(findings)
    else:
        emit(columns(("check", "verdict", "detail"), [[item.check, item.verdict, item.detail] for item in findings]))
        for remedy in dict.fromkeys(item.remedy for item in findings if item.remedy):
            tell(f"hint: {', '.join(item.check for item in findings if item.remedy == remedy)}: {remedy}")
    verdicts = {item.verdict for item in findings}
    if Verdict.DOWN in verdicts:
        raise typer.Exit(EXIT_DEPENDENCY_DOWN)
    if Verdict.FAILED in verdicts:
        raise typer.Exit(EXIT_FAILED)


async def _finding(name: str, check: Check, settings: Settings) -> Finding:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            with temporal_errors():
                detail = await check(settings)
    except TimeoutError:
        return Finding(check=name, verdict=Verdict.DOWN, detail=f"no answer within {CHECK_SECONDS:g} s")
    except DependencyDownError as error:
        remedy = "`coatcheck up` starts the local stack" if error.hint == UP_HINT else error.hint
        return Finding(check=name, verdict=Verdict.DOWN, detail=str(error), remedy=remedy)
    except CoatcheckError as error:
        return Finding(check=name, verdict=Verdict.FAILED, detail=str(error), remedy=error.hint)
    return Finding(check=name, verdict=Verdict.OK, detail=detail)


# --- Temporal -----------------------------------------------------------------------------------------------------


async def _temporal(settings: Settings) -> str:
    client = await open_temporal(settings)
    info = await client.workflow_service.get_system_info(GetSystemInfoRequest())
    return f"{settings.temporal_address}, namespace {settings.temporal_namespace}, version {info.server_version}"


async def _search_attributes(settings: Settings) -> str:
    try:
        await check_search_attributes(await open_temporal(settings))
    except DependencyDownError as error:
        if "lacks" in str(error):  # the server is there; what is missing is ours to register
            raise CoatcheckError(str(error), hint=error.hint) from error
        raise
    return "registered"


async def _core_workers(settings: Settings) -> str:
    count = await pollers(await open_temporal(settings), CORE, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW)
    if not count:
        raise DependencyDownError(f"nobody polls {CORE}", hint=_WORKER_HINT.format(kind="core"))
    return f"{count} on {CORE}"


async def _agent_workers(settings: Settings) -> str:
    client, agents = await open_temporal(settings), load_config(settings.config_file).agents
    counts = await asyncio.gather(
        *(pollers(client, agent_queue(agent), TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY) for agent in agents)
    )
    idle = [agent_queue(agent) for agent, count in zip(agents, counts, strict=True) if not count]
    if idle:
        raise DependencyDownError(f"nobody polls {', '.join(idle)}", hint=_WORKER_HINT.format(kind="agents"))
    return f"all {len(agents)} queues are polled"


async def _reconcile(settings: Settings) -> str:
    return await check_reconciled(await open_temporal(settings))


# --- NATS ---------------------------------------------------------------------------------------------------------


async def _nats(settings: Settings) -> str:
    async with open_nats(settings) as client:
        return f"{settings.nats_url}, messages of up to {await client.max_message_bytes():,} bytes"


async def _nats_sync(settings: Settings) -> str:
    if settings.nats_url is None:
        async with open_nats(settings):
            pass
    await check_sync_always(settings.nats_monitor_url)
    return "every acknowledged message is on disk"


async def _streams(settings: Settings) -> str:
    known = [*load_config(settings.config_file).streams, *LOGS, *TOOL_STREAMS]
    async with open_nats(settings) as client:
        statuses = await stream_statuses(client, known, placement=settings.placement)
    if missing := {spec.name for spec in known} - {status.name for status in statuses}:
        raise CoatcheckError(
            f"{', '.join(sorted(missing))}: missing", hint="a core worker creates streams that never existed"
        )
    if drifted := [f"{status.name} ({'; '.join(status.drift)})" for status in statuses if status.drift]:
        raise CoatcheckError(
            f"not as declared: {', '.join(drifted)}", hint="change the stream's settings back: `nats stream edit`"
        )
    return f"{len(statuses)} streams, {sum(status.messages for status in statuses):,} messages, no drift"


async def _events(settings: Settings) -> str:
    async with open_nats(settings) as client:
        found = await backbone_status(client)
    if problems := backbone_problems(found, max_lag=MAX_LAG):
        raise CoatcheckError("; ".join(problems), hint="`coatcheck events dead` lists dead letters")
    traces = "" if found.tracer_lag is None else f", {found.tracer_lag:,} not in traces yet"
    return f"{found.events:,} in the audit log, {found.lag:,} of them not in the table yet{traces}, no dead letters"


async def _archive(settings: Settings) -> str:
    streams = [spec.name for spec in load_config(settings.config_file).streams]
    async with open_nats(settings) as client:
        lags = await archive_lags(client, streams)
        if problems := archive_problems(lags):
            raise CoatcheckError("; ".join(problems), hint=ARCHIVE_HINT)
        place = await ArchiveClient(client).place()
    return f"{place}, {sum(lag.unarchived for lag in lags):,} deliverables are not in it yet"


async def _gateway(settings: Settings) -> str:
    async with open_nats(settings, identity=CORE_IDENTITY) as client:
        try:
            answer = from_json(await client.request("$SRV.PING.llm", b"", timeout=2))
        except MessagingUnavailableError as error:
            raise DependencyDownError("nobody serves model calls", hint=_WORKER_HINT.format(kind="gateway")) from error
    return f"model calls are served by {answer['name']} {answer['version']}"


async def _tools(settings: Settings) -> str:
    servers = (await toolbench.offers(settings)).servers if load_config(settings.config_file).mcp else []
    if wrong := [f"{it.server} is {it.state}: {it.reason}" for it in servers if it.state != "up"]:
        raise CoatcheckError("; ".join(wrong), hint="`coatcheck tools list`; the gateway's log has what servers say")
    found = ", ".join(f"{it.server} ({it.tools} tools)" for it in servers)
    return found or "no MCP server is configured"


# --- PostgreSQL and the rest --------------------------------------------------------------------------------------


async def _postgres(settings: Settings) -> str:
    async with open_database(settings) as pool:
        return f"version {await pool.fetchval('SHOW server_version')}"


async def _migrations(settings: Settings) -> str:
    async with open_database(settings):
        pass
    missing = await asyncio.to_thread(pending, settings.require_database_url())
    if missing:
        raise CoatcheckError(f"pending: {', '.join(missing)}", hint="`coatcheck db migrate` applies them")
    return "all applied"


async def _model(settings: Settings) -> str:
    if settings.model and settings.model.startswith("openai:") and not settings.openai_api_key:
        raise CoatcheckError(f"{settings.model} needs OPENAI_API_KEY", hint="set it where the gateway worker starts")
    if settings.model and settings.model.startswith("anthropic:") and not settings.anthropic_api_key:
        raise CoatcheckError(f"{settings.model} needs ANTHROPIC_API_KEY", hint="set it where the gateway worker starts")
    keys = {"OPENAI_API_KEY": settings.openai_api_key, "ANTHROPIC_API_KEY": settings.anthropic_api_key}
    present = [name for name, key in keys.items() if key]
    if not present:
        return "no key in this environment: the scripted author answers, unless the gateway worker has one"
    return f"{settings.model or 'the default model'} with {', '.join(present)} (as this environment has it)"


async def _config(settings: Settings) -> str:
    """The file that this command and the workers of the stack go by."""
    team = load_config(settings.config_file)
    status = load_status(settings.data_dir)
    if status.state == StackState.RUNNING and status.config_file != settings.config_file:
        raise CoatcheckError(
            f"{_file(settings.config_file)}, but the stack was started with {_file(status.config_file)}",
            hint=_RESTART_HINT,
        )
    if status.state == StackState.RUNNING and _changed_since(status.supervisor.started_at, settings.config_file):
        raise CoatcheckError(f"{settings.config_file} has changed since the stack was started", hint=_RESTART_HINT)
    return f"{_file(settings.config_file)}: {len(team.agents)} agents, pipelines {', '.join(team.pipelines)}"


def _file(path: Path | None) -> str:
    return str(path or "no coatcheck.toml")


def _changed_since(started: datetime | None, path: Path | None) -> bool:
    return path is not None and started is not None and path.stat().st_mtime > started.timestamp()


async def _isolation(settings: Settings) -> str:
    """Tried here; a worker in a container may have another level, and says so in its evidence."""
    limits = load_config(settings.config_file).checks
    sandbox = await asyncio.to_thread(Sandbox, limits)
    return describe(sandbox.isolation)


async def _disk(settings: Settings) -> str:
    folder = next(
        path for path in (settings.data_dir.absolute(), *settings.data_dir.absolute().parents) if path.exists()
    )
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE_BYTES:
        raise CoatcheckError(f"{free / 1024**3:.1f} GiB free in {folder}", hint="make room: at least 2 GiB are needed")
    return f"{free / 1024**3:.1f} GiB free"


CHECKS: Final[dict[str, Check]] = {
    "temporal": _temporal,
    "search attributes": _search_attributes,
    "core worker": _core_workers,
    "agent workers": _agent_workers,
    "reconcile": _reconcile,
    "nats": _nats,
    "nats sync": _nats_sync,
    "streams": _streams,
    "events": _events,
    "archive": _archive,
    "gateway worker": _gateway,
    "tools": _tools,
    "postgres": _postgres,
    "migrations": _migrations,
    "model": _model,
    "config": _config,
    "isolation of checks": _isolation,
    "disk": _disk,
}
"""In the order in which they are printed."""
