"""The judge: global invariants over the evidence of some runs and the provider's bill. Pure functions, no product code.

The bill is the provider's own and knows nothing of the journal of turns, so "paid twice" is not the product's word.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tests.chaos.evidence import Evidence
from tests.providers.bill import BillLine

Place = tuple[str, str, int, int]
"""Feature, stage, round, turn."""


class Rule(StrEnum):
    """What must hold."""

    COMPLETED = "the run completed"
    ONE_ROW_PER_TASK = "exactly one completed row per task"
    ONE_DELIVERABLE_PER_TASK = "exactly one deliverable message per task"
    NOTICE_NAMES_MESSAGE = "every notice names the stored message of its task"
    OWN_REFERENCES = "a stage is handed deliverables of its own run only"
    EVENTS_ONCE = "every event once, every start with its end, every turn told"
    EVENTS_CAUSED = "every event is caused by another one of its run"
    EVENTS_PROJECTED = "the table has the events of the audit log, and no others"
    TURNS_DONE = "every turn is journalled once, in order and finished"
    NOTHING_PAID_TWICE = "no finished model call is made again"
    NOTHING_BEGUN_TWICE = "no model call in flight is made again"


_OF_A_ROUND = ("stage.started", "stage.completed")
_FIRST = frozenset({"run.started", "run.reset"})
"""What may be caused by nothing."""


@dataclass(frozen=True)
class Violation:
    """A rule that is broken, and by what."""

    rule: Rule
    detail: str


def violations(evidence: Sequence[Evidence], bill: Sequence[BillLine], *, may_be_repeated: int = 0) -> list[Violation]:
    """Everything that is wrong with completed runs.

    Args:
        evidence: All runs of their features: the bill knows features, not runs.
        bill: The provider's, whole.
        may_be_repeated: Calls that were in flight in a gateway when that gateway died: the stated exception.
    """
    found = [violation for item in evidence for violation in _of_run(item)]
    return found + list(_of_bill(evidence, bill, may_be_repeated))


def repeated(bill: Iterable[BillLine], runs: Sequence[Evidence], *, paid: bool) -> dict[Place, int]:
    """Place → calls beyond one per run of the feature; those paid for, or all that were begun."""
    runs_of = Counter(item.run.feature for item in runs)
    counts = Counter(
        (line.feature, line.stage, line.round, line.turn)
        for line in bill
        if line.feature in runs_of and (line.paid if paid else line.event == "started")
    )
    return {place: count - runs_of[place[0]] for place, count in counts.items() if count > runs_of[place[0]]}


def _of_run(item: Evidence) -> Iterator[Violation]:
    if item.result is None or item.result["status"] != "completed":
        yield Violation(Rule.COMPLETED, f"{item.run.key}: {item.failure or item.result}")
        return
    keys = _task_keys(item)
    yield from _rows(item, keys)
    yield from _deliverables(item, keys)
    yield from _references(item)
    yield from _events(item, keys)
    yield from _turns(item, keys)


def _task_keys(item: Evidence) -> set[str]:
    """Every round of every stage, as Temporal's result counts them."""
    assert item.result is not None
    return {
        f"{item.run.key}/{stage['stage']}-{number + 1}"
        for stage in item.result["stages"]
        for number in range(stage["rounds"])
    }


def _rows(item: Evidence, keys: set[str]) -> Iterator[Violation]:
    if [row["status"] for row in item.run_rows] != ["completed"]:
        yield Violation(Rule.ONE_ROW_PER_TASK, f"{item.run.key}: rows of the run: {item.run_rows}")
    counts = Counter(row["execution_id"] for row in item.tasks)
    wrong = {key: counts[key] for key in keys | set(counts) if counts[key] != (key in keys)}
    if wrong:
        yield Violation(Rule.ONE_ROW_PER_TASK, f"{item.run.key}: rows per task {wrong}")
    for row in item.tasks:
        if row["status"] != "completed" or row["completed_at"] is None:
            yield Violation(Rule.ONE_ROW_PER_TASK, f"{row['execution_id']} is {row['status']}")


def _deliverables(item: Evidence, keys: set[str]) -> Iterator[Violation]:
    counts = Counter(message.task_key for message in item.own_messages)
    wrong = {key: counts[key] for key in keys | set(counts) if counts[key] != (key in keys)}
    if wrong:
        yield Violation(Rule.ONE_DELIVERABLE_PER_TASK, f"messages per task {wrong}")
    stored = {message.task_key: message for message in item.own_messages}
    named = {}
    for row in item.tasks:
        notice = (row["output_data"] or {}).get("metadata", {})
        named[row["execution_id"]] = (notice.get("stream"), notice.get("sequence"), notice.get("sha256"))
        message = stored.get(row["execution_id"])
        if message is None or named[row["execution_id"]] != message.ref or message.sha256 != message.stated_sha256:
            detail = f"{row['execution_id']}: notice {named[row['execution_id']]}, stored {message}"
            yield Violation(Rule.NOTICE_NAMES_MESSAGE, detail)
    assert item.result is not None
    for stage in item.result["stages"]:
        last = named.get(f"{item.run.key}/{stage['stage']}-{stage['rounds']}", (None, None, None))
        if stage["message"] != f"{last[0]}:{last[1]}":
            yield Violation(Rule.NOTICE_NAMES_MESSAGE, f"the result says {stage['message']}, the row {last}")


