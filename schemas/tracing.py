"""The ids of a run's trace: they follow from what happened, so whoever tells it, and however often, names one span.

A run has one trace, named by its run key; a span is named by the event that it is made from. Nobody has to pass a
trace context on to find its place in the tree, and nothing of it is in Temporal's history (docs/adr/0020).
"""

import hashlib
from typing import Final

from schemas.workflow_ids import event_id

TRACE_NOTE: Final = "coatcheck_trace_note"
"""Name under which a workflow is given what the Web UI says of a run's trace: run key → Markdown, or nothing."""

HEADER_TRACEPARENT: Final = "traceparent"
"""W3C trace context; nats-py's headers are case-sensitive, and everybody else writes it in lower case."""


def trace_id(run_key: str) -> str:
    """The trace of a run: 32 hexadecimal digits."""
    return hashlib.sha256(f"trace|{run_key}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def span_id(event: str) -> str:
    """The span that is made from an event, by the event's id: 16 hexadecimal digits."""
    return hashlib.sha256(f"span|{event}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def root_span_id(run_key: str) -> str:
    """The span of a run's submission."""
    return span_id(event_id(run_key, "run.started"))


def pipeline_span_id(run_key: str, reset: str = "") -> str:
    """The span of all that a run does, until it ends or Temporal takes it back; `reset` as in the events after that."""
    return span_id(f"pipeline|{run_key}|{reset}")


def round_span_id(task_key: str, reset: str = "") -> str:
    """The span of one round."""
    return span_id(event_id(task_key, "stage.started", reset))


def trace_page(phoenix_url: str, run_key: str) -> str:
    """The page of a run's trace in Phoenix."""
    return f"{phoenix_url.rstrip('/')}/redirects/traces/{trace_id(run_key)}"


def traceparent(run_key: str, span: str) -> str:
    """The header's value for what a span causes."""
    return f"00-{trace_id(run_key)}-{span}-01"
