"""Holds a recorded run against a scenario. Pure: the same events and scenario give the same violations.

The sequence is followed event by event with all ways in which the steps can take the events so far, so that an
optional or repeated step never swallows what a later one needs. Of the ways that reach the end, the one that keeps
the most time bounds counts.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from coatcheck.bench.conditions import matches
from coatcheck.bench.findings import Violation
from coatcheck.bench.grammar import Expression, after, compile_steps, expected, may_end
from coatcheck.bench.invariants import broken_invariants
from coatcheck.bench.panel import standing
from coatcheck.bench.recording import Recorded, Recording
from coatcheck.bench.spending import budget_violations
from schemas.event_payloads import JudgingFailed, Scored
from schemas.events import JudgeFailed, JudgeScored, RunStarted
from schemas.rehearsal import with_cues
from schemas.scenario import Count, EventStep, Expect, Scenario, Threshold, Within

MAX_WAYS: Final = 256
"""Ways to take the events so far that are followed at once; more only arise where many steps look the same."""
MAX_SHOWN: Final = 5
"""Expected steps in one message."""
_LOOSE: Final = frozenset({"turn", "tool", "attempt", "deliverable", "evidence", "judge", "judges"})
"""First words of the event types that come from agents, judges and the journal of turns."""


@dataclass(frozen=True)
class Way:
    """How the steps took the events so far: the latest step and event, and the way to there."""

    step: int
    message: Recorded
    before: "Way | None"

    def path(self) -> list[tuple[int, Recorded]]:
        """Every step that took an event, in order."""
        taken: list[tuple[int, Recorded]] = []
        way: Way | None = self
        while way is not None:
            taken.append((way.step, way.message))
            way = way.before
        return taken[::-1]


Ways = dict[tuple[Expression, tuple[int, ...]], Way | None]
"""What is left to expect, and the sequences that bounded steps took → one way to get there."""


def violations(recording: Recording, scenario: Scenario, *, is_judged: bool = False) -> list[Violation]:
    """Everything that is wrong with a run, in the order of the audit log.

    Args:
        recording: The run; of one that does not begin with the start only what is forbidden, the budget and those
            invariants count that need no beginning.
        scenario: What it had to be.
        is_judged: Whether judges have looked at it, so that a missing opinion is a violation.
    """
    expect = scenario.expect
    found = broken_invariants(recording, expect)
    found += _forbidden(recording, expect)
    if recording.is_whole:
        found += _other_input(recording, scenario)
        found += sequence_violations(recording, expect)
        found += [item for count in expect.counts for item in _miscounted(recording, count)]
    found += budget_violations(recording, expect.budget)
    if is_judged:
        found += [item for threshold in expect.judges for item in _misjudged(recording, threshold)]
    return sorted(found, key=lambda item: (item.sequence is None, item.sequence or 0))


# --- the sequence ---------------------------------------------------------------------------------------------------


def sequence_violations(recording: Recording, expect: Expect) -> list[Violation]:
    """The first event that the sequence does not have, or the times that are not kept."""
    start, table = compile_steps(expect.sequence)
    timed = [number for number, step in enumerate(table) if step.after_previous_seconds is not None]
    labelled = [number for number, step in enumerate(table) if step.label is not None]
    bounded = frozenset([*labelled, *timed, *(number - 1 for number in timed)])
    ways: Ways = {(start, ()): None}
    for message in recording.messages:
        following = _follow(ways, message, table, bounded, may_skip=_is_loose(message, expect))
        if not following:
            return [_unexpected(ways, message, table)]
        ways = following
    ended = [way for (left, _), way in ways.items() if may_end(left) and way is not None]
    if not ended:
        return [_missing(ways, table)]
    timings = [_late_steps(way.path(), table, expect, _start_of(recording)) for way in ended]
    return min(timings, key=len)


def _follow(ways: Ways, message: Recorded, table: list[EventStep], bounded: frozenset[int], *, may_skip: bool) -> Ways:
    known: dict[int, bool] = {}

    def takes(step: int) -> bool:
        if step not in known:
            known[step] = matches(table[step], message)
        return known[step]

    following: Ways = {}
    for (left, times), way in ways.items():
        for step, rest in after(left, takes):
            key = (rest, (*times, step, message.sequence) if step in bounded else times)
            following.setdefault(key, Way(step, message, way))
    if may_skip:
        for key, way in ways.items():
            following.setdefault(key, way)
    return dict(list(following.items())[:MAX_WAYS])


def _is_loose(message: Recorded, expect: Expect) -> bool:
    """Whether the sequence may pass over it; what cannot be read is another rule's."""
    if message.event is None or expect.allow_other == "all":
        return True
    return expect.allow_other == "agents" and message.event.event_type.partition(".")[0] in _LOOSE


