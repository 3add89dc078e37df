"""The dotted codes of errors that cross a process border, each defined once.

They are the `type` of Temporal application errors, the `code` of request-reply errors and the `code` of the
exception classes in `coatcheck.errors`. Workflows compare these constants and never a literal.
"""

from typing import Final

REQUEST_INVALID: Final = "request.invalid"
"""The workflow input is missing, unreadable or breaks a rule of `FeatureRequest`."""
RESULT_TOO_LARGE: Final = "result.too_large"
"""An activity returned a body instead of a reference (the claim-check rule, 8 KB)."""
PAYLOADS_TOO_LARGE: Final = "PayloadsTooLarge"
"""Temporal's own type for a payload over its 2 MiB limit; retried for ever unless listed."""
DELIVERABLE_TOO_LARGE: Final = "deliverable.too_large"
DELIVERABLE_EXPIRED: Final = "deliverable.expired"
DELIVERABLE_LOST: Final = "deliverable.lost"
DELIVERABLE_NOT_FOUND: Final = "deliverable.not_found"
DELIVERABLE_CORRUPT: Final = "deliverable.corrupt"
NOT_AUTHORIZED: Final = "messaging.not_authorized"
MESSAGING_UNAVAILABLE: Final = "messaging.unavailable"
STREAM_MISSING: Final = "stream.missing"
STORAGE_UNAVAILABLE: Final = "storage.unavailable"
TASK_CLOSED: Final = "task.closed"
"""A model turn was asked for in a task that failed or was cancelled, or has not begun."""
AGENT_INVALID_OUTPUT: Final = "agent.invalid_output"
AGENT_LIMIT: Final = "agent.limit_reached"
PROVIDER_REJECTED: Final = "provider.rejected"
"""A 4xx that no retry can mend: key, quota, model name, context length."""
PROVIDER_RATE_LIMITED: Final = "provider.rate_limited"
PROVIDER_UNAVAILABLE: Final = "provider.unavailable"
"""5xx, a time-out, a cut connection, a body that is not the protocol's."""
PROVIDER_EXHAUSTED: Final = "provider.exhausted"
"""The bounded number of provider failures for one turn is used up."""
WORKER_STOPPING: Final = "worker.stopping"
