"""How a program looks: the table, the headline, what is told of a change, and what the screen has room for."""

from decimal import Decimal
from io import StringIO

import pytest
from rich.console import Console

from coatcheck.cli.program_view import SeenProgram, headline, is_over, not_through, table
from coatcheck.cli.program_watching import changes, drawing, in_view
from schemas.program import FeatureLine, FeatureState

LINES = [
    FeatureLine(feature="a", state=FeatureState.COMPLETED, tokens=1200, cost_usd=Decimal("0.5")),
    FeatureLine(feature="b", state=FeatureState.FAILED, reason="no such model"),
    FeatureLine(feature="c", state=FeatureState.WAITING, reason="qa: really? [/b]", tenant="sales", priority=1),
    FeatureLine(feature="d", state=FeatureState.RUNNING),
    FeatureLine(feature="e", state=FeatureState.PENDING),
]


def seen(*lines: FeatureLine, status: str = "running", error: str = "") -> SeenProgram:
    """A program with these features."""
    counts = {state: count for state in FeatureState if (count := sum(line.state is state for line in lines))}
    return SeenProgram(
        name="p", workflow_id="program/p", run_id="r", status=status, error=error, counts=counts, features=list(lines)
    )


def test_the_table_says_what_went_through_and_why_the_rest_did_not() -> None:
    """What a failed run took is not known and left empty; the sum is of the others."""
    rows = [line.split() for line in table(seen(*LINES)).splitlines()]
    assert rows[1] == ["a", "default", "3", "completed", "1,200", "$0.5000"]
    assert rows[2] == ["b", "default", "3", "failed", "no", "such", "model"]
    assert rows[3] == ["c", "sales", "1", "waiting", "qa:", "really?", "[/b]"]
    assert headline(seen(*LINES)) == (
        "p: running, 1 of 5 completed, 1 pending, 1 running, 1 waiting, 1 failed; 1,200 tokens, $0.5000"
    )


def test_an_unknown_price_is_not_free() -> None:
    """Nor is a sum that has one in it."""
    unknown = FeatureLine(feature="x", state=FeatureState.COMPLETED, tokens=1)
    assert headline(seen(LINES[0], unknown, status="completed")).endswith("1,201 tokens, unknown")


def test_a_program_that_failed_as_a_whole_says_why() -> None:
    """Its input was wrong."""
    assert headline(seen(status="failed", error="name: a slug is…")).endswith("\nname: a slug is…")


@pytest.mark.parametrize(("status", "over"), [("running", False), ("paused", False), ("completed", True), ("x", True)])
def test_what_is_over(status: str, over: bool) -> None:  # noqa: FBT001  a parameter of the test
    """Everything but running and paused."""
    assert is_over(seen(status=status)) is over


def test_who_did_not_go_through_is_counted() -> None:
    """Not those that may still do."""
    blocked = FeatureLine(feature="x", state=FeatureState.BLOCKED)
    assert not_through(seen(*LINES, blocked)) == 2


def test_each_change_is_told_once() -> None:
    """By feature; what has not begun is no news."""
    told = changes(seen(*LINES))
    assert told == {
        "a": "a: completed",
        "b": "b: failed: no such model",
        "c": "c: waiting: qa: really? [/b]; `coatcheck progress c` asks",
        "d": "d: running",
    }
    assert changes(seen(*LINES, status="paused"))[""].startswith("the program is paused; `coatcheck program resume p`")
    assert changes(seen(*LINES, status="cancelled"))[""] == "the program is cancelled"


def test_the_screen_shows_first_who_waits_and_works() -> None:
    """And says how many it has no room for."""
    assert [line.feature for line in in_view(LINES, 4)] == ["c", "d", "b", "e"]
    console = Console(file=StringIO(), width=80, force_terminal=True)
    console.print(drawing(seen(*LINES), 2))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "qa: really? [/b]" in text  # what people and models say is no markup
    assert "\np: running, 1 of 5 completed" in text  # on a line of its own, below the bar
    assert "no such model" not in text
    assert "and 3 more" in text
    console.print(drawing(seen(), 2))
    assert "waiting for a core worker" in console.file.getvalue()  # type: ignore[attr-defined]
