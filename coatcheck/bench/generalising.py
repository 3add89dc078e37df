"""Makes a scenario of a good run: what it was given, and what happened, without what is only of that run. Pure.

Ids, times, hashes, texts and costs are left out; stages, rounds, verdicts and decisions stay. What overlapped may
overlap in any way. The budget is twice what the run took, the time five times, but half a minute at least.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from coatcheck.bench.recording import Recorded, Recording
from coatcheck.bench.spending import spending
from coatcheck.bench.timeline import seconds
from schemas.events import (
    DecisionMade,
    DecisionRequested,
    Event,
    RunCancelled,
    RunPaused,
    RunResumed,
    StageCompleted,
    StageStarted,
    TurnCompleted,
)
from schemas.pipeline import FeatureRequest
from schemas.rehearsal import split_cues
from schemas.scenario import Scenario

BUDGET_FACTOR: Final = 2
TIME_FACTOR: Final = 5
LEAST_SECONDS: Final = 30.0

Steps = list[dict[str, Any]]


def generalise(recording: Recording, request: FeatureRequest, *, scenario_id: str, title: str) -> Scenario:
    """The scenario that this run, and any like it, keeps.

    Args:
        recording: A run that has ended.
        request: What it was given.
        scenario_id: Of the new scenario.
        title: Of the new scenario.

    Raises:
        ValueError: there is something that no scenario can ask for, such as a cancellation nothing led to.
    """
    told = [
        (message, event)
        for message in recording.messages
        if (event := message.event) is not None and event.event_type.partition(".")[0] in {"run", "stage", "decision"}
    ]
    spent = spending(recording)
    limits = {"tokens": _round_up(spent.tokens * BUDGET_FACTOR), "calls": spent.calls * BUDGET_FACTOR}
    brief, cues = split_cues(request.brief)
    return Scenario.model_validate(
        {
            "id": scenario_id,
            "title": title,
            "input": {
                "request": request.model_copy(update={"brief": brief, "fork": None}).model_dump(
                    mode="json", exclude_defaults=True
                ),
                "rehearsal": [cue.model_dump(mode="json", exclude_defaults=True) for cue in cues],
                "people": _people(recording),
            },
            "expect": {
                "sequence": _steps([event for _, event in told if not isinstance(event, TurnCompleted)]),
                "max_seconds": float(round(max(LEAST_SECONDS, TIME_FACTOR * seconds(recording)))),
                "budget": limits,
            },
        }
    )


def _round_up(tokens: int) -> int:
    """To the next thousand."""
    return -(-tokens // 1000) * 1000


def to_json(scenario: Scenario) -> str:
    """The file's text: what is as always is left out, and a short step is one line."""
    fields = scenario.model_dump(mode="json", exclude_defaults=True)
    fields["input"]["request"] = scenario.input.request.model_dump(mode="json", exclude_defaults=True)
    return _pretty(_bare(fields)) + "\n"


def _bare(value: Any) -> Any:
    """A condition that only says `equals` is written as its value."""
    if isinstance(value, list):
        return [_bare(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"equals"} and not isinstance(value["equals"], dict):
        return value["equals"]
    return {name: _bare(item) for name, item in value.items()}


# --- the sequence ---------------------------------------------------------------------------------------------------


def _steps(events: Sequence[Any]) -> Steps:
    """One step per event; where stages overlapped, one sequence per stage, in any mixture."""
    steps: Steps = []
    together: dict[str, Steps] = {}
    under_way: set[str] = set()
    for event in events:
        stage = getattr(event.payload, "stage", None)
        if stage is None:
            steps += _together(together)
            steps.append(_step(event))
            together, under_way = {}, set()
            continue
        if not under_way and not event.event_type.startswith("stage.accepted"):
            steps += _together(together)
            together = {}
        together.setdefault(stage, []).append(_step(event))
        if isinstance(event, StageStarted | DecisionRequested):
            under_way.add(stage)
        elif event.event_type not in {"stage.parked", "stage.accepted"}:
            under_way.discard(stage)
    return steps + _together(together)


def _together(stages: dict[str, Steps]) -> Steps:
    if len(stages) <= 1:
        return next(iter(stages.values()), [])
    return [{"unordered": [{"steps": steps} if len(steps) > 1 else steps[0] for steps in stages.values()]}]


def _step(event: Event) -> dict[str, Any]:
    step: dict[str, Any] = {"event": event.event_type}
    for name in ("stage", "round"):
        if (value := getattr(event.payload, name, None)) is not None:
            step[name] = value
    if isinstance(event, StageStarted):
        step["agent"] = event.agent
    if where := _where(event):
        step["where"] = where
    return step


def _where(event: Event) -> dict[str, Any]:
    match event:
        case StageCompleted(payload=said):
            facts: dict[str, Any] = {"notice.metadata.verdict": said.notice.metadata.verdict}
            facts["notice.metadata.rework"] = said.notice.metadata.rework
            facts["notice.status"] = said.notice.status if said.notice.status != "complete" else None
        case DecisionMade(payload=said):
            facts = {"action": said.action.value, "by": said.by}
        case _:
            facts = {}
    return {path: value for path, value in facts.items() if value is not None}


# --- the people -----------------------------------------------------------------------------------------------------


def _people(recording: Recording) -> list[dict[str, Any]]:
    """Who did what, and on which event."""
    people: list[dict[str, Any]] = []
    before: Recorded | None = None
    for message in recording.messages:
        event = message.event
        if isinstance(event, DecisionMade):
            said = event.payload
            when = {"event": "decision.requested", "stage": said.stage, "round": said.round}
            people.append({"when": when, "do": said.action.value, "by": said.by, "comment": said.comment})
        elif isinstance(event, RunPaused | RunResumed | RunCancelled):
            do = {RunPaused: "pause", RunResumed: "resume", RunCancelled: "cancel"}[type(event)]
            people.append({"when": _matcher(before, do), "do": do})
        if event is not None and event.event_type.partition(".")[0] in {"run", "stage", "decision"}:
            before = message if event.event_type != "stage.cancelled" else before
    return people


def _matcher(before: Recorded | None, do: str) -> dict[str, Any]:
    """The event after which a person did something that no question asked for."""
    if before is None or before.event is None:
        raise ValueError(f"nothing comes before the {do}")
    place = {name: before.payload[name] for name in ("stage", "round") if before.payload.get(name) is not None}
    return {"event": before.event.event_type, **place}


# --- the text -------------------------------------------------------------------------------------------------------


def _pretty(value: Any, indent: str = "") -> str:
    """JSON with everything on one line that has room there."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or not value or len(indent) + len(line) <= 110:  # noqa: PLR2004
        return line
    deeper = indent + "  "
    if isinstance(value, dict):
        items = [
            f"{deeper}{json.dumps(key, ensure_ascii=False)}: {_pretty(item, deeper)}" for key, item in value.items()
        ]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    return "[\n" + ",\n".join(deeper + _pretty(item, deeper) for item in value) + f"\n{indent}]"
