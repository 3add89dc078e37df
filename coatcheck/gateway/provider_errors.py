"""Which provider failure is worth another try, and when. The one place that decides."""

from dataclasses import dataclass

from pydantic_ai.exceptions import (
    ContentFilterError,
    ModelAPIError,
    ModelHTTPError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    ModelRequestRejectedError,
    UserError,
)

from schemas import errors

MAX_MESSAGE_CHARACTERS = 2000
"""It goes into the run's history, which stays below 20 KB."""
TOO_MANY_REQUESTS = 429
CLIENT_ERRORS = range(400, 500)
TRANSIENT_CLIENT_ERRORS = frozenset({408, 409, 425, TOO_MANY_REQUESTS})
"""Request time-out, conflict, too early: the request itself is not wrong."""


@dataclass(frozen=True)
class ProviderFailure:
    """What a failed call means for its turn."""

    code: str
    message: str
    retryable: bool
    retry_after_seconds: float | None = None
    """What the provider asked for; `None` leaves it to us."""


def classify(error: Exception) -> ProviderFailure:
    """Sort a failure of `Model.request` into rejected, rate-limited or unavailable.

    4xx, quota and wrong configuration are final; 429 waits as long as the provider says and is not counted as a
    failure; everything else (5xx, time-outs, cut connections, bodies that are not the protocol's) may be tried again,
    a bounded number of times.
    """
    text = _message(error)
    if isinstance(error, ModelQuotaExceededError | ModelRequestRejectedError | UserError | ContentFilterError):
        return ProviderFailure(errors.PROVIDER_REJECTED, text, retryable=False)
    retry_after = error.retry_after if isinstance(error, ModelAPIError) else None
    if isinstance(error, ModelRateLimitError) or _status(error) == TOO_MANY_REQUESTS:
        return ProviderFailure(errors.PROVIDER_RATE_LIMITED, text, retryable=True, retry_after_seconds=retry_after)
    status = _status(error)
    if status in CLIENT_ERRORS and status not in TRANSIENT_CLIENT_ERRORS:
        return ProviderFailure(errors.PROVIDER_REJECTED, text, retryable=False)
    return ProviderFailure(errors.PROVIDER_UNAVAILABLE, text, retryable=True, retry_after_seconds=retry_after)


def _status(error: Exception) -> int | None:
    return error.status_code if isinstance(error, ModelHTTPError) else None


def _message(error: Exception) -> str:
    """The provider's own words where it has some, never an empty text; with the cause of a broken connection."""
    if isinstance(error, ModelHTTPError) and isinstance(error.body, dict) and error.body.get("message"):
        text = f"{error.model_name} answered {error.status_code}: {error.body['message']}"
    elif isinstance(error, ModelHTTPError | UserError | TimeoutError):
        text = str(error) or type(error).__name__
    elif isinstance(error, ModelAPIError):
        cause = _root_cause(error)
        text = f"{error.model_name}: {error}" + (f" ({cause})" if cause not in str(error) else "")
    else:  # what the SDK and the adapter throw over a body that is not the protocol's
        text = f"the provider's answer is not readable: {type(error).__name__}: {error}"
    return text[:MAX_MESSAGE_CHARACTERS]


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)
