"""Agreement between judges, held against the examples that were published with the measures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.bench.agreement import cohen_kappa, compare, krippendorff_alpha, mean_absolute_difference
from schemas.event_payloads import Scored

LABELS = st.sampled_from(["met", "partly", "missed"])


def table(yes_yes: int, yes_no: int, no_yes: int, no_no: int) -> list[tuple[str, str]]:
    """The pairs of a two by two table."""
    return [
        *[("yes", "yes")] * yes_yes,
        *[("yes", "no")] * yes_no,
        *[("no", "yes")] * no_yes,
        *[("no", "no")] * no_no,
    ]


@pytest.mark.parametrize(
    ("counts", "kappa"),
    [((20, 5, 10, 15), 0.4), ((45, 15, 25, 15), 0.1304), ((25, 35, 5, 35), 0.2593)],
)
def test_kappa_of_published_tables(counts: tuple[int, int, int, int], kappa: float) -> None:
    """Fifty grant proposals, and the two tables of equal agreement that kappa tells apart."""
    assert cohen_kappa(table(*counts)) == pytest.approx(kappa, abs=5e-5)


def test_alpha_of_binary_data_by_two_observers() -> None:
    """Krippendorff 2011, section A."""
    meg, owen = "0100000010", "1110010000"
    assert krippendorff_alpha(zip(meg, owen, strict=True)) == pytest.approx(0.095, abs=5e-4)


def test_alpha_of_labels_by_two_observers() -> None:
    """Krippendorff 2011, section B."""
    ben, gerry = "aabbdcccedda", "babbbccceddd"
    assert krippendorff_alpha(zip(ben, gerry, strict=True)) == pytest.approx(0.692, abs=5e-4)


FOUR_OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("interval", 0.849)])
def test_alpha_with_missing_values(level: str, alpha: float) -> None:
    """Krippendorff 2011, sections C and D: four observers, twelve units, some values missing."""
    units = [[value for value in unit if value is not None] for unit in zip(*FOUR_OBSERVERS, strict=True)]
    assert krippendorff_alpha(units, level) == pytest.approx(alpha, abs=5e-4)  # type: ignore[arg-type]


def test_what_is_not_defined_is_none() -> None:
    """Nothing to compare, and labels that never differ, are no agreement of 0 or 1."""
    assert cohen_kappa([]) is None
    assert cohen_kappa([("met", "met")] * 5) is None
    assert krippendorff_alpha([]) is None
    assert krippendorff_alpha([["met"], ["missed"]]) is None
    assert krippendorff_alpha([["met", "met", "met"]] * 3) is None
    assert mean_absolute_difference([]) is None
    assert mean_absolute_difference([[0.5]]) is None


@given(st.lists(st.tuples(LABELS, LABELS), min_size=1))
def test_kappa_does_not_care_who_is_first(pairs: list[tuple[str, str]]) -> None:
    """It is 1 at most, and 1 only for full agreement."""
    kappa = cohen_kappa(pairs)
    assert kappa == pytest.approx(cohen_kappa([(other, one) for one, other in pairs]))
    if kappa is not None:
        assert (kappa == pytest.approx(1)) == all(one == other for one, other in pairs)
        assert kappa <= 1 + 1e-9


def test_difference_is_over_every_pair() -> None:
    """Three judges of one thing are three pairs."""
    assert mean_absolute_difference([[0, 0.5, 1]]) == pytest.approx((0.5 + 0.5 + 1) / 3)


# --- judges -------------------------------------------------------------------------------------------------------


def scored(judge: str, score: float, label: str = "", *, criterion: str = "clear", stage: str | None = None) -> Scored:
    """A score."""
    return Scored(judge=judge, kind="llm", criterion=criterion, score=score, label=label, stage=stage)


def test_judges_are_compared_on_what_all_of_them_scored() -> None:
    """What one of them could not score is not counted, neither as agreement nor as a zero."""
    opinions = [
        ("run-1", scored("ada", 1, "met")),
        ("run-1", scored("bob", 0.5, "partly")),
        ("run-2", scored("ada", 0, "missed")),
        ("run-2", scored("bob", 0, "missed")),
        ("run-3", scored("ada", 1, "met")),
        ("run-1", scored("ada", 1, criterion="alone")),
    ]
    labels, scores = compare(opinions, scenario="er_001")
    assert (labels.criterion, labels.judges, labels.measure) == ("clear", ["ada", "bob"], "cohen_kappa")
    assert (labels.compared, labels.scenario) == (2, "er_001")
    assert labels.value == pytest.approx((0.5 - 0.25) / 0.75)
    assert (scores.measure, scores.value, scores.compared) == ("mean_absolute_difference", 0.25, 2)


def test_three_judges_and_stages_apart() -> None:
    """Two stages of one run are two things; three judges have no kappa."""
    opinions = [
        ("run", scored(judge, score, label, stage=stage))
        for stage, score, label in (("backend", 1, "met"), ("frontend", 0, "missed"))
        for judge in ("ada", "bob", "eve")
    ]
    labels, scores = compare(opinions)
    assert (labels.measure, labels.value, labels.compared) == ("krippendorff_alpha", 1, 2)
    assert scores.value == 0


def test_labels_are_compared_only_where_every_judge_gave_one() -> None:
    """A judge of plain numbers is compared by numbers."""
    [scores] = compare([("run", scored("ada", 1, "met")), ("run", scored("bob", 0.25))])
    assert (scores.measure, scores.value) == ("mean_absolute_difference", 0.75)


def test_judges_that_share_nothing_have_no_agreement() -> None:
    """Both measures say so by `None`."""
    measures = compare([("run-1", scored("ada", 1, "met")), ("run-2", scored("bob", 1, "met"))])
    assert [(item.value, item.compared) for item in measures] == [(None, 0), (None, 0)]
