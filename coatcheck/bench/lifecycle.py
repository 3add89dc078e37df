"""Invariants that follow a run's state from event to event: what each says must be so after those before it. Pure.

The state is that of `workflows.run_state`, worked out once more from its definition and without its code: the judge
must not share a mistake with the judged.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from coatcheck.bench.findings import Violation
from coatcheck.bench.recording import Recorded
from coatcheck.bench.run import Run
from schemas.event_payloads import DecisionMade as Decided
from schemas.event_payloads import DecisionRequested as Question
from schemas.event_payloads import RunPoint
from schemas.event_payloads import StageParked as Parked
from schemas.events import (
    DecisionMade,
    DecisionRequested,
    Event,
    RunCompleted,
    RunExpired,
    RunPaused,
    RunRejected,
    RunRepaired,
    RunResumed,
    StageAccepted,
    StageCancelled,
    StageCompleted,
    StageFailed,
    StageParked,
    StageStarted,
)
from schemas.notice import Notice
from schemas.pipeline import DecisionAction, RunStatus
from schemas.scenario import Invariant

_AFTER_END: Final = (StageFailed, StageCancelled)
"""Told when the run's end is decided, right before it is told."""


@dataclass
class State:
    """What is so after an event."""

    done: set[str] = field(default_factory=set)
    open: list[tuple[str, int]] = field(default_factory=list)
    """Rounds under way, in the order in which they began."""
    rounds: dict[str, int] = field(default_factory=dict)
    """Stage → its latest round."""
    waiting: dict[str, Question] = field(default_factory=dict)
    asked: dict[str, Question] = field(default_factory=dict)
    """What has no answer, also when the run is over."""
    notices: dict[str, Notice] = field(default_factory=dict)
    """Stage → its latest."""
    parked: dict[tuple[str, int], datetime] = field(default_factory=dict)
    """Round → until when it was parked last."""
    is_paused: bool = False
    is_over: bool = False

    def take(self, event: Event) -> None:
        """What the event changes."""
        match event:
            case StageStarted(payload=said):
                self.open.append((said.stage, said.round))
                self.rounds[said.stage] = said.round
                self.done.discard(said.stage)
            case StageCompleted(payload=said):
                self._close(said.stage, said.round)
                self.notices[said.stage] = said.notice
            case StageParked(payload=said):
                self.parked[(said.stage, said.round)] = said.until
            case StageFailed() | StageCancelled():
                self.end()
            case StageAccepted(payload=said):
                self.done.add(said.stage)
            case DecisionRequested(payload=said):
                self.waiting[said.stage] = self.asked[said.stage] = said
            case DecisionMade(payload=said):
                self.waiting.pop(said.stage, None)
                self.asked.pop(said.stage, None)
            case RunPaused() | RunResumed():
                self.is_paused = isinstance(event, RunPaused)
            case _ if event.event_type in _ENDING_TYPES:
                self.end()

    def end(self) -> None:
        """The run is over."""
        self.is_over = True
        self.waiting.clear()
        self.open.clear()

    def _close(self, stage: str, number: int) -> None:
        if (stage, number) in self.open:
            self.open.remove((stage, number))

    def point(self, final: str | None) -> RunPoint:
        """The run's row."""
        status = RunStatus.PAUSED if self.is_paused else RunStatus.RUNNING
        current = next(iter([*self.waiting, *(stage for stage, _ in self.open)]), None)
        return RunPoint(
            status=str(final) if self.is_over else RunStatus.WAITING if self.waiting else status,
            current_step=current,
            completed_steps=len(self.done),
        )


_ENDING_TYPES: Final = frozenset({"run.completed", "run.rejected", "run.expired", "run.cancelled", "run.failed"})


