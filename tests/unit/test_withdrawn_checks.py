"""Which checks are run although nobody declares them any more, and how long each may take."""

import pytest

from coatcheck.agents.evidence import withdrawn_checks
from schemas.evidence import Check, CheckOutcome, CheckResult, Evidence, Isolation


def ran(stage: str, name: str, outcome: CheckOutcome = CheckOutcome.FAILED, seconds: float = 0.1) -> CheckResult:
    """A result of the round before."""
    return CheckResult(stage=stage, name=name, command=("false", name), outcome=outcome, seconds=seconds)


def last(*results: CheckResult) -> Evidence:
    """The evidence of the round before."""
    return Evidence(isolation=Isolation.LIMITS, results=list(results))


def test_all_that_did_not_pass_and_is_not_declared_is_withdrawn() -> None:
    """By stage and in order; however it failed; declared by another stage is not declared."""
    results = [
        ran("backend", "a"),
        ran("backend", "b", CheckOutcome.PASSED),
        ran("backend", "c", CheckOutcome.TIMED_OUT),
        ran("backend", "d", CheckOutcome.NOT_STARTED),
        ran("frontend", "e"),
    ]
    declared = {"backend": [Check(name="d", command=("true",))], "frontend": [Check(name="a", command=("true",))]}
    found = withdrawn_checks(last(*results), declared)
    assert {stage: [check.name for check in checks] for stage, checks in found.items()} == {
        "backend": ["a", "c"],
        "frontend": ["e"],
    }
    assert found["backend"][0].command == ("false", "a")


def test_without_a_round_before_nothing_is_withdrawn() -> None:
    """Nor after one in which all passed."""
    assert withdrawn_checks(None, {}) == {}
    assert withdrawn_checks(last(ran("backend", "a", CheckOutcome.PASSED)), {}) == {}


@pytest.mark.parametrize(("seconds", "limit"), [(0.1, 120), (60.0, 120), (300.2, 601), (1700.0, 1800)])
def test_the_time_is_twice_what_it_took_within_bounds(seconds: float, limit: int) -> None:
    """A check that passes may take longer than one that fails early; no valid check has more than half an hour."""
    [check] = withdrawn_checks(last(ran("backend", "a", seconds=seconds)), {})["backend"]
    assert check.timeout_seconds == limit