def _unexpected(ways: Ways, message: Recorded, table: list[EventStep]) -> Violation:
    return Violation(
        rule="sequence",
        message=f"expected {_choices(ways, table)} {_place(_latest(ways))}, found {describe(message)}",
        sequence=message.sequence,
    )


def _missing(ways: Ways, table: list[EventStep]) -> Violation:
    last = _latest(ways)
    told = f"expected {_choices(ways, table)} {_place(last)}, but there is nothing more"
    return Violation(rule="sequence", message=told, sequence=last.sequence if last else None)


def _latest(ways: Ways) -> Recorded | None:
    """The latest event that a step took."""
    taken = [way.message for way in ways.values() if way is not None]
    return max(taken, key=lambda message: message.sequence, default=None)


def _place(last: Recorded | None) -> str:
    return "at the beginning" if last is None else f"after sequence {last.sequence}"


def _choices(ways: Ways, table: list[EventStep]) -> str:
    steps = sorted(set().union(*(expected(left) for left, _ in ways)))
    names = list(dict.fromkeys(str(table[step].model_copy(update={"label": None})) for step in steps))
    more = [f"{len(names) - MAX_SHOWN} others"] if len(names) > MAX_SHOWN else []
    listed = [*names[:MAX_SHOWN], *more]
    if any(may_end(left) for left, _ in ways):
        listed.append("the end")
    return " or ".join(listed) or "the end"


def describe(message: Recorded) -> str:
    """An event in a few words, in the form of a matcher."""
    if message.event is None:
        return "something that is no event"
    payload = message.payload
    about = [str(payload[name]) for name in ("stage", "round") if payload.get(name) is not None]
    verdict = (payload.get("notice") or {}).get("metadata", {}).get("verdict") if "notice" in payload else None
    about += [f"verdict {verdict}"] if verdict else []
    return message.event.event_type + (f"({', '.join(about)})" if about else "")


# --- times ----------------------------------------------------------------------------------------------------------


def _start_of(recording: Recording) -> datetime | None:
    return next((event.occurred_at for event in recording.events), None)


def _late_steps(
    path: list[tuple[int, Recorded]], table: list[EventStep], expect: Expect, start: datetime | None
) -> list[Violation]:
    found: list[Violation] = []
    previous: Recorded | None = None
    for number, message in path:
        step = table[number]
        if start is not None and step.within_seconds is not None:
            found += _too_long(f"{step.event} since the run's start", start, message, step.within_seconds)
        if previous is not None and step.after_previous_seconds is not None:
            told = f"{step.event} after {describe(previous)}"
            found += _too_long(told, _moment(previous), message, step.after_previous_seconds)
        previous = message
    if start is not None and expect.max_seconds is not None and path:
        found += _too_long("the run", start, path[-1][1], expect.max_seconds)
    return found + [item for bound in expect.within for item in _between(path, table, bound)]


