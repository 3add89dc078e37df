"""What one run's events say of its rounds, folded: the part of a row's provenance that only later events know."""

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from schemas import events
from schemas.activities import references
from schemas.deliverable import DeliverableRef
from schemas.event_payloads import RunStarted, Scored
from schemas.events import Event, UnknownEvent
from schemas.notice import Notice
from schemas.pipeline import RunStatus

ENDED: Final = frozenset(
    {RunStatus.COMPLETED, RunStatus.REJECTED, RunStatus.EXPIRED, RunStatus.CANCELLED, RunStatus.FAILED}
)
RUN_ENDS: Final = (
    events.RunCompleted,
    events.RunRejected,
    events.RunExpired,
    events.RunCancelled,
    events.RunFailed,
    events.RunRepaired,
)
ROUND_ENDS: Final = (events.StageCompleted, events.StageFailed, events.StageCancelled, events.StageRepaired)


@dataclass
class Spent:
    """What turns took."""

    turns: int = 0
    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    cost_usd: Decimal | None = Decimal(0)
    """`None`: the price of one is unknown."""
    models: set[str] = field(default_factory=set)

    def add(self, other: "Spent") -> None:
        """Add what others took; one unknown price makes the sum unknown."""
        self.turns += other.turns
        self.calls += other.calls
        self.tokens_in += other.tokens_in
        self.tokens_out += other.tokens_out
        self.tokens_cached += other.tokens_cached
        known = self.cost_usd is not None and other.cost_usd is not None
        self.cost_usd = (self.cost_usd or Decimal(0)) + (other.cost_usd or Decimal(0)) if known else None
        self.models |= other.models

    def as_columns(self) -> dict[str, Any]:
        """The columns of the same names."""
        names = ("turns", "calls", "tokens_in", "tokens_out", "tokens_cached", "cost_usd")
        return {name: getattr(self, name) for name in names}


