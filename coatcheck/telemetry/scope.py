"""What the code that runs just now works on: the run, the task, and so the trace. For log lines and message headers.

A context variable, since it follows a request through tasks and threads, and costs nothing when nobody asks.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from schemas.tracing import root_span_id, round_span_id, trace_id, traceparent
from schemas.workflow_ids import run_key_of


@dataclass(frozen=True, slots=True)
class Scope:
    """One run, and one task of it if it is about one."""

    run_key: str
    task_key: str = ""
    reset: str = ""
    """As in the task's `StageOrder`."""

    @property
    def trace_id(self) -> str:
        """Of the run's trace."""
        return trace_id(self.run_key)

    @property
    def span_id(self) -> str:
        """The span in the trace that whatever happens here belongs to; it is there whoever dies (docs/adr/0020)."""
        return round_span_id(self.task_key, self.reset) if self.task_key else root_span_id(self.run_key)

    @property
    def traceparent(self) -> str:
        """The header's value."""
        return traceparent(self.run_key, self.span_id)


_scope: ContextVar[Scope | None] = ContextVar("coatcheck_scope", default=None)


def current_scope() -> Scope | None:
    """What this code works on, if it is known."""
    return _scope.get()


@contextlib.contextmanager
def working_on(run_key: str, task_key: str = "", reset: str = "") -> Iterator[None]:
    """The block works on a run, or on one round of a stage of it."""
    token = _scope.set(Scope(run_key, task_key, reset))
    try:
        yield
    finally:
        _scope.reset(token)


def working_on_task(task_key: str, reset: str = "") -> contextlib.AbstractContextManager[None]:
    """The block works on a round of a stage."""
    return working_on(run_key_of(task_key), task_key, reset)
