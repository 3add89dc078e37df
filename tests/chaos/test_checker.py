"""The checker finds each kind of damage: the evidence of a sound run, spoilt in one place at a time."""

import copy
import dataclasses
from collections.abc import Callable

import pytest

from tests.chaos.checker import Rule, violations
from tests.chaos.evidence import Evidence
from tests.chaos.lab import Lab
from tests.providers.bill import BillLine, read_bill


@pytest.fixture(scope="module")
async def sound(lab: Lab) -> tuple[Evidence, list[BillLine]]:
    """Evidence of a run in which nothing went wrong, and the bill."""
    run = await lab.start("sound")
    await lab.ended(run)
    findings = await lab.inspect(run)
    assert findings.violations == []
    return findings.evidence[0], read_bill(lab.provider.bill)


def _lost_result(item: Evidence) -> Evidence:
    return dataclasses.replace(item, result=None)


def _second_message(item: Evidence) -> Evidence:
    again = dataclasses.replace(item.messages[0], sequence=item.messages[0].sequence + 1000)
    return dataclasses.replace(item, messages=[*item.messages, again])


def _lost_message(item: Evidence) -> Evidence:
    return dataclasses.replace(item, messages=item.messages[1:])


def _other_bytes(item: Evidence) -> Evidence:
    first, *rest = item.messages
    return dataclasses.replace(item, messages=[dataclasses.replace(first, sha256="0" * 64), *rest])


def _lost_row(item: Evidence) -> Evidence:
    return dataclasses.replace(item, tasks=item.tasks[:-1])


def _row_still_running(item: Evidence) -> Evidence:
    item.tasks[0]["status"] = "running"
    return item


def _foreign_reference(item: Evidence) -> Evidence:
    item.tasks[-1]["input_data"]["inputs"][0]["ref"]["sequence"] += 1000
    return item


def _event_twice(item: Evidence) -> Evidence:
    return dataclasses.replace(item, events=[*item.events, item.events[0] | {"event_id": "another"}])


def _lost_event(item: Evidence) -> Evidence:
    return dataclasses.replace(item, events=[row for row in item.events if row["event_type"] != "run.completed"])


def _untold_turn(item: Evidence) -> Evidence:
    last = max(row["sequence"] for row in item.events if row["event_type"] == "turn.completed")
    return dataclasses.replace(item, events=[row for row in item.events if row["sequence"] != last])


def _end_twice_after_a_reset_that_was_none(item: Evidence) -> Evidence:
    end = next(row for row in item.events if row["event_type"] == "run.completed")
    return dataclasses.replace(item, events=[*item.events, end | {"occurrence": "@1"}])


def _causeless(item: Evidence) -> Evidence:
    item.events[-1]["causation_id"] = "another"
    return item


def _not_projected(item: Evidence) -> Evidence:
    return dataclasses.replace(item, projected=item.projected[:-1])


def _turn_in_flight(item: Evidence) -> Evidence:
    item.turns[0]["status"] = "in_flight"
    return item


def _lost_turn(item: Evidence) -> Evidence:
    return dataclasses.replace(item, turns=item.turns[1:])


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (_lost_result, Rule.COMPLETED),
        (_second_message, Rule.ONE_DELIVERABLE_PER_TASK),
        (_lost_message, Rule.ONE_DELIVERABLE_PER_TASK),
        (_other_bytes, Rule.NOTICE_NAMES_MESSAGE),
        (_lost_row, Rule.ONE_ROW_PER_TASK),
        (_row_still_running, Rule.ONE_ROW_PER_TASK),
        (_foreign_reference, Rule.OWN_REFERENCES),
        (_event_twice, Rule.EVENTS_ONCE),
        (_lost_event, Rule.EVENTS_ONCE),
        (_untold_turn, Rule.EVENTS_ONCE),
        (_end_twice_after_a_reset_that_was_none, Rule.EVENTS_ONCE),
        (_causeless, Rule.EVENTS_CAUSED),
        (_not_projected, Rule.EVENTS_PROJECTED),
        (_turn_in_flight, Rule.TURNS_DONE),
        (_lost_turn, Rule.TURNS_DONE),
    ],
)
async def test_damage_is_found(
    sound: tuple[Evidence, list[BillLine]], damage: Callable[[Evidence], Evidence], rule: Rule
) -> None:
    """One spoilt thing breaks its rule."""
    evidence, bill = sound
    assert rule in {found.rule for found in violations([damage(copy.deepcopy(evidence))], bill)}


async def test_the_bill_is_judged(sound: tuple[Evidence, list[BillLine]]) -> None:
    """A payment more, a call begun more, and a payment that the provider knows nothing of."""
    evidence, bill = sound
    paid = next(line for line in bill if line.paid and line.feature == "sound")
    begun = next(line for line in bill if line.event == "started" and line.feature == "sound")
    for altered, rule in (
        ([*bill, paid], Rule.NOTHING_PAID_TWICE),
        ([*bill, begun], Rule.NOTHING_BEGUN_TWICE),
        ([line for line in bill if line is not paid], Rule.TURNS_DONE),
    ):
        assert [found.rule for found in violations([evidence], altered)] == [rule]
    assert violations([evidence], [*bill, paid], may_be_repeated=1) == []
