"""Reconcile: what compares the rows with Temporal, how often, and what it reports."""

from datetime import datetime, timedelta
from typing import Annotated, Final

from pydantic import BaseModel, Field
from temporalio.common import RetryPolicy

SCHEDULE_ID: Final = "reconcile"
WORKFLOW_TYPE: Final = "Reconcile"
INTERVAL: Final = timedelta(seconds=30)
"""Four looks within the two minutes after which a row must not say "running" of a run that has ended."""
CATCHUP_WINDOW: Final = timedelta(seconds=60)
"""A look that was missed is not made up for: the next one sees everything."""

COMPARE: Final = "reconcile.compare"
"""Activity on the core worker: one look at everything."""
COMPARE_START_TO_CLOSE: Final = timedelta(seconds=40)
"""With 1,000 open runs a look takes 1 s, with 1,000 repairs 8 s; what it has done by then stays done."""
COMPARE_HEARTBEAT_TIMEOUT: Final = timedelta(seconds=6)
"""How long a core worker that died with a look in hand holds up the next one."""
COMPARE_SCHEDULE_TO_CLOSE: Final = timedelta(seconds=100)
"""After that the look has failed and the next one begins; while one is under way, no other is."""
COMPARE_RETRY: Final = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=5))

MAX_LINES: Final = 8
"""Repairs and warnings that a report names; all of them are counted, and each repair has its event."""


class RepairLine(BaseModel):
    """One row that was put right."""

    key: str
    """Run key, or task key."""
    found: str
    status: str
    reason: Annotated[str, Field(max_length=200)]


class ReconcileReport(BaseModel):
    """What one look found: result of the workflow, so at most 8 KB."""

    compared_at: datetime
    open_rows: int
    """Runs that the rows call open, before any repair."""
    open_runs: int
    """Runs that Temporal calls open."""
    repaired_runs: int = 0
    repaired_tasks: int = 0
    released_holds: int = 0
    """Reservations that had outlived their calls."""
    closed_budgets: int = 0
    """Runs that have ended and had something left in their budgets."""
    repairs: list[RepairLine] = []
    """The first `MAX_LINES`."""
    warnings: list[str] = []
    """What people have to mend: work that waits for an agent of which no worker is left."""
