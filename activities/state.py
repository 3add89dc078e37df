"""`state.record`: writes one step of a run to PostgreSQL."""

import asyncpg
from temporalio import activity

from coatcheck.failpoints import failpoint
from coatcheck.storage import state
from schemas.activities import RECORD_STATE, RecordInput


class StateActivities:
    """Activities of the core worker; they own the transaction."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    @activity.defn(name=RECORD_STATE)
    async def record(self, step: RecordInput) -> None:
        """Store the step.

        Idempotent: the rows are absolute, guarded by the run's revision, and event ids are deterministic, so a worker
        that dies before or after the commit leaves the same rows behind.
        """
        await failpoint("state.before_record")
        await state.record(self._pool, step)
        await failpoint("state.after_record")
