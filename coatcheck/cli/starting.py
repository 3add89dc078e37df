"""Starts a pipeline, as the plain `temporal` program could, but refuses bad input before anything connects."""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError

from coatcheck.cli.output import emit, emit_json, one_line
from coatcheck.cli.request import STDIN, budget_from, build_request, parse_request, read_text
from coatcheck.cli.runs import FoundRun, find
from coatcheck.cli.session import load_settings, open_nats, open_temporal, temporal_errors
from coatcheck.cli.voice import MisuseError, tell
from coatcheck.config import load_config, nearest
from coatcheck.errors import CoatcheckError
from schemas.budget import Budget
from schemas.pipeline import DEFAULT_PIPELINE, FeatureRequest, Pipeline
from schemas.task_queues import CORE, TASK_TIMEOUT
from schemas.workflow_ids import MAX_WORKFLOW_ID_LENGTH, feature_workflow_id
from workflows.feature_pipeline import FeaturePipelineWorkflow

MAX_SUMMARY_BYTES: Final = 200
"""Temporal's limit for a static summary."""


def chosen_pipeline(name: str | None, *, config: Path | None, data_dir: Path) -> Pipeline | None:
    """The pipeline that a run shall take; `None` for the one that a request means anyway, so that it stays small.

    Args:
        name: One of the configuration's; its `default` when absent.
        config: The `coatcheck.toml` that is given; else the one that the stack was started with.
        data_dir: Where the stack is.

    Raises:
        MisuseError: there is no pipeline of that name.
        ConfigError: `coatcheck.toml` is wrong.
    """
    file = config.absolute() if config else load_settings(data_dir).config_file
    pipelines = load_config(file).pipelines
    wanted = name or DEFAULT_PIPELINE.name
    if wanted not in pipelines:
        raise MisuseError(
            f"there is no pipeline {wanted!r}{nearest(wanted, list(pipelines))}",
            hint=f"{file} has {', '.join(pipelines)}" if file else "own pipelines come from a coatcheck.toml",
        )
    return None if pipelines[wanted] == DEFAULT_PIPELINE else pipelines[wanted]


def budget_option(text: str | None, agents: Sequence[str] = ()) -> Budget | str | None:
    """`0.50` is an amount of US dollars, anything else a budget's name; `agents` as `budget_from` has them.

    Raises:
        MisuseError: no amount, or limits of agents beside a name.
    """
    if text is None:
        return budget_from(agents=agents) if agents else None
    is_amount = text.lstrip("$").replace(".", "").replace(",", "").isdigit()
    if is_amount:
        return budget_from(usd=text, agents=agents)
    if agents:
        raise MisuseError(f"limits of agents do not go with the name {text!r}", hint=f"put them into [budgets.{text}]")
    return text


def request_from(
    *, request: str | None, brief: str | None, file: str | None, options: Mapping[str, Any]
) -> FeatureRequest:
    """The request that the command line means.

    Args:
        request: A file with the whole request as JSON, or `-`; then nothing else may be given.
        brief: The brief, or `-` for stdin.
        file: A file with the brief, or `-`.
        options: Fields of `FeatureRequest`; `None` means not given.

    Raises:
        MisuseError: too much, too little, or something invalid was given.
    """
    if request is not None:
        if brief is not None or file is not None or any(value is not None for value in options.values()):
            raise MisuseError("--request holds the whole request; it cannot be combined with FEATURE, BRIEF or options")
        return parse_request(read_text(request))
    if options["feature"] is None:
        raise MisuseError("FEATURE is missing", hint='coatcheck run customer-search "Find customers by name"')
    if brief is not None and file is not None:
        raise MisuseError("the brief is given twice: as an argument and with --file")
    source = STDIN if brief == STDIN else file
    if brief is None and source is None:
        # The name is checked first: who got that wrong should not hear about the brief.
        build_request({**options, "brief": "(none)"})
        raise MisuseError(
            "BRIEF is missing", hint="give it as an argument, with --file FILE, or on stdin with --file -"
        )
    return build_request({**options, "brief": read_text(source) if source is not None else brief})


