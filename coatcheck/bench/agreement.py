"""How far judges agree: Cohen's kappa and Krippendorff's alpha for labels, the mean difference for scores. Pure.

A few lines of ours: scikit-learn has kappa and would bring 150 MB with SciPy, `krippendorff` needs NumPy, and the base
installation has neither. The tests hold them against the examples that their authors published.

Agreement that is not defined is `None`: nothing to compare, or labels that never differ. Two judges who both say `met`
of everything do not disagree, but nobody has seen yet that they can tell one thing from another.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, permutations
from typing import Final, Literal, TypeAlias

from schemas.event_payloads import AgreementMeasured, Scored

COHEN: Final = "cohen_kappa"
KRIPPENDORFF: Final = "krippendorff_alpha"
DIFFERENCE: Final = "mean_absolute_difference"
TWO: Final = 2

Level: TypeAlias = Literal["nominal", "interval"]
Thing: TypeAlias = tuple[str, str | None, int | None]
"""What was judged: run key, stage and round."""


def cohen_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Agreement of two judges beyond chance (Cohen 1960): 1 is full, 0 is chance, below 0 is worse than chance.

    Args:
        pairs: The two labels of each thing.

    Returns:
        `None` when there is no pair, or when both judges gave all things the same one label.
    """
    if not pairs:
        return None
    count = len(pairs)
    observed = sum(one == other for one, other in pairs) / count
    first, second = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    by_chance = sum(first[label] * second[label] for label in first) / count**2
    return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)


def krippendorff_alpha(units: Iterable[Sequence[str | float]], level: Level = "nominal") -> float | None:
    """Agreement of any number of judges (Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011).

    Args:
        units: Per thing the values that judges gave it; those that gave none are left out.
        level: `nominal` for labels, `interval` for numbers.

    Returns:
        1 is full agreement, 0 chance; `None` when no thing has two values, or all values are the same.
    """
    distance = _DISTANCES[level]
    pairable = [list(unit) for unit in units if len(unit) >= TWO]
    values = [value for unit in pairable for value in unit]
    expected = math.fsum(distance(one, other) for one, other in permutations(values, TWO))
    if expected == 0:
        return None
    within = (math.fsum(distance(*pair) for pair in permutations(unit, TWO)) / (len(unit) - 1) for unit in pairable)
    return 1 - (len(values) - 1) * math.fsum(within) / expected


def mean_absolute_difference(units: Iterable[Sequence[float]]) -> float | None:
    """How far scores lie apart on average, over every pair of judges; 0 is full agreement, `None` without a pair."""
    differences = [abs(one - other) for unit in units for one, other in combinations(unit, TWO)]
    return math.fsum(differences) / len(differences) if differences else None


def compare(opinions: Iterable[tuple[str, Scored]], *, scenario: str | None = None) -> list[AgreementMeasured]:
    """How far the judges of each criterion agree, over the things that all of them scored.

    Args:
        opinions: Run key and score; the later of two by the same judge of the same thing counts.
        scenario: What the runs had in common.

    Returns:
        Two measures per criterion that has more than one judge, criteria in alphabetical order: of labels, unless a
        judge gave none, and of scores.
    """
    by_criterion: dict[str, dict[str, dict[Thing, Scored]]] = defaultdict(lambda: defaultdict(dict))
    for run_key, scored in opinions:
        by_criterion[scored.criterion][scored.judge][run_key, scored.stage, scored.round] = scored
    return [
        measured
        for criterion, judges in sorted(by_criterion.items())
        if len(judges) >= TWO
        for measured in _compared(criterion, dict(sorted(judges.items())), scenario)
    ]


def _compared(criterion: str, judges: dict[str, dict[Thing, Scored]], scenario: str | None) -> list[AgreementMeasured]:
    shared = sorted(set.intersection(*(set(given) for given in judges.values())), key=repr)
    units = [[given[thing] for given in judges.values()] for thing in shared]
    found: list[tuple[str, float | None]] = []
    if all(scored.label for unit in units for scored in unit):
        labels = [[scored.label for scored in unit] for unit in units]
        if len(judges) == TWO:
            found.append((COHEN, cohen_kappa([(one, other) for one, other in labels])))
        else:
            found.append((KRIPPENDORFF, krippendorff_alpha(labels)))
    found.append((DIFFERENCE, mean_absolute_difference([scored.score for scored in unit] for unit in units)))
    return [
        AgreementMeasured(
            criterion=criterion,
            judges=list(judges),
            measure=measure,
            value=value,
            compared=len(shared),
            scenario=scenario,
        )
        for measure, value in found
    ]


def _differ(one: str | float, other: str | float) -> float:
    return float(one != other)


def _square(one: str | float, other: str | float) -> float:
    return (float(one) - float(other)) ** 2


_DISTANCES: Final[dict[Level, Callable[[str | float, str | float], float]]] = {"nominal": _differ, "interval": _square}
