"""What the outcome of an activity means: sent back, refused as nonsense, parked. Pure functions."""

from datetime import timedelta
from typing import Final

from temporalio.exceptions import ActivityError, ApplicationError

from schemas import errors
from schemas.notice import Notice, Verdict
from schemas.pipeline import Stage, StageKind

PARKED_SECONDS: Final = 30.0
"""When the proxy did not say."""
PATIENT_PARKINGS: Final = 6
"""So often a round waits only as long as the proxy asks; then at least 2, 4, 8 … seconds."""
LONGEST_PARKING_SECONDS: Final = 300.0
"""A provider that is away for a day costs a round some 300 timers."""


def sends_back(notice: Notice) -> bool:
    """Whether the notice wants work done again; a pass against its own evidence is none, whoever claims it."""
    evidence = notice.metadata.evidence
    is_refuted = notice.metadata.verdict is Verdict.PASS and evidence is not None and evidence.failed > 0
    return is_refuted or notice.metadata.verdict in {Verdict.REVISE, Verdict.FAIL}


def parked_delay(error: ActivityError, parked_times: int) -> timedelta | None:
    """How long to wait before the round begins again, or `None` when it was not parked but failed.

    As long as the proxy says, and longer the more often that was not enough: each time costs the history about 1 KB,
    and an outage may last a day.
    """
    cause = error.cause
    if not isinstance(cause, ApplicationError) or cause.type != errors.PROVIDER_PARKED:
        return None
    [asked] = cause.details or (PARKED_SECONDS,)
    doublings = min(max(parked_times - PATIENT_PARKINGS, 0), 10)
    floor = min(2.0**doublings, LONGEST_PARKING_SECONDS) if doublings else 0
    return timedelta(seconds=max(float(asked), floor))


_VERDICTS: Final[dict[StageKind, frozenset[Verdict | None]]] = {
    StageKind.WORK: frozenset({None}),
    StageKind.REVIEW: frozenset({Verdict.APPROVE, Verdict.REVISE, Verdict.REJECT}),
    StageKind.TEST: frozenset({Verdict.PASS, Verdict.FAIL}),
}


def check_verdict(stage: Stage, notice: Notice) -> None:
    """A stage that judges must judge; one that does not cannot send anything back."""
    if notice.metadata.verdict not in _VERDICTS[stage.kind]:
        raise ApplicationError(
            f"{stage.agent} gave the verdict {notice.metadata.verdict!r} for {stage.name}, a {stage.kind} stage",
            type=errors.AGENT_INVALID_OUTPUT,
            non_retryable=True,
        )
