"""Temporal task queues: what a worker is good at, and how long its workflow tasks may take."""

from datetime import timedelta
from typing import Final

CORE: Final = "coatcheck"
"""Workflows and state activities."""
TASK_TIMEOUT: Final = timedelta(seconds=3)
"""How long a core worker that died holds a run up (default 10 s; with 2 to 3 s recovery took 1.2 to 4.8 s)."""


def agent_queue(agent: str) -> str:
    """The queue that only the worker with `agent`'s identity polls."""
    return f"agent-{agent}"
