"""The grammar of sequences, and what is said of a run that does not keep it."""

import itertools
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from coatcheck.bench.catalogue import load_scenario
from coatcheck.bench.conditions import MISSING, holds
from coatcheck.bench.findings import Violation
from coatcheck.bench.grammar import compile_steps
from coatcheck.bench.matching import sequence_violations, violations
from coatcheck.bench.recording import Recorded, Recording
from coatcheck.bench.spending import budget_violations
from schemas.scenario import Budget, Condition, Expect, Scenario, Step
from tests.bench import surgery
from tests.bench.record import recorded

START = datetime(2026, 11, 21, 10, tzinfo=UTC)
ONE_EACH = {"a": {"event": "x.a"}, "b": {"event": "x.b"}, "c": {"event": "x.c"}}


def message(sequence: int, kind: str, seconds: float | None = None, **payload: Any) -> Recorded:
    """A stored event of any type, a second after the one before unless told otherwise."""
    moment = START + timedelta(seconds=sequence if seconds is None else seconds)
    fields = {
        "event_id": f"id-{sequence}",
        "event_type": kind,
        "source": "core",
        "entity_id": "w/r",
        "correlation_id": "w/r",
        "session_id": "w",
        "occurred_at": moment.isoformat(),
        "payload": payload,
    }
    return Recorded(sequence, moment, "agog.events.system.core.x.w", f"id-{sequence}", json.dumps(fields))


def run_of(word: Sequence[str]) -> Recording:
    """`ab` is x.a at sequence 1 and x.b at 2."""
    return Recording("w/r", tuple(message(number, f"x.{letter}") for number, letter in enumerate(word, 1)))


def check(recording: Recording, sequence: Sequence[Any], **more: Any) -> list[Violation]:
    """What is wrong with the sequence of a run."""
    expect = Expect.model_validate({"sequence": sequence, "allow_other": "none", **more})
    return sequence_violations(recording, expect)


def test_what_is_expected_and_what_is_found_is_told_with_its_place() -> None:
    """A person can look both up in the audit log."""
    [found] = check(run_of("acb"), [ONE_EACH["a"], ONE_EACH["b"]])
    assert (found.message, found.sequence) == ("expected x.b after sequence 1, found x.c", 2)


def test_what_is_missing_at_the_end_is_told() -> None:
    """A truncated run is not a good one."""
    [found] = check(run_of("a"), [ONE_EACH["a"], {"any_of": [ONE_EACH["b"], ONE_EACH["c"]]}])
    assert found.message == "expected x.b or x.c after sequence 1, but there is nothing more"


def test_an_optional_step_does_not_swallow_what_a_later_one_needs() -> None:
    """The same event may be meant by both."""
    maybe = ONE_EACH["a"] | {"optional": True}
    assert check(run_of("ab"), [maybe, ONE_EACH["a"], ONE_EACH["b"]]) == []
    assert check(run_of("aab"), [maybe, ONE_EACH["a"], ONE_EACH["b"]]) == []
    assert check(run_of("aaab"), [maybe, ONE_EACH["a"], ONE_EACH["b"]]) != []


def test_sequences_side_by_side_mix_in_any_way_but_keep_their_own_order() -> None:
    """What an unordered group means."""
    both = {"unordered": [{"steps": [ONE_EACH["a"], ONE_EACH["b"]]}, ONE_EACH["c"]]}
    good = {"".join(word) for word in itertools.permutations("abc") if not check(run_of(word), [both])}
    assert good == {"abc", "acb", "cab"}


def test_a_predicate_tells_two_events_of_one_type_apart() -> None:
    """By a value anywhere in the payload."""
    recording = Recording("w/r", (message(1, "x.a", notice={"metadata": {"verdict": "pass", "rework": ["qa"]}}),))
    step = {"event": "x.a", "where": {"notice.metadata.verdict": "pass", "notice.metadata.rework.0": {"matches": "^q"}}}
    assert check(recording, [step]) == []
    assert check(recording, [step | {"where": {"notice.metadata.verdict": "fail"}}]) != []


@pytest.mark.parametrize(
    ("others", "good"), [("all", ["a", "aq", "at"]), ("agents", ["a", "at"]), ("none", ["a"])], ids=str
)
def test_what_no_step_mentions(others: str, good: list[str]) -> None:
    """Events of agents may come between where the scenario lets them; `q` is the system's, `t` a tool's."""
    kinds = {"a": "x.a", "q": "x.q", "t": "tool.x"}
    found = [
        word
        for word in ("a", "aq", "at")
        if not check(
            Recording("w/r", tuple(message(number, kinds[letter]) for number, letter in enumerate(word, 1))),
            [ONE_EACH["a"]],
            allow_other=others,
        )
    ]
    assert found == good