def _states(run: Run) -> Iterator[tuple[Recorded, Event, State]]:
    """Each event that changes the run, with the state right before it; nothing of a run that was reset.

    A reset takes the run back to a point that its events do not name.
    """
    if run.is_reset:
        return
    state = State()
    for item in run.started.inherited if run.started else ():
        state.rounds[item.stage] = state.rounds.get(item.stage, 0) + 1
        state.done.add(item.stage)
        state.notices[item.stage] = item.notice
    for message, event in run.events:
        if event.family == "system":
            yield message, event, state
            state.take(event)


def _broken(rule: Invariant, message: str, at: Recorded) -> Violation:
    return Violation(rule=rule, message=message, sequence=at.sequence)


def rounds(run: Run) -> Iterator[Violation]:
    """Rounds of a stage are numbered 1, 2, 3 …, one at a time; each that starts ends once, and is then accepted."""
    started: dict[tuple[str, int], Recorded] = {}
    ended: set[tuple[str, int]] = set()
    for message, event, state in _states(run):
        match event:
            case StageStarted(payload=said):
                started[(said.stage, said.round)] = message
                faults = _faults_of_start(said.stage, said.round, state)
            case StageCompleted(payload=said) | StageFailed(payload=said) | StageCancelled(payload=said):
                place = (said.stage, said.round)
                faults = ["ends again"] if place in ended else [] if place in started else ["ends and never started"]
                ended.add(place)
            case StageParked(payload=said):
                faults = _faults_of_parking(said, event.occurred_at, state)
            case StageAccepted(payload=said):
                is_next = said.rounds == state.rounds.get(said.stage) and said.stage not in {
                    *state.done,
                    *dict(state.open),
                }
                faults = [] if is_next else [f"is accepted out of turn, after {said.rounds} rounds"]
            case _:
                continue
        for fault in faults:
            yield _broken("rounds", f"{said.stage}, round {run.place(event)[1]}, {fault}", message)
    for (stage, number), message in started.items():
        if run.ending is not None and (stage, number) not in ended:
            yield _broken("rounds", f"{stage}, round {number}, never ends", message)


def _faults_of_parking(said: Parked, now: datetime, state: State) -> list[str]:
    until = state.parked.get((said.stage, said.round))
    faults = [] if (said.stage, said.round) in state.open else ["is parked but not under way"]
    faults += ["is parked while it is parked"] if until is not None and now < until else []
    return faults + (["is parked until a time that is over"] if said.until <= now else [])


def _faults_of_start(stage: str, number: int, state: State) -> list[str]:
    wanted = state.rounds.get(stage, 0) + 1
    faults = [] if number == wanted else [f"starts where round {wanted} is due"]
    return faults + (["starts while another is under way"] if stage in dict(state.open) else [])


def status(run: Run) -> Iterator[Violation]:
    """The run's row that each event carries is what the events up to it make; `paused` and `resumed` take turns."""
    for message, event, state in _states(run):
        if isinstance(event, RunPaused | RunResumed) and state.is_paused is isinstance(event, RunPaused):
            yield _broken("status", f"{event.event_type}, but the run already is", message)
        said = getattr(event.payload, "run", None)
        if not isinstance(said, RunPoint) or isinstance(event, RunRepaired):
            continue
        after = _copy(state)
        after.take(event)
        wanted = after.point(run.final_status)
        if isinstance(event, _AFTER_END) or said != wanted:
            wanted = wanted.model_copy(update={"status": run.final_status or said.status}) if after.is_over else wanted
        if said != wanted:
            told = (
                f"{event.event_type} says the run is {_spelled(said)}; by the events before, it is {_spelled(wanted)}"
            )
            yield _broken("status", told, message)


def _copy(state: State) -> State:
    return State(
        done=set(state.done),
        open=list(state.open),
        rounds=dict(state.rounds),
        waiting=dict(state.waiting),
        asked=dict(state.asked),
        notices=state.notices,
        is_paused=state.is_paused,
        is_over=state.is_over,
    )


def _spelled(point: RunPoint) -> str:
    return f"{point.status} at {point.current_step or 'no stage'} with {point.completed_steps} done"


