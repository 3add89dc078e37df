"""A recorded run as the invariants look at it: its parts, put together once."""

from datetime import datetime
from functools import cached_property
from typing import Final, TypeVar

from coatcheck.bench.recording import ENDINGS, Recorded, Recording
from schemas.event_payloads import RunStarted as Start
from schemas.events import (
    Envelope,
    Event,
    RunRepaired,
    RunReset,
    RunStarted,
    StageCancelled,
    StageCompleted,
    StageFailed,
    StageRepaired,
    StageStarted,
    UnknownEvent,
)
from schemas.pipeline import RunStatus
from schemas.scenario import Expect

_ENDED: Final = frozenset(
    {RunStatus.COMPLETED, RunStatus.REJECTED, RunStatus.EXPIRED, RunStatus.CANCELLED, RunStatus.FAILED}
)
_Kind = TypeVar("_Kind", bound=Envelope)


class Run:
    """A recording with what is expected of it."""

    def __init__(self, recording: Recording, expect: Expect) -> None:
        self.recording = recording
        self.expect = expect

    @cached_property
    def events(self) -> list[tuple[Recorded, Event]]:
        """What can be read and is of a registered type."""
        return [
            (message, message.event)
            for message in self.recording.messages
            if message.event is not None and not isinstance(message.event, UnknownEvent)
        ]

    @cached_property
    def started(self) -> Start | None:
        """How the run started."""
        return next((event.payload for _, event in self.recording.of(RunStarted)), None)

    @cached_property
    def agents(self) -> dict[str, str]:
        """Stage → agent."""
        return dict(zip(self.started.stages, self.started.agents, strict=False)) if self.started else {}

    @cached_property
    def ending(self) -> Recorded | None:
        """The first event that ends the run; a repair does when there is no other."""
        for message, event in self.events:
            if event.event_type in ENDINGS:
                return message
        for message, repair in self.recording.of(RunRepaired):
            if repair.payload.run.status in _ENDED:
                return message
        return None

    @cached_property
    def final_status(self) -> str | None:
        """How the run ended."""
        event = self.ending.event if self.ending else None
        if isinstance(event, RunRepaired):
            return event.payload.run.status
        return event.event_type.partition(".")[2] if event else None

    @property
    def is_cut_short(self) -> bool:
        """Whether agents may have been at work when the run ended."""
        return self.final_status != RunStatus.COMPLETED

    @cached_property
    def is_reset(self) -> bool:
        """Whether Temporal took the run back: then rounds happen again, and which ones the events do not say."""
        return bool(self.recording.of(RunReset))

    @cached_property
    def task_types(self) -> dict[str, str]:
        """Task key → task type."""
        return {event.entity_id: event.payload.task_type for _, event in self.recording.of(StageStarted)}

    def by_entity(self, kind: type[_Kind]) -> dict[str, list[tuple[Recorded, _Kind]]]:
        """The events of one type by what they are about."""
        found: dict[str, list[tuple[Recorded, _Kind]]] = {}
        for message, event in self.recording.of(kind):
            found.setdefault(event.entity_id, []).append((message, event))
        return found

    def span(self, entity: str) -> tuple[datetime | None, datetime | None]:
        """When a round began and when it ended."""
        return self._spans.get(entity, (None, None))

    @cached_property
    def _spans(self) -> dict[str, tuple[datetime | None, datetime | None]]:
        spans: dict[str, tuple[datetime | None, datetime | None]] = {}
        for _, event in self.events:
            begun, _ = spans.get(event.entity_id, (None, None))
            match event:
                case StageStarted():
                    spans[event.entity_id] = (begun or event.occurred_at, None)
                case StageCompleted() | StageFailed() | StageCancelled() | StageRepaired():
                    spans[event.entity_id] = (begun, event.occurred_at)
        return spans

    @staticmethod
    def place(event: Event) -> tuple[str | None, int]:
        """The stage and round that the payload names; no stage for what is about the whole run."""
        stage = getattr(event.payload, "stage", None)
        number = getattr(event.payload, "round", None) or getattr(event.payload, "rounds", None) or 0
        return stage, number
