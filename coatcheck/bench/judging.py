"""What a judge is given and what it has to give back. The judges themselves are in `coatcheck.bench.judges`."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from schemas.deliverable import DeliverableRef, StoredDeliverable
from schemas.event_payloads import JudgingFailed, Scored
from schemas.events import Event, StageCompleted

JudgeKind: TypeAlias = Literal["check", "llm", "human"]
Fetch: TypeAlias = Callable[[DeliverableRef], Awaitable[StoredDeliverable]]
"""Reads a deliverable and checks it against its ticket."""


@dataclass(frozen=True)
class JudgeCase:
    """A run that has ended, as its events tell it; bodies are fetched when a judge wants them."""

    run_key: str
    feature: str
    brief: str
    """Empty when only events are known: they carry its sha256 alone."""
    scenario: str | None
    events: Sequence[Event]
    """Of the run, in the order of the audit log."""
    fetch: Fetch

    def last_rounds(self) -> list[StageCompleted]:
        """The latest completed round of each stage, in the order in which they were completed."""
        latest: dict[str, StageCompleted] = {}
        for event in self.events:
            if isinstance(event, StageCompleted):
                latest.pop(event.payload.stage, None)
                latest[event.payload.stage] = event
        return list(latest.values())


class Judge(Protocol):
    """Gives opinions on a run, one per criterion and thing judged."""

    @property
    def name(self) -> str:
        """As in `Scored.judge`."""

    @property
    def kind(self) -> JudgeKind:
        """As in `Scored.kind`."""

    def version(self, criterion: str) -> str:
        """Another one whenever the judge or its question changed (model, prompt): part of the ids of its events."""

    async def judge(self, case: JudgeCase) -> list[Scored | JudgingFailed]:
        """Judge by every criterion that the judge has; a failure of its own is a `JudgingFailed`, never a score."""
