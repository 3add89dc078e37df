"""Workflow ids and the idempotency keys that come from them.

The *run key* is `<workflow id>/<first execution run id>` and the *task key* adds the activity id. The first run id
tells a second use of a workflow id apart and survives a reset; the attempt and the current run id do neither, so
they never enter a key.
"""

import uuid
from typing import Final

MAX_WORKFLOW_ID_LENGTH: Final = 160
"""Leaves room for the run id (36), the activity id (40) and a message ordinal in a VARCHAR(255) key."""

EVENT_NAMESPACE: Final = uuid.UUID("5f3f4f52-9c55-5b7b-9d0c-1a4f7c0f6c1e")


def feature_workflow_id(feature: str) -> str:
    """The default workflow id of a feature's pipeline."""
    return f"feature/{feature}"


def feature_of(workflow_id: str) -> str:
    """The feature in an id of ours, `<what>/<feature>` or `<what>/<feature>/<more>`; empty in others."""
    return workflow_id.partition("/")[2].partition("/")[0]


def run_key(workflow_id: str, first_run_id: str) -> str:
    """Name one use of a workflow id, for ever; the correlation id of everything that the run causes."""
    return f"{workflow_id}/{first_run_id}"


def activity_id(stage: str, round_number: int) -> str:
    """`backend-2` is the second round of the stage `backend`; rounds count from 1."""
    return f"{stage}-{round_number}"


def task_key(run: str, activity: str) -> str:
    """The idempotency key of one round of one stage of one run."""
    return f"{run}/{activity}"


def run_key_of(task: str) -> str:
    """The run key in a task key."""
    return task.rpartition("/")[0]


def session_of(run: str) -> str:
    """The workflow id in a run key: the session of its events."""
    return run.rpartition("/")[0]


def event_id(entity: str, event_type: str, occurrence: str = "") -> str:
    """A deterministic id: telling the same occurrence again gives the same id, so it is stored once."""
    return str(uuid.uuid5(EVENT_NAMESPACE, f"{entity}|{event_type}|{occurrence}"))