@dataclass
class RoundFacts:
    """One round of one stage."""

    task_key: str
    stage: str
    number: int
    agent: str | None = None
    task_type: str | None = None
    started_at: datetime | None = None
    inputs: dict[str, str] = field(default_factory=dict)
    """Stage → ticket."""
    comment: str = ""
    status: str = "running"
    ended: int | None = None
    """Sequence of the event that ended it."""
    reason: str = ""
    notice: Notice | None = None
    spent: Spent = field(default_factory=Spent)
    calls: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Tool call id → turn and model."""
    tools: int = 0
    tool_errors: int = 0
    attempts: int = 1
    scores: list[dict[str, Any]] = field(default_factory=list)
    accepted_because: str | None = None
    sequences: list[int] = field(default_factory=list)
    """Of the events that these facts come from, in order; tools and turns are counted, not listed."""


@dataclass
class RunFacts:
    """One run, as far as the events up to some sequence tell."""

    run_key: str
    started: RunStarted | None = None
    started_at: datetime | None = None
    status: str = "running"
    ended: int | None = None
    ended_at: datetime | None = None
    reason: str = ""
    rounds: dict[tuple[str, int], RoundFacts] = field(default_factory=dict)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)

    def add(self, sequence: int, event: Event | UnknownEvent) -> None:
        """Take the next event of the run; what is unknown here changes nothing."""
        match event:
            case events.RunStarted():
                self.started, self.started_at = event.payload, event.occurred_at
                self.sequences.append(sequence)
            case events.DecisionMade(payload=said):
                decision = {"stage": said.stage, "round": said.round, "action": said.action, "comment": said.comment}
                self.decisions.append({**decision, "sequence": sequence})
            case events.JudgeScored(payload=said):
                self._score(sequence, said)
            case events.StageAccepted(payload=said):
                found = self.round_of(said.stage, said.rounds)
                found.accepted_because = said.reason or "accepted"
                found.sequences.append(sequence)
            case _:
                self._point(sequence, event)
                self._in_round(sequence, event)

    def _point(self, sequence: int, event: Event | UnknownEvent) -> None:
        """Whether the run is at its end; a reset run may end more than once."""
        if isinstance(event, UnknownEvent) or (run := getattr(event.payload, "run", None)) is None:
            return
        if run.status in ENDED and isinstance(event, RUN_ENDS):
            self.status, self.ended, self.ended_at = run.status, sequence, event.occurred_at
            self.reason = event.payload.reason
            self.sequences.append(sequence)
        elif run.status not in ENDED:
            self.status, self.ended, self.ended_at, self.reason = run.status, None, None, ""

    def _in_round(self, sequence: int, event: Event | UnknownEvent) -> None:
        said_of: Any = None if isinstance(event, UnknownEvent) else event.payload
        if event.entity_type != "task" or not hasattr(said_of, "round"):
            return
        found = self.round_of(said_of.stage, said_of.round)
        found.agent = found.agent or event.agent
        match event:
            case events.StageStarted(payload=said):
                found.started_at, found.task_type = event.occurred_at, said.task_type
                found.inputs, found.comment = said.inputs, said.comment
                found.sequences.append(sequence)
            case events.StageCompleted(payload=said):
                found.status, found.ended, found.notice = "completed", sequence, said.notice
                found.sequences.append(sequence)
            case events.StageFailed(payload=said) | events.StageCancelled(payload=said):
                found.status = "failed" if isinstance(event, events.StageFailed) else "cancelled"
                found.ended, found.reason = sequence, said.reason
                found.sequences.append(sequence)
            case events.StageRepaired(payload=said):
                found.status, found.ended, found.reason = said.status, sequence, said.reason
                found.sequences.append(sequence)
            case events.TurnCompleted(payload=said):
                spent = Spent(1, said.calls, said.tokens_in, said.tokens_out, said.tokens_cached, said.cost_usd)
                spent.models.add(said.model)
                found.spent.add(spent)
                found.calls |= {call.tool_call_id: (said.turn, said.model) for call in said.tool_calls}
            case events.ToolCompleted(payload=said):
                found.tools += 1
                found.tool_errors += said.outcome == "error"
            case events.AttemptStarted(payload=said):
                found.attempts = max(found.attempts, said.attempt)
            case _:
                pass

    def _score(self, sequence: int, said: Scored) -> None:
        score = {"judge": said.judge, "kind": said.kind, "criterion": said.criterion, "score": said.score}
        score |= {"label": said.label, "model": said.model, "sequence": sequence}
        if said.stage is None or said.round is None:
            self.scores.append(score)
        else:
            self.round_of(said.stage, said.round).scores.append(score)

    def round_of(self, stage: str, number: int) -> RoundFacts:
        """The round; one that nothing was heard of yet is new."""
        key = (stage, number)
        if key not in self.rounds:
            self.rounds[key] = RoundFacts(f"{self.run_key}/{stage}-{number}", stage, number)
        return self.rounds[key]

    def outcome(self, found: RoundFacts) -> str:
        """What became of a round: accepted, sent_back, superseded (of a review), failed, cancelled, or open."""
        if found.status != "completed":
            return "open" if found.status == "running" else found.status
        if (found.stage, found.number + 1) in self.rounds:
            return "superseded" if found.notice and found.notice.metadata.verdict else "sent_back"
        return "accepted" if found.accepted_because is not None else "open"

    def references(self) -> dict[tuple[str, int], DeliverableRef]:
        """Every deliverable that the run's events name: stream and sequence → ticket."""
        named = [item.ref for found in self.rounds.values() for item in references(found.inputs)]
        named += [found.notice.ref for found in self.rounds.values() if found.notice is not None]
        return {(ref.stream, ref.sequence): ref for ref in named}


def mean(scores: list[dict[str, Any]]) -> float | None:
    """Of the judges' scores; `None` without any."""
    return round(sum(item["score"] for item in scores) / len(scores), 6) if scores else None
