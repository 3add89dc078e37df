"""Which run a person means: RUN is a run key, a workflow id, or a feature's slug.

A slug means the run under the default id `feature/<slug>` when that one is open or is all there is, and otherwise the
open or else the latest run of that feature under any id.
"""

from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from uuid import UUID

from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from coatcheck.cli.session import temporal_errors
from coatcheck.errors import CoatcheckError
from coatcheck.storage.database import Pool
from coatcheck.storage.state import RunRecord, find_run, list_runs
from schemas import search_attributes
from schemas.pipeline import PipelineResult
from schemas.subjects import check_slug
from schemas.workflow_ids import feature_workflow_id, run_key
from workflows.feature_pipeline import FeaturePipelineWorkflow

PipelineHandle: TypeAlias = WorkflowHandle[FeaturePipelineWorkflow, PipelineResult]
_SEARCHED_RUNS: Final = 1000
_HINT: Final = "`coatcheck runs` lists what there is"


class RunNotFoundError(CoatcheckError):
    """No run goes by that name."""

    code = "run.not_found"


@dataclass(frozen=True)
class FoundRun:
    """A run as Temporal knows it."""

    workflow_id: str
    first_run_id: str
    """Names this use of the workflow id, also after a reset."""
    run_id: str
    status: WorkflowExecutionStatus | None

    @property
    def run_key(self) -> str:
        """The key of its rows and events."""
        return run_key(self.workflow_id, self.first_run_id)

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.status is WorkflowExecutionStatus.RUNNING

    def handle(self, client: Client) -> PipelineHandle:
        """A typed handle on exactly this run."""
        return client.get_workflow_handle_for(
            FeaturePipelineWorkflow.run,
            self.workflow_id,
            run_id=self.run_id,
            first_execution_run_id=self.first_run_id,
        )


def split_run_key(name: str) -> tuple[str, str] | None:
    """`<workflow id>/<run id>` in its parts, or `None` when it is not a run key."""
    workflow_id, _, run_id = name.rpartition("/")
    try:
        UUID(run_id)
    except ValueError:
        return None
    return (workflow_id, run_id) if workflow_id else None


def is_slug(name: str) -> bool:
    """Whether it can be a feature."""
    try:
        check_slug(name)
    except ValueError:
        return False
    return True


async def find(client: Client, name: str) -> FoundRun:
    """The run that `name` means.

    Raises:
        RunNotFoundError: Temporal knows none.
        DependencyDownError: Temporal does not answer.
    """
    with temporal_errors():
        if (parts := split_run_key(name)) and (found := await _by_key(client, *parts)):
            return found
        if found := await _describe(client, name):
            return found
        if is_slug(name) and (found := await _by_feature(client, name)):
            return found
    raise RunNotFoundError(f"no run is called {name!r}", hint=_HINT)


async def _by_key(client: Client, workflow_id: str, first_run_id: str) -> FoundRun | None:
    """A reset leaves the first execution closed; the run goes on in the latest one with the same first run id."""
    latest = await _describe(client, workflow_id)
    if latest and latest.first_run_id == first_run_id:
        return latest
    return await _describe(client, workflow_id, first_run_id)


async def _by_feature(client: Client, feature: str) -> FoundRun | None:
    default = await _describe(client, feature_workflow_id(feature))
    if default and default.is_open:
        return default
    query = f"WorkflowType = 'FeaturePipeline' AND {search_attributes.FEATURE.name} = '{feature}'"
    # Temporal lists open runs first, then the latest closed ones.
    async for execution in client.list_workflows(query, page_size=1, limit=1):
        return _found(execution)
    return default


async def _describe(client: Client, workflow_id: str, run_id: str | None = None) -> FoundRun | None:
    try:
        return _found(await client.get_workflow_handle(workflow_id, run_id=run_id).describe())
    except RPCError as error:
        if error.status in (RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT):
            return None
        raise


def _found(execution: WorkflowExecution) -> FoundRun:
    info: Any = execution.raw_info
    return FoundRun(execution.id, info.first_run_id or execution.run_id, execution.run_id, execution.status)


async def find_record(pool: Pool, name: str) -> RunRecord:
    """The recorded run that `name` means.

    Raises:
        RunNotFoundError: none is recorded.
        StorageUnavailableError: PostgreSQL does not answer.
    """
    for candidate in (name, feature_workflow_id(name)):
        if record := await find_run(pool, candidate):
            return record
    for record in await list_runs(pool, _SEARCHED_RUNS):
        if record.feature == name:
            return record
    raise RunNotFoundError(f"no run of {name!r} is recorded", hint=_HINT)
