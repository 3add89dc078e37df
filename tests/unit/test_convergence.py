"""A review goes on while it makes progress, and stops with the reason when it does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.review import FindingMark
from workflows.convergence import standstill


def mark(finding_id: str, *, is_major: bool = True, text: str = "") -> FindingMark:
    """A finding whose text goes with its id unless said otherwise."""
    return FindingMark.of(finding_id, is_major=is_major, where="R1", claim=text or finding_id)


F1, F2, F3 = mark("F1"), mark("F2"), mark("F3")
MINOR = mark("F4", is_major=False)


@pytest.mark.parametrize(
    ("rounds", "reason"),
    [
        ([[F1]], None),
        ([[F1, F2], [F1]], None),
        ([[F1], [F2]], None),
        ([[F1], [F1, F2]], None),
        ([[F1], [F1]], "the same findings came back (F1)"),
        ([[F1, F2], [F2, F1]], "the same findings came back (F2, F1)"),
        ([[F1], [mark("F9", text="F1")]], "the same findings came back (F9)"),
        ([[F1], [mark("F1", text="in other words")]], "the same findings came back (F1)"),
        ([[F1], [F2], [F1]], "findings come and go (F1 again)"),
        ([[F1], [F2], [F3], [mark("X", text="F1"), F3]], "findings come and go (X again)"),
        ([[F1], [MINOR]], "only minor findings are left (F4)"),
        ([[MINOR], [MINOR]], "only minor findings are left (F4)"),
        ([[MINOR]], None),
        ([[], []], None),
        ([[F1], []], None),
    ],
)
def test_reason_to_stop(rounds: list[list[FindingMark]], reason: str | None) -> None:
    """Each way of getting nowhere has its words; progress has none."""
    found = standstill(rounds)
    assert (found.reason if found else None) == reason
    assert found is None or found.is_acceptable == (reason or "").startswith("only minor")


marks = st.builds(mark, st.sampled_from(["F1", "F2", "F3", "F4"]), is_major=st.booleans())


@given(st.lists(st.lists(marks, max_size=4), max_size=6))
def test_a_major_finding_is_never_waved_through(rounds: list[list[FindingMark]]) -> None:
    """Whatever the history, the pipeline goes on by itself only over minor findings."""
    found = standstill(rounds)
    if found is not None and found.is_acceptable:
        assert not any(item.is_major for item in rounds[-1])


@given(st.lists(marks, min_size=1, max_size=4), st.integers(min_value=2, max_value=6))
def test_a_reviewer_that_repeats_itself_is_stopped_in_its_second_round(found: list[FindingMark], count: int) -> None:
    """Saying the same again is never progress."""
    assert standstill([found] * count) is not None


@given(st.text("abcXYZ019._-", min_size=1, max_size=20), st.booleans(), st.text(max_size=50), st.text(max_size=50))
def test_marks_survive_their_text_form(finding_id: str, is_major: bool, where: str, claim: str) -> None:  # noqa: FBT001
    """What the notice carries is what the workflow reads."""
    made = FindingMark.of(finding_id, is_major=is_major, where=where, claim=claim)
    assert FindingMark.parse(str(made)) == made


def test_case_and_punctuation_do_not_make_a_new_finding() -> None:
    """A reviewer never writes a sentence twice in the same way."""
    one = FindingMark.of("F1", is_major=True, where="R1", claim="No limit is given!")
    other = FindingMark.of("F7", is_major=True, where="r1:", claim="no limit  is given")
    assert one.text_print == other.text_print


@pytest.mark.parametrize("text", ["", "F1", "F1?abcdef", "F1!abcde", "F 1!abcdef", "F1!ABCDEF"])
def test_what_is_no_mark_is_refused(text: str) -> None:
    """A forged or cut mark is an error and not a finding."""
    with pytest.raises(ValueError, match="not the mark"):
        FindingMark.parse(text)
