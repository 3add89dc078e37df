"""The benchmark is itself put to the test: mutants of good runs must be caught, and good runs must not be."""

import random
from collections import Counter
from functools import cache

import pytest

from coatcheck.bench.catalogue import load_scenario, scenario_ids
from coatcheck.bench.findings import Violation
from coatcheck.bench.matching import violations
from coatcheck.bench.recording import Recording
from schemas.scenario import INVARIANTS, Scenario
from tests.bench import mutants
from tests.bench.record import recorded
from tests.bench.variations import vary

GOOD_RUNS = 200
MUTANTS_EACH = 60
"""Per kind, void ones not counted."""
CAUGHT_SHARE = 0.99
SEED = 20261121


@cache
def corpus() -> tuple[tuple[Scenario, Recording], ...]:
    """The recorded runs with their scenarios."""
    scenarios = {name: load_scenario(name) for name in scenario_ids()}
    return tuple((scenarios[name], recording) for name, recording in recorded())


@cache
def good_runs() -> tuple[tuple[Scenario, Recording], ...]:
    """The recorded ones and variations of them, 200 in all."""
    rng = random.Random(SEED)
    varied = [(scenario, vary(run, rng)) for scenario, run in rng.choices(corpus(), k=GOOD_RUNS - len(corpus()))]
    return (*corpus(), *varied)


def test_every_scenario_has_recorded_runs() -> None:
    """A branch that nobody recorded would be tested by nothing."""
    assert {scenario.id for scenario, _ in corpus()} == set(scenario_ids())


def test_no_good_run_is_complained_about() -> None:
    """No false alarm on 200 good runs."""
    alarms = [(scenario.id, found) for scenario, run in good_runs() if (found := violations(run, scenario))]
    assert len(good_runs()) == GOOD_RUNS
    assert alarms == []


def test_a_run_of_one_scenario_is_not_a_run_of_another() -> None:
    """Scenarios tell runs apart, or they would ask for too little."""
    mistaken = [
        (other.id, scenario.id)
        for scenario, run in corpus()
        for other in {item.id: item for item, _ in corpus()}.values()
        if other.id != scenario.id and not violations(run, other)
    ]
    assert mistaken == []


def test_mutants_are_caught(capsys: pytest.CaptureFixture[str]) -> None:
    """At least 99% of the mutants of all kinds, and each kind nearly always."""
    rows, missed, total, caught = [], [], 0, 0
    for kind in mutants.KINDS:
        rng = random.Random(f"{SEED} {kind.__name__}")
        made, void, found_by = 0, 0, Counter[str]()
        while made < MUTANTS_EACH:
            scenario, run = rng.choice(good_runs())
            mutant = kind(run, scenario, rng)
            if mutant is None:
                void += 1
                continue
            made += 1
            found = violations(mutant, scenario)
            found_by.update({item.rule for item in found})
            if not found:
                missed.append((kind.__name__, scenario.id, made))
        failed = sum(name == kind.__name__ for name, _, _ in missed)
        total, caught = total + made, caught + made - failed
        rows.append(f"{kind.__name__:<20}{made:>6}{made - failed:>8}{void:>6}  {_rules(found_by)}")
    with capsys.disabled():
        print(f"\n{'kind':<20}{'made':>6}{'caught':>8}{'void':>6}  rules\n" + "\n".join(rows))
        print(f"{'all':<20}{total:>6}{caught:>8}  {caught / total:.2%}")
    assert len(mutants.KINDS) >= 12
    assert caught >= CAUGHT_SHARE * total, missed
    assert all(sum(name == kind.__name__ for name, _, _ in missed) <= 3 for kind in mutants.KINDS), missed


def _rules(found_by: Counter[str]) -> str:
    return ", ".join(f"{rule} {count}" for rule, count in found_by.most_common(4))


def test_every_rule_has_mutants_that_it_catches() -> None:
    """A rule that never finds anything is not known to work."""
    rng, found_by = random.Random(SEED), Counter[str]()
    for number in range(3000):
        scenario, run = rng.choice(good_runs())
        mutant = mutants.KINDS[number % len(mutants.KINDS)](run, scenario, rng)
        if mutant is not None:
            found_by.update({item.rule for item in violations(mutant, scenario)})
    assert {*INVARIANTS, "sequence", "forbidden", "count", "time", "budget", "input"} - found_by.keys() == set()


def test_the_scenario_alone_and_the_invariants_alone_catch_less() -> None:
    """Both are needed: neither the sequence nor the invariants see everything."""

    def missed_by(is_seen: "type[bool] | object") -> int:
        rng, count = random.Random(SEED), 0
        for _ in range(400):
            scenario, run = rng.choice(good_runs())
            mutant = rng.choice(mutants.KINDS)(run, scenario, rng)
            if mutant is not None and not [item for item in violations(mutant, scenario) if is_seen(item)]:  # type: ignore[operator]
                count += 1
        return count

    def by_scenario(item: Violation) -> bool:
        return item.rule in {"sequence", "forbidden", "count", "time", "budget", "input"}

    assert missed_by(by_scenario) > 0
    assert missed_by(lambda item: not by_scenario(item)) > 0
