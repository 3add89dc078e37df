"""Which provider failure is worth another try, when, and of whom. The one place that decides."""

from dataclasses import dataclass
from enum import StrEnum

from pydantic_ai.exceptions import (
    ContentFilterError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelContextWindowExceededError,
    ModelHTTPError,
    ModelNotFoundError,
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


_TOO_LARGE = 413


class Blame(StrEnum):
    """Who is at fault, which decides who is asked next and what the breaker learns."""

    REQUEST = "request"
    """The request breaks a rule (400, 422, a content filter). Final, and no other provider is asked: it would refuse
    as well, or it would be asked for what another one's policy forbids."""
    FIT = "fit"
    """The request does not fit this model, or this gateway has no key for it: the next one of the chain may do."""
    REFUSED = "refused"
    """Key, quota or name: the next one is asked, and this one is left alone for long."""
    BUSY = "busy"
    """429, or any failure that says when to come back: the model is closed until then."""
    OUTAGE = "outage"
    """5xx, time-out, cut connection, unreadable: enough of them in a row close the model."""


REFUSALS = frozenset({401, 402, 403, 404})
"""Key, bill, permission, name of the model."""


@dataclass(frozen=True)
class ProviderFailure:
    """What a failed call means for its turn."""

    code: str
    message: str
    retryable: bool
    retry_after_seconds: float | None = None
    """What the provider asked for; `None` leaves it to us."""
    blame: Blame = Blame.REQUEST


def classify(error: Exception) -> ProviderFailure:
    """Sort a failure of `Model.request` into rejected, rate-limited or unavailable.

    4xx, quota and wrong configuration are final for that model; 429 waits as long as the provider says and is not
    counted as a failure; everything else (5xx, time-outs, cut connections, bodies that are not the protocol's) may be
    tried again, a bounded number of times.
    """
    text = _message(error)
    status = _status(error)
    if isinstance(error, UserError):
        return ProviderFailure(errors.PROVIDER_REJECTED, text, retryable=False, blame=Blame.FIT)
    if isinstance(error, ModelQuotaExceededError):
        return ProviderFailure(errors.PROVIDER_REJECTED, text, retryable=False, blame=Blame.REFUSED)
    retry_after = error.retry_after if isinstance(error, ModelAPIError) else None
    if isinstance(error, ModelRateLimitError) or status == TOO_MANY_REQUESTS:
        return ProviderFailure(
            errors.PROVIDER_RATE_LIMITED, text, retryable=True, retry_after_seconds=retry_after, blame=Blame.BUSY
        )
    if isinstance(error, ModelRequestRejectedError | ContentFilterError) or (
        status in CLIENT_ERRORS and status not in TRANSIENT_CLIENT_ERRORS
    ):
        return ProviderFailure(errors.PROVIDER_REJECTED, text, retryable=False, blame=_rejected_by(error, status))
    blame = Blame.OUTAGE if retry_after is None else Blame.BUSY
    return ProviderFailure(
        errors.PROVIDER_UNAVAILABLE, text, retryable=True, retry_after_seconds=retry_after, blame=blame
    )


def _rejected_by(error: Exception, status: int | None) -> Blame:
    if isinstance(error, ModelAuthenticationError | ModelNotFoundError) or status in REFUSALS:
        return Blame.REFUSED
    if isinstance(error, ModelContextWindowExceededError) or status == _TOO_LARGE:
        return Blame.FIT
    return Blame.REQUEST


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
