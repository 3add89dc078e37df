"""Temporal task queues: what a worker is good at."""

from typing import Final

CORE: Final = "coatcheck"
"""Workflows and state activities."""


def agent_queue(agent: str) -> str:
    """The queue that only the worker with `agent`'s identity polls."""
    return f"agent-{agent}"