def test_times_are_bounded_since_the_start_since_the_step_before_and_between_labels() -> None:
    """Each bound alone."""
    recording = Recording("w/r", (message(1, "x.a", 0), message(2, "x.b", 5), message(3, "x.c", 20)))
    steps = [ONE_EACH["a"] | {"label": "first"}, ONE_EACH["b"], ONE_EACH["c"] | {"label": "last"}]
    assert check(recording, steps, within=[{"first": "first", "last": "last", "seconds": 20}]) == []
    [between] = check(recording, steps, within=[{"first": "first", "last": "last", "seconds": 19}])
    assert between.message == "first to last: 20.0 s, at most 19 s are allowed"
    assert check(recording, [*steps[:2], steps[2] | {"after_previous_seconds": 14}])[0].rule == "time"
    assert check(recording, [*steps[:2], steps[2] | {"after_previous_seconds": 15}]) == []


def test_of_several_ways_to_take_the_events_one_that_is_in_time_counts() -> None:
    """Which of two equal events was meant, nobody can say."""
    recording = Recording("w/r", (message(1, "tool.x", 0), message(2, "tool.x", 50), message(3, "x.b", 51)))
    steps = [{"event": "tool.x"}, {"event": "x.b", "after_previous_seconds": 2}]
    assert check(recording, steps, allow_other="agents") == []
    ends_early = Recording("w/r", (message(1, "x.a", 0), message(2, "tool.x", 1), message(3, "tool.x", 50)))
    labelled = [ONE_EACH["a"] | {"label": "first"}, {"event": "tool.x", "label": "last"}]
    bound = [{"first": "first", "last": "last", "seconds": 5}]
    assert check(ends_early, labelled, allow_other="agents", within=bound) == []


# --- what is not about the order ------------------------------------------------------------------------------------


def broken(change: dict[str, Any], *, name: str = "er_001", is_judged: bool = False) -> list[str]:
    """What is said of a good run when its scenario expects something else besides."""
    scenario, (_, run) = load_scenario(name), recorded(name)[0]
    fields = scenario.expect.model_dump(exclude_unset=True) | change
    other = scenario.model_copy(update={"expect": Expect.model_validate(fields)})
    return [str(item) for item in violations(run, other, is_judged=is_judged)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"forbidden": [{"event": "tool.completed", "agent": "billy"}]}, "forbidden by tool.completed(billy)"),
        ({"counts": [{"match": {"event": "stage.started"}, "min": 99}]}, "10 times, at least 99 are expected"),
        ({"counts": [{"match": {"event": "*", "stage": "qa"}, "max": 1}]}, "at most 1 are allowed"),
        ({"budget": {"tokens": 1000}}, "tokens, at most 1,000 are allowed"),
        ({"budget": {"calls": 16}}, "17 model calls, at most 16 are allowed"),
        ({"max_seconds": 0.5}, "the run: "),
    ],
    ids=str,
)
def test_each_expectation_besides_the_sequence_is_held(change: dict[str, Any], said: str) -> None:
    """A good run breaks it, and nothing else, once the scenario asks for it."""
    found = broken(change)
    assert found
    assert all(said in line for line in found), found


def test_money_is_counted_and_an_unknown_price_keeps_no_budget() -> None:
    """The scripted author costs nothing; a price that nobody knows might be anything."""
    assert broken({"budget": {"usd": 0}}) == []
    recording = recorded("er_001")[0][1]
    index = next(n for n, item in enumerate(recording.messages) if surgery.event(item).event_type == "turn.completed")
    unpriced = surgery.replaced(recording, index, surgery.with_payload(recording.messages[index], "cost_usd", None))
    dear = surgery.replaced(recording, index, surgery.with_payload(recording.messages[index], "cost_usd", "2.5"))
    assert "unknown" in str(budget_violations(unpriced, Budget(usd=100)))
    assert budget_violations(dear, Budget(usd=2.5)) == []
    assert "$2.5, at most $2.4" in str(budget_violations(dear, Budget(usd=2.4)))


def test_judges_are_missed_only_when_somebody_has_asked_them() -> None:
    """A replay of a run that was never judged is no failure."""
    assert broken({}) == []
    assert [line.partition(":")[2] for line in broken({}, is_judged=True)] == [
        " run-completed was not judged",
        " evidence-passed was not judged",
        " rounds-bounded was not judged",
    ]


# --- the grammar against its definition -----------------------------------------------------------------------------

MAX_WORD = 5
_letters = st.sampled_from("abc").map(lambda letter: {"event": f"x.{letter}"})
_flags = st.fixed_dictionaries(
    {},
    optional={
        "optional": st.booleans(),
        "repeat": st.sampled_from([{"min": 0, "max": 1}, {"min": 1, "max": 2}, {"min": 2, "max": 2}]),
    },
)