def _references(item: Evidence) -> Iterator[Violation]:
    own = {message.ref for message in item.own_messages}
    for row in item.tasks:
        for handed in row["input_data"]["inputs"]:
            ref = handed["ref"]
            if (ref["stream"], ref["sequence"], ref["sha256"]) not in own:
                yield Violation(Rule.OWN_REFERENCES, f"{row['execution_id']} was handed {handed}")


def _events(item: Evidence, keys: set[str]) -> Iterator[Violation]:
    counts = Counter((row["event_type"], row["entity_id"], row.get("occurrence", "")) for row in item.events)
    begun = {row["event_id"] for row in item.events if row["event_type"] == "stage.started"}
    ids = {row["event_id"] for row in item.events}
    wanted = {("run.started", item.run.key, "")}
    wanted |= {("turn.completed", row["task_key"], str(row["turn"])) for row in item.turns if row["status"] == "done"}
    wanted |= {("deliverable.published", key, "") for key in keys}
    # What happened after a reset is told again, under another occurrence.
    once = Counter((name, entity) for name, entity, _ in counts)
    ended = {("run.completed", item.run.key), *((name, key) for name in _OF_A_ROUND for key in keys)}
    resets = sum(count for (name, *_), count in counts.items() if name == "run.reset")
    wrong: dict[object, int] = {event: counts[event] for event in counts if counts[event] != 1}
    wrong |= dict.fromkeys(wanted - set(counts), 0)
    wrong |= {event: once[event] for event in ended if not 1 <= once[event] <= 1 + resets}
    strange = {entity for _, entity, _ in counts} - keys - {item.run.key}
    if wrong or strange:
        yield Violation(
            Rule.EVENTS_ONCE, f"times that each event was told: {wrong}; about no task of the run: {strange}"
        )
    for row in item.events:
        cause, name = row.get("causation_id"), f"{row['event_type']} of {row['entity_id']}"
        if row["message"] != row["event_id"]:
            yield Violation(Rule.EVENTS_ONCE, f"{name} is stored as {row['message']}")
        if cause not in ids and (cause is not None or row["event_type"] not in _FIRST):
            yield Violation(Rule.EVENTS_CAUSED, f"{name} is caused by no event")
        if row["source"] != "core" and cause not in begun:
            yield Violation(Rule.EVENTS_CAUSED, f"{name} is not of a round")
    table = {row["event_id"]: row["event_type"] for row in item.projected}
    log = {row["event_id"]: row["event_type"] for row in item.events}
    if table != log:
        yield Violation(
            Rule.EVENTS_PROJECTED, f"in the log or the table alone: {set(log.items()) ^ set(table.items())}"
        )


def _turns(item: Evidence, keys: set[str]) -> Iterator[Violation]:
    numbers: dict[str, list[int]] = {key: [] for key in keys}
    for row in item.turns:
        numbers.setdefault(row["task_key"], []).append(row["turn"])
        if row["status"] != "done":
            yield Violation(Rule.TURNS_DONE, f"turn {row['turn']} of {row['task_key']} is {row['status']}")
    for key, turns in numbers.items():
        if key not in keys or not turns or turns != list(range(1, len(turns) + 1)):
            yield Violation(Rule.TURNS_DONE, f"{key} has the turns {turns}")


def _of_bill(evidence: Sequence[Evidence], bill: Sequence[BillLine], may_be_repeated: int) -> Iterator[Violation]:
    for rule, paid in ((Rule.NOTHING_PAID_TWICE, True), (Rule.NOTHING_BEGUN_TWICE, False)):
        again = repeated(bill, evidence, paid=paid)
        if sum(again.values()) > may_be_repeated:
            yield Violation(rule, f"{may_be_repeated} calls may be made again, made again were {again}")
    paid_at = Counter((line.feature, line.stage, line.round, line.turn) for line in bill if line.paid)
    journalled = Counter(
        (item.run.feature, *_stage_and_round(row["task_key"]), row["turn"]) for item in evidence for row in item.turns
    )
    if missing := {place: count for place, count in journalled.items() if paid_at[place] < count}:
        yield Violation(Rule.TURNS_DONE, f"journalled more often than the provider was paid: {missing}")


def _stage_and_round(task_key: str) -> tuple[str, int]:
    stage, _, number = task_key.rpartition("/")[2].rpartition("-")
    return stage, int(number)
