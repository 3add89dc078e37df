"""When a run did what, from its events: the spans of the picture. Pure."""

from datetime import datetime, timedelta
from typing import Final

from coatcheck.bench.recording import ENDINGS, Recording
from coatcheck.bench.results import Lane, Span, SpanKind
from schemas.events import (
    DecisionRequested,
    Event,
    RunPaused,
    RunStarted,
    StageParked,
    StageStarted,
    TurnCompleted,
)

RUN: Final = "run"
"""The lane of what concerns all stages."""


_CLOSES: Final[dict[str, tuple[SpanKind, SpanKind]]] = {
    "stage.completed": ("open", "completed"),
    "stage.failed": ("open", "failed"),
    "stage.repaired": ("open", "failed"),
    "stage.cancelled": ("open", "cancelled"),
    "decision.made": ("waiting", "waiting"),
    "run.resumed": ("paused", "paused"),
}
"""Event type → the span that it ends, and what that is then."""


class _Clock:
    def __init__(self, start: datetime) -> None:
        self._start = start

    def at(self, moment: datetime) -> float:
        return round((moment - self._start) / timedelta(seconds=1), 3)


def lanes(recording: Recording) -> list[Lane]:
    """The run's own lane, then the stages in the order of the pipeline."""
    for _, event in recording.of(RunStarted):
        pairs = zip(event.payload.stages, event.payload.agents, strict=False)
        return [Lane(name=RUN), *(Lane(name=stage, agent=agent) for stage, agent in pairs)]
    stages = {event.payload.stage: str(event.agent) for _, event in recording.of(StageStarted)}
    return [Lane(name=RUN), *(Lane(name=stage, agent=agent) for stage, agent in stages.items())]


def spans(recording: Recording) -> list[Span]:
    """What took time, in the order in which it began; what has not ended goes on to the last event."""
    events = recording.events
    if not events:
        return []
    clock = _Clock(min(event.occurred_at for event in events))
    found: list[Span] = []
    begun: dict[tuple[str, SpanKind], tuple[float, str]] = {}
    for event in events:
        now, lane = clock.at(event.occurred_at), getattr(event.payload, "stage", RUN)
        match event:
            case StageStarted(payload=said):
                begun[lane, "open"] = (now, f"round {said.round}")
            case DecisionRequested(payload=said):
                begun[lane, "waiting"] = (now, said.reason)
            case RunPaused():
                begun[lane, "paused"] = (now, "paused")
            case StageParked(payload=said):
                found.append(Span(lane=lane, kind="parked", start=now, end=clock.at(said.until), label="parked"))
            case TurnCompleted(payload=said):
                start = max(round(now - said.seconds, 3), 0.0)
                found.append(Span(lane=lane, kind="turn", start=start, end=now, label=f"turn {said.turn}"))
            case _ if event.event_type in _CLOSES:
                opened, kind = _CLOSES[event.event_type]
                if (place := (lane, opened)) in begun:
                    start, label = begun.pop(place)
                    found.append(Span(lane=lane, kind=kind, start=start, end=now, label=label))
    end = clock.at(_last(events))
    found += [
        Span(lane=lane, kind=kind, start=start, end=max(start, end), label=label)
        for (lane, kind), (start, label) in begun.items()
    ]
    return sorted(found, key=lambda span: (span.start, span.kind == "turn"))


def seconds(recording: Recording) -> float:
    """From the first event to the run's end, or to the last event."""
    events = recording.events
    return _Clock(min(event.occurred_at for event in events)).at(_last(events)) if events else 0.0


def _last(events: list[Event]) -> datetime:
    ends = [event.occurred_at for event in events if event.event_type in ENDINGS]
    return ends[0] if ends else max(event.occurred_at for event in events)