def _groups(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(children, min_size=2, max_size=2)
    group = st.sampled_from(["steps", "unordered", "any_of"])
    return st.builds(lambda name, items, flags: {name: items} | flags, group, lists, _flags)


_steps = st.recursive(st.builds(lambda step, flags: step | flags, _letters, _flags), _groups, max_leaves=4)


def language(step: Any) -> set[str]:
    """Every word that a step means, by definition; only short ones, which are made of short ones alone."""
    if "event" in step:
        words = {step["event"][-1]}
    elif "any_of" in step:
        words = set().union(*map(language, step["any_of"]))
    else:
        left, right = map(language, step.get("steps") or step["unordered"])
        words = {
            mixed
            for one in left
            for other in right
            for mixed in ({one + other} if "steps" in step else _mixtures(one, other))
        }
    if repeat := step.get("repeat"):
        powers = [{""}]
        for _ in range(repeat["max"]):
            powers.append({one + other for one in powers[-1] for other in words if len(one + other) <= MAX_WORD})
        words = set().union(*powers[repeat["min"] :])
    words |= {""} if step.get("optional") else set()
    return {word for word in words if len(word) <= MAX_WORD}


def _mixtures(one: str, other: str) -> set[str]:
    if not one or not other:
        return {one + other}
    return {one[0] + rest for rest in _mixtures(one[1:], other)} | {
        other[0] + rest for rest in _mixtures(one, other[1:])
    }


@settings(deadline=None)  # the definition takes its time, not the matcher
@given(step=_steps, word=st.text("abc", min_size=1, max_size=MAX_WORD))
def test_the_matcher_accepts_exactly_what_the_steps_mean(step: Any, word: str) -> None:
    """Against the definition, for any nesting of sequences, groups, choices, options and repetitions."""
    assert (check(run_of(word), [step]) == []) is (word in language(step))


@settings(deadline=None)
@given(step=_steps)
def test_every_word_of_the_language_is_accepted(step: Any) -> None:
    """So that the property above is not true of words that never match alone."""
    for word in sorted(language(step) - {""})[:20]:
        assert check(run_of(word), [step]) == [], word


def test_a_shuffle_of_many_costs_no_factorial() -> None:
    """Twelve stages side by side: what is left to expect is one expression."""
    steps = TypeAdapter(list[Step]).validate_python(
        [{"unordered": [{"event": f"s.x{chr(97 + n)}"} for n in range(12)]}]
    )
    assert len(compile_steps(steps)[1]) == 12
    recording = Recording("w/r", tuple(message(n, f"s.x{chr(97 + (n * 5) % 12)}") for n in range(12)))
    assert check(recording, steps) == []


# --- conditions and scenarios ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("test", "value", "outcome"),
    [
        ({"equals": "x"}, "x", True),
        ({"equals": 1}, True, False),
        ({"equals": None}, MISSING, True),
        ({"one_of": ["a", "b"]}, "b", True),
        ({"one_of": ["a", "b"]}, "c", False),
        ({"at_least": 1, "at_most": 2}, "1.5", True),
        ({"at_least": 1}, MISSING, False),
        ({"at_most": 1}, True, False),
        ({"matches": "^a+$"}, "aaa", True),
        ({"matches": "b"}, 5, False),
        ({"exists": True}, None, False),
        ({"exists": False}, MISSING, True),
    ],
)
def test_conditions(test: dict[str, Any], value: Any, outcome: object) -> None:
    """Each kind of test, on what it is for and on what it is not."""
    assert holds(Condition.model_validate(test), value) is outcome


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequence": [{"event": "x.a", "labl": "b"}]}, "Extra inputs"),
        ({"sequence": [{"event": "x.a", "where": {"round": {}}}]}, "needs a test"),
        ({"sequence": [{"event": "x.a", "label": "b"}] * 2}, "more than one step has the label b"),
        ({"within": [{"first": "a", "last": "b", "seconds": 1}]}, "no step has the label 'a'"),
        ({"sequence": [{"event": "x.a", "repeat": {"min": 3, "max": 2}}]}, "max 2 is less than min 3"),
        ({"invariants": ["all"]}, "Input should be"),
    ],
)
def test_a_scenario_that_says_something_impossible_is_refused(change: dict[str, Any], message: str) -> None:
    """At once, and not in the middle of a run."""
    request = {"feature": "search", "brief": "Find it."}
    expect = {"sequence": [{"event": "run.started"}], **change}
    with pytest.raises(ValueError, match=message):
        Scenario.model_validate({"id": "x", "title": "x", "input": {"request": request}, "expect": expect})