async def run_feature(
    request: FeatureRequest, *, workflow_id: str | None, wait: bool, as_json: bool, data_dir: Path
) -> None:
    """Start the run, say what it is called, and with `wait` follow it to its end.

    Raises:
        CoatcheckError: a run with that workflow id is open, or (with `wait`) the run did not complete.
        DependencyDownError: Temporal does not answer.
    """
    name = check_workflow_id(workflow_id or feature_workflow_id(request.feature))
    settings = load_settings(data_dir)
    client = await open_temporal(settings)
    found = await start(client, request, name)
    if not wait:
        if as_json:
            names = {"workflow_id": found.workflow_id, "run_id": found.run_id, "run_key": found.run_key}
            emit_json({**names, "feature": request.feature})
        else:
            emit(f"workflow id  {found.workflow_id}\nrun id       {found.run_id}")
        tell(f"hint: `coatcheck watch {found.workflow_id}` shows how far it is")
        return
    tell(f"started {found.workflow_id}, run id {found.run_id}")
    from coatcheck.cli.watching import watch_found  # noqa: PLC0415  imports rich

    await watch_found(client, found, settings, as_json=as_json)


async def fork_run(
    name: str, stage: str, *, workflow_id: str | None, wait: bool, as_json: bool, data_dir: Path
) -> None:
    """Start a fork of the run that `name` means, and go on as `run_feature` does.

    Raises:
        ForkError: the run cannot be forked at that stage.
        DeliverableError: retention has dropped what the stage needs.
        CoatcheckError: as `run_feature`.
    """
    from coatcheck.bench.forking import FORK_PREFIX, fork_request, read_request  # noqa: PLC0415  imports every event
    from coatcheck.messaging.deliverables import DeliverableService  # noqa: PLC0415
    from coatcheck.messaging.events import EventLog  # noqa: PLC0415

    settings = load_settings(data_dir)
    client = await open_temporal(settings)
    found = await find(client, name)
    with temporal_errors():
        request = await read_request(client, found.workflow_id, found.first_run_id)
    async with open_nats(settings) as nats:
        forked = await fork_request(
            request, stage, key=found.run_key, log=EventLog(nats), deliverables=DeliverableService(nats)
        )
    inherited = forked.fork.rounds if forked.fork else ()
    tell(f"{len(inherited)} rounds of {found.run_key} are taken over, {stage} is the first stage that is paid")
    name = workflow_id or f"{FORK_PREFIX}/{request.feature}/{secrets.token_hex(4)}"
    await run_feature(forked, workflow_id=name, wait=wait, as_json=as_json, data_dir=data_dir)


def check_workflow_id(workflow_id: str) -> str:
    """Return the id when it fits into our keys.

    Raises:
        MisuseError: it is blank or too long.
    """
    if not workflow_id.strip():
        raise MisuseError("the workflow id is empty")
    if len(workflow_id) > MAX_WORKFLOW_ID_LENGTH:
        raise MisuseError(
            f"the workflow id has {len(workflow_id)} characters, at most {MAX_WORKFLOW_ID_LENGTH} are allowed"
        )
    return workflow_id


async def start(client: Client, request: FeatureRequest, workflow_id: str) -> FoundRun:
    """Start the pipeline under that workflow id.

    Raises:
        CoatcheckError: a run with that id is open.
        DependencyDownError: Temporal does not answer.
    """
    try:
        with temporal_errors():
            await client.start_workflow(
                FeaturePipelineWorkflow.run,
                request,
                id=workflow_id,
                task_queue=CORE,
                static_summary=summary(request),
                task_timeout=TASK_TIMEOUT,
                id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            )
    except WorkflowAlreadyStartedError as error:
        raise CoatcheckError(
            f"{workflow_id} is already running",
            hint=f"`coatcheck watch {workflow_id}` follows it; --id gives a second run an id of its own",
        ) from error
    return await find(client, workflow_id)


def summary(request: FeatureRequest) -> str:
    """What the Web UI shows in its list: the feature and the first line of its brief, at most 200 bytes."""
    line = f"{request.feature}: {one_line(request.brief)}".encode()
    return line[:MAX_SUMMARY_BYTES].decode(errors="ignore")
