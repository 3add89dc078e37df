"""Which provider failures may be tried again, and what a person reads of them."""

import pytest
from pydantic_ai.exceptions import (
    ContentFilterError,
    ModelAPIError,
    ModelConnectionError,
    ModelContextWindowExceededError,
    ModelHTTPError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    ModelRequestRejectedError,
    UnexpectedModelBehavior,
    UserError,
)

from coatcheck.gateway.provider_errors import MAX_MESSAGE_CHARACTERS, Blame, classify
from schemas import errors


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_client_errors_are_final(status: int) -> None:
    """The request, the key or the name is wrong."""
    failure = classify(ModelHTTPError(status, "gpt", {"message": "no"}))
    assert (failure.code, failure.retryable) == (errors.PROVIDER_REJECTED, False)


@pytest.mark.parametrize("status", [408, 409, 425, 500, 502, 503, 504, 529])
def test_transient_errors_may_be_tried_again(status: int) -> None:
    """The request itself is not wrong."""
    failure = classify(ModelHTTPError(status, "gpt", None))
    assert (failure.code, failure.retryable) == (errors.PROVIDER_UNAVAILABLE, True)


@pytest.mark.parametrize(
    "error",
    [ModelRateLimitError("gpt", "slow down", retry_after=7), ModelHTTPError(429, "gpt", headers={"retry-after": "7"})],
)
def test_rate_limits_wait_as_long_as_asked(error: Exception) -> None:
    """With a category or only a status."""
    failure = classify(error)
    assert (failure.code, failure.retryable, failure.retry_after_seconds) == (errors.PROVIDER_RATE_LIMITED, True, 7)


@pytest.mark.parametrize(
    "error",
    [
        ModelQuotaExceededError("gpt", "pay first", retry_after=1),
        ModelRequestRejectedError("gpt", "too long"),
        UserError("no key"),
        ContentFilterError("refused"),
    ],
)
def test_what_no_retry_mends_is_final(error: Exception) -> None:
    """Whatever status it came with."""
    failure = classify(error)
    assert (failure.code, failure.retryable) == (errors.PROVIDER_REJECTED, False)


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("no complete answer within 600 s"),
        ModelConnectionError("gpt", "Connection error."),
        ModelAPIError("gpt", "Failed to decode response as JSON"),
        UnexpectedModelBehavior("Invalid response"),
        IndexError("list index out of range"),
    ],
)
def test_broken_answers_may_be_tried_again(error: Exception) -> None:
    """Adapters throw whatever they trip over."""
    failure = classify(error)
    assert (failure.code, failure.retryable) == (errors.PROVIDER_UNAVAILABLE, True)
    assert str(error) in failure.message


@pytest.mark.parametrize(
    ("error", "blame"),
    [
        (ModelHTTPError(400, "gpt"), Blame.REQUEST),
        (ModelHTTPError(422, "gpt"), Blame.REQUEST),
        (ContentFilterError("refused"), Blame.REQUEST),
        (ModelContextWindowExceededError("gpt", "too long"), Blame.FIT),
        (ModelHTTPError(413, "gpt"), Blame.FIT),
        (UserError("no key"), Blame.FIT),
        (ModelHTTPError(401, "gpt"), Blame.REFUSED),
        (ModelHTTPError(403, "gpt"), Blame.REFUSED),
        (ModelHTTPError(404, "gpt"), Blame.REFUSED),
        (ModelQuotaExceededError("gpt", "pay first", retry_after=1), Blame.REFUSED),
        (ModelRateLimitError("gpt", "slow down"), Blame.BUSY),
        (ModelHTTPError(503, "gpt", headers={"retry-after": "7"}), Blame.BUSY),
        (ModelHTTPError(503, "gpt"), Blame.OUTAGE),
        (TimeoutError("no complete answer"), Blame.OUTAGE),
    ],
)
def test_who_is_to_blame(error: Exception, blame: Blame) -> None:
    """It decides who is asked next, and what the breaker learns."""
    assert classify(error).blame is blame


def test_the_message_is_the_providers_own() -> None:
    """Not the dump of a dictionary."""
    failure = classify(ModelHTTPError(401, "gpt", {"message": "Incorrect API key provided.", "type": "x"}))
    assert failure.message == "gpt answered 401: Incorrect API key provided."


def test_the_cause_of_a_broken_connection_is_told() -> None:
    """The SDK says only "Connection error."."""
    cause = RuntimeError("Connection error.")
    cause.__cause__ = OSError("Connection refused")
    error = ModelConnectionError("gpt", "Connection error.")
    error.__cause__ = cause
    assert classify(error).message == "gpt: Connection error. (Connection refused)"


@pytest.mark.parametrize("error", [TimeoutError(), IndexError(), ModelHTTPError(500, "gpt", "x" * 10_000)])
def test_messages_are_neither_empty_nor_long(error: Exception) -> None:
    """They go into a history that stays below 20 KB."""
    assert 0 < len(classify(error).message) <= MAX_MESSAGE_CHARACTERS
