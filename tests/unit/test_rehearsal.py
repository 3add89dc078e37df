"""Cues in a brief: only the scripted author obeys them, and nobody else sees them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai.exceptions import ModelRateLimitError, ModelRequestRejectedError

from coatcheck.agents.reports import ReviewReport
from schemas.notice import Verdict
from schemas.rehearsal import Cue, split_cues, with_cues
from tests.unit.scripted_run import Run

BRIEF = "Find a customer by name. Results come within a second."
FINDING: dict[str, Any] = {
    "id": "F9",
    "severity": "minor",
    "where": "R1",
    "claim": "A typo.",
    "wanted_change": "Mend it.",
}


@given(text=st.text(min_size=1), field=st.text())
def test_a_brief_and_its_cues_come_apart_again(text: str, field: str) -> None:
    """Whatever is in either."""
    cues = (Cue(stage="qa", rounds=(2,), fields={"summary": field}),)
    brief, found = split_cues(with_cues(text, cues))
    assert found == cues or split_cues(text)[1]  # a brief that has cues of its own keeps those
    assert brief.rstrip() == text.rstrip() or split_cues(text)[1]


def test_a_block_that_is_no_cue_stays_in_the_brief() -> None:
    """People may write about rehearsals."""
    text = 'Show this:\n```rehearsal\n[{"stage": 1}]\n```\n'
    assert split_cues(text) == (text, ())


async def test_the_author_reports_what_a_cue_says_and_the_rest_by_itself() -> None:
    """In the round that is meant, and in no other; a critique of nothing but its own would find more."""
    cue = Cue(stage="critique", rounds=(1,), fields={"verdict": "revise", "findings": [FINDING], "fixed": []})
    run = await Run("customer-search", with_cues(BRIEF, [cue])).play("research", "critique", "research", "critique")
    first, second = run.rounds["critique-1"].report, run.rounds["critique-2"].report
    assert isinstance(first, ReviewReport)
    assert isinstance(second, ReviewReport)
    assert (first.verdict, [item.model_dump() for item in first.findings]) == (Verdict.REVISE, [FINDING])
    assert second.verdict == Verdict.APPROVE
    assert "rehearsal" not in run.text("research-1")


async def test_a_cue_to_refuse_is_final() -> None:
    """As a provider that rejects the request."""
    run = Run("customer-search", with_cues(BRIEF, [Cue(stage="critique", do="refuse")]))
    with pytest.raises(ModelRequestRejectedError):
        await run.play("research", "critique")
    assert list(run.rounds) == ["research-1"]


async def test_a_cue_to_be_busy_says_when_to_come_back_and_is_over_then() -> None:
    """As often as it says, and again in the next run of the same request."""
    run = Run("customer-search", with_cues(BRIEF, [Cue(stage="research", do="busy", times=2, seconds=7)]))
    for _ in range(2):
        for _ in range(2):
            with pytest.raises(ModelRateLimitError) as raised:
                await run.play("research")
            assert raised.value.retry_after == 7
        await run.play("research")
        run.rounds.clear()
        run.shelf.clear()