def _between(path: list[tuple[int, Recorded]], table: list[EventStep], bound: Within) -> list[Violation]:
    first = [message for number, message in path if table[number].label == bound.first]
    last = [message for number, message in path if table[number].label == bound.last]
    if not first or not last:  # an optional step was left out
        return []
    return _too_long(f"{bound.first} to {bound.last}", _moment(first[0]), last[-1], bound.seconds)


def _too_long(what: str, since: datetime, message: Recorded, limit: float) -> list[Violation]:
    took = (_moment(message) - since) / timedelta(seconds=1)
    if took <= limit:
        return []
    return [
        Violation(
            rule="time", message=f"{what}: {took:.1f} s, at most {limit:g} s are allowed", sequence=message.sequence
        )
    ]


def _moment(message: Recorded) -> datetime:
    return message.event.occurred_at if message.event is not None else message.stored_at


# --- the input ------------------------------------------------------------------------------------------------------


def _other_input(recording: Recording, scenario: Scenario) -> list[Violation]:
    """The run has to be one of this scenario at all."""
    request = scenario.input.request
    brief = with_cues(request.brief, scenario.input.rehearsal).encode("utf-8", "surrogatepass")
    wanted = {
        "feature": request.feature,
        "tenant": request.tenant,
        "priority": request.priority,
        "stages": [stage.name for stage in request.pipeline.stages],
        "agents": [stage.agent for stage in request.pipeline.stages],
        "brief_sha256": hashlib.sha256(brief).hexdigest(),
        "brief_bytes": len(brief),
    }
    return [
        Violation(rule="input", message=f"{name} is {found!r}, the scenario has {value!r}", sequence=message.sequence)
        for message, event in recording.of(RunStarted)
        for name, value in wanted.items()
        if (found := getattr(event.payload, name)) != value
    ]


# --- the rest -------------------------------------------------------------------------------------------------------


def _forbidden(recording: Recording, expect: Expect) -> list[Violation]:
    return [
        Violation(rule="forbidden", message=f"{describe(message)} is forbidden by {matcher}", sequence=message.sequence)
        for message in recording.messages
        for matcher in expect.forbidden
        if matches(matcher, message)
    ]


def _miscounted(recording: Recording, count: Count) -> list[Violation]:
    found = [message for message in recording.messages if matches(count.match, message)]
    if count.max is not None and len(found) > count.max:
        told = f"{count.match}: {len(found)} times, at most {count.max} are allowed"
        return [Violation(rule="count", message=told, sequence=found[count.max].sequence)]
    if len(found) < count.min:
        return [
            Violation(rule="count", message=f"{count.match}: {len(found)} times, at least {count.min} are expected")
        ]
    return []


def _misjudged(recording: Recording, threshold: Threshold) -> list[Violation]:
    def concerns(said: Scored | JudgingFailed) -> bool:
        return (
            said.criterion == threshold.criterion
            and threshold.judge in (None, said.judge)
            and threshold.stage in (None, said.stage)
        )

    counts = {event.event_id for event in standing(recording.events)}
    scored = [
        (message, event.payload)
        for message, event in recording.of(JudgeScored)
        if concerns(event.payload) and event.event_id in counts
    ]
    failed = [
        (message, event.payload)
        for message, event in recording.of(JudgeFailed)
        if concerns(event.payload) and event.event_id in counts
    ]
    found = [
        Violation(rule="judge", message=f"{said.judge} failed on {said.criterion}: {said.error}", sequence=at.sequence)
        for at, said in failed
    ]
    found += [
        Violation(
            rule="judge",
            message=f"{said.judge} gives {said.score:g} for {said.criterion}, less than {threshold.at_least:g}",
            sequence=at.sequence,
        )
        for at, said in scored
        if said.score < threshold.at_least
    ]
    if not scored and not failed:
        by = f" by {threshold.judge}" if threshold.judge else ""
        found.append(Violation(rule="judge", message=f"{threshold.criterion} was not judged{by}"))
    return found
