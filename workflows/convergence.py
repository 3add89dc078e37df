"""When a review stops making progress: pure functions over the marks of its findings, round by round.

A reviewer that is never content, or that changes its mind every round, would otherwise spend the whole budget of rounds
on work that gets no better. A finding is the same when its id is the same or when its text is: reviewers renumber.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.review import FindingMark

Round = Sequence[FindingMark]


@dataclass(frozen=True)
class Standstill:
    """Another round would not help."""

    reason: str
    is_acceptable: bool
    """Whether the pipeline may go on by itself: what is left is only minor."""


def standstill(rounds: Sequence[Round]) -> Standstill | None:
    """Judge the latest of a review's rounds, each of which asked for changes.

    Args:
        rounds: The findings of every round so far, oldest first. An empty round is one that left no marks, and says
            nothing.

    Returns:
        Why to stop, or `None` when the last round gives reason to hope.
    """
    if len(rounds) < 2 or not rounds[-1]:  # noqa: PLR2004  a comparison takes two
        return None
    latest, previous, earlier = rounds[-1], rounds[-2], rounds[:-2]
    if not any(mark.is_major for mark in latest):
        return Standstill(f"only minor findings are left ({_names(latest)})", is_acceptable=True)
    returned = [mark for mark in latest if _is_in(mark, previous)]
    back = [mark for mark in latest if mark not in returned and any(_is_in(mark, old) for old in earlier)]
    if back:
        return Standstill(f"findings come and go ({_names(back)} again)", is_acceptable=False)
    if previous and len(returned) == len(latest) >= len(previous):
        return Standstill(f"the same findings came back ({_names(latest)})", is_acceptable=False)
    return None


def _is_in(mark: FindingMark, others: Round) -> bool:
    return any(mark.id == other.id or mark.text_print == other.text_print for other in others)


def _names(marks: Round) -> str:
    return ", ".join(mark.id for mark in marks)
