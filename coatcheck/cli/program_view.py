"""How far a program is: asked of the workflow, or its result when it has ended; and how that looks."""

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from pydantic import BaseModel
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
)
from temporalio.service import RPCError, RPCStatusCode

from coatcheck.cli.output import columns, cost
from coatcheck.cli.progress import QUERY_TIMEOUT
from coatcheck.cli.runs import RunNotFoundError
from coatcheck.cli.session import temporal_errors
from coatcheck.errors import DependencyDownError
from schemas.program import FeatureLine, FeatureState, ProgramResult, program_workflow_id
from workflows.program import ProgramWorkflow

HEADER: Final = ("feature", "tenant", "prio", "state", "tokens", "cost", "reason")
_SHOWN_NAMES: Final = 5
_OPEN: Final = (FeatureState.PENDING, FeatureState.RUNNING, FeatureState.WAITING)


class SeenProgram(BaseModel):
    """What could be seen of a program; the JSON of `program status` and `program watch`."""

    name: str
    workflow_id: str
    run_id: str
    status: str
    """Running, paused, completed, cancelled, failed, terminated or timed_out."""
    max_concurrent: int | None = None
    """`None` when it has completed."""
    error: str = ""
    """Why it failed as a whole: its input was wrong."""
    counts: dict[FeatureState, int] = {}
    features: list[FeatureLine] = []
    """In the order of the file; empty before its first task."""


class ProgramReader:
    """Reads one program again and again."""

    def __init__(self, client: Client, handle: WorkflowHandle[ProgramWorkflow, ProgramResult], name: str) -> None:
        self._client = client
        self.handle = handle
        self.name = name

    async def read(self) -> SeenProgram:
        """The result of a program that has completed; otherwise what the workflow itself answers.

        Raises:
            DependencyDownError: Temporal does not answer, or no worker does.
        """
        with temporal_errors():
            described = await self.handle.describe()
        status = described.status or WorkflowExecutionStatus.RUNNING
        seen = SeenProgram(
            name=self.name,
            workflow_id=described.id,
            run_id=described.run_id,
            status={"canceled": "cancelled"}.get(status.name.lower(), status.name.lower()),
        )
        if status is WorkflowExecutionStatus.COMPLETED:
            with temporal_errors():
                result = await self.handle.result()
            return seen.model_copy(update={"features": result.features, "counts": result.counts})
        if status is WorkflowExecutionStatus.FAILED:
            return seen.model_copy(update={"error": await self._failure()})
        return await self._asked(seen)

    async def _asked(self, seen: SeenProgram) -> SeenProgram:
        try:
            progress = await self.handle.query(ProgramWorkflow.progress, rpc_timeout=QUERY_TIMEOUT)
        except WorkflowQueryFailedError:  # it has not got to its first task
            return seen
        except RPCError as error:
            raise DependencyDownError(
                f"no core worker answers for {self.name}", hint="`coatcheck doctor` checks the workers"
            ) from error
        fields = {
            "max_concurrent": progress.max_concurrent,
            "features": progress.features,
            "counts": dict(Counter(line.state for line in progress.features)),
        }
        if seen.status == "running" and progress.is_paused:
            fields["status"] = "paused"
        return seen.model_copy(update=fields)

    async def _failure(self) -> str:
        try:
            await self.handle.result()
        except WorkflowFailureError as failure:
            return str(getattr(failure.cause, "message", failure.cause))
        return ""


async def find_program(client: Client, name: str) -> ProgramReader:
    """The latest program of that name; its workflow id is taken too.

    Raises:
        RunNotFoundError: there is none.
        DependencyDownError: Temporal does not answer.
    """
    workflow_id = name if "/" in name else program_workflow_id(name)
    handle = client.get_workflow_handle_for(ProgramWorkflow.run, workflow_id)
    with temporal_errors():
        try:
            described = await handle.describe()
        except RPCError as error:
            if error.status not in (RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT):
                raise
            raise RunNotFoundError(f"no program is called {name!r}", hint=await _known(client)) from error
    exact = client.get_workflow_handle_for(ProgramWorkflow.run, workflow_id, run_id=described.run_id)
    return ProgramReader(client, exact, name.removeprefix(program_workflow_id("")))


async def _known(client: Client) -> str:
    prefix = program_workflow_id("")
    names: dict[str, None] = {}
    async for execution in client.list_workflows("WorkflowType = 'Program'", limit=_SHOWN_NAMES):
        names[execution.id.removeprefix(prefix)] = None
    return f"the latest are {', '.join(names)}" if names else "`coatcheck program run FILE` starts one"


def rows(lines: Sequence[FeatureLine]) -> list[list[str]]:
    """One row per feature, as `HEADER` names them."""
    return [
        [
            line.feature,
            line.tenant,
            str(line.priority),
            line.state,
            "" if line.tokens is None else f"{line.tokens:,}",
            "" if line.tokens is None else cost(line.cost_usd),
            line.reason,
        ]
        for line in lines
    ]


def table(seen: SeenProgram) -> str:
    """Every feature and, below, the sum."""
    return columns(HEADER, rows(seen.features)) + f"\n{headline(seen)}\n"


def headline(seen: SeenProgram) -> str:
    """`spring: running, 12 of 20 completed, 5 running, 3 pending; 123,456 tokens, $1.2345`."""
    counts = [f"{count} {state}" for state in FeatureState if (count := seen.counts.get(state))]
    counts = [f"{seen.counts.get(FeatureState.COMPLETED, 0)} of {len(seen.features)} completed"] + [
        text for text in counts if not text.endswith(f" {FeatureState.COMPLETED}")
    ]
    said = [line for line in seen.features if line.tokens is not None]
    costs = [line.cost_usd for line in said]
    total = None if None in costs else sum((value for value in costs if value is not None), Decimal(0))
    tokens = sum(line.tokens or 0 for line in said)
    line = f"{seen.name}: {seen.status}, {', '.join(counts)}; {tokens:,} tokens, {cost(total)}"
    return line + (f"\n{seen.error}" if seen.error else "")


def is_over(seen: SeenProgram) -> bool:
    """Whether nothing more will change."""
    return seen.status not in ("running", "paused")


def not_through(seen: SeenProgram) -> int:
    """How many features have ended, and not completed."""
    return sum(line.state is not FeatureState.COMPLETED and line.state not in _OPEN for line in seen.features)