def acceptance(run: Run) -> Iterator[Violation]:
    """A run is complete when every stage of the pipeline is accepted, and when no round is under way."""
    for message, event, state in _states(run):
        if not isinstance(event, RunCompleted) or run.started is None:
            continue
        if missing := [stage for stage in run.started.stages if stage not in state.done]:
            yield _broken("acceptance", f"the run is complete without {', '.join(missing)}", message)
        if state.open or state.waiting:
            names = ", ".join([*(stage for stage, _ in state.open), *state.waiting])
            yield _broken("acceptance", f"the run is complete while {names} is not", message)


def inputs(run: Run) -> Iterator[Violation]:
    """A round is handed the latest deliverables of the stages that it builds on, and a later one its own last."""
    for message, event, state in _states(run):
        if not isinstance(event, StageStarted):
            continue
        said = event.payload
        for stage, ticket in said.inputs.items():
            notice = state.notices.get(stage)
            if notice is None or notice.ref.to_ticket() != ticket:
                of = "has not delivered" if notice is None else f"last delivered {notice.ref.to_ticket()}"
                yield _broken("inputs", f"{said.stage} is handed {ticket}, but {stage} {of}", message)
        if said.round > 1 and said.stage in state.notices and said.stage not in said.inputs:
            yield _broken("inputs", f"{said.stage}, round {said.round}, is not handed what it did before", message)


def decisions(run: Run) -> Iterator[Violation]:
    """People are asked about the latest round, answer what they were asked, in time, and it is done as they say."""
    answered: dict[str, Decided] = {}
    for message, event, state in _states(run):
        match event:
            case DecisionRequested(payload=said):
                faults = _faults_of_question(said, event.occurred_at, state)
            case DecisionMade(payload=said):
                answered[said.stage] = said
                faults = _faults_of_answer(said, event.occurred_at, state)
            case StageStarted(payload=said) | StageAccepted(payload=said):
                faults = _faults_of_consequence(answered.pop(said.stage, None), event)
            case RunRejected():
                has_rejected = any(item.action is DecisionAction.REJECT for item in answered.values())
                faults = [] if has_rejected else ["the run is rejected, but nobody has"]
            case RunExpired():
                is_over = any(item.deadline <= event.occurred_at for item in state.asked.values())
                faults = [] if is_over else ["the run has expired, but no deadline is over"]
            case _:
                continue
        for fault in faults:
            yield _broken("decisions", fault, message)


def _faults_of_question(said: Question, now: datetime, state: State) -> list[str]:
    notice = state.notices.get(said.stage)
    faults = [f"{said.stage} is asked about while a question is open"] if said.stage in state.waiting else []
    if notice is None or said.round != state.rounds.get(said.stage):
        faults.append(f"{said.stage}, round {said.round}, is asked about and not the latest")
    elif (said.sha256, said.subject) != (notice.metadata.sha256, notice.nats_channel):
        faults.append(f"the question about {said.stage} is not about its deliverable")
    if said.deadline <= now:
        faults.append(f"the deadline for {said.stage} is over before it is asked")
    return faults


def _faults_of_answer(said: Decided, now: datetime, state: State) -> list[str]:
    question = state.waiting.get(said.stage)
    if question is None:
        return [f"{said.by} decides on {said.stage}, which nobody asked"]
    if (said.sha256, said.round) != (question.sha256, question.round):
        return [f"{said.by} decides on another round of {said.stage}"]
    return [f"{said.by} decides on {said.stage} after the deadline"] if now > question.deadline else []


def _faults_of_consequence(decision: Decided | None, event: StageStarted | StageAccepted) -> list[str]:
    if decision is None:
        return []
    wanted = StageAccepted if decision.action is DecisionAction.APPROVE else StageStarted
    if isinstance(event, wanted) and decision.action is not DecisionAction.REJECT:
        return []
    return [f"{decision.by} decided to {decision.action} {decision.stage}, and then there is {event.event_type}"]
