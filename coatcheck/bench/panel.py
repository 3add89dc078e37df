"""Judges at work on one run: what was asked before is not asked again, and every opinion becomes an event at once.

An opinion's event is named after the judge, its version, the criterion, what was judged (the sha256 of a deliverable,
or of all of them and how the run ended) and a number that counts repetitions. So

- judging again with the same judges finds the events and asks nobody; it tells nothing twice and costs nothing;
- a changed model, prompt or limit, and a run that went on after a reset, give new events beside the old ones;
- `again` asks once more on purpose, under the next number.

Of several scores by one judge of one thing the last in the audit log counts (`standing`). A failure is an event of its
own and no score: it is asked again, and a score that comes later stands beside it.

A process that dies loses what was being asked at that moment; all else was stored before the next question.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from coatcheck.bench.agreement import compare
from coatcheck.bench.judges.questions import AskedJudge, Question, ending_of, fingerprint
from coatcheck.bench.judging import Judge, JudgeCase
from schemas.event_payloads import AgreementMeasured, JudgingFailed, Scored
from schemas.events import JUDGE, Event, JudgeEvent, JudgeFailed, JudgesCompared, JudgeScored, StageCompleted
from schemas.workflow_ids import event_id

Report: TypeAlias = Callable[[Sequence[JudgeEvent]], Awaitable[None]]
"""Has events stored; idempotent by their ids."""
_SCORED: Final = "judge.scored"


@dataclass
class Hearing:
    """What the judges said of a run."""

    scores: list[JudgeScored] = field(default_factory=list)
    failures: list[JudgeFailed] = field(default_factory=list)
    agreement: list[JudgesCompared] = field(default_factory=list)
    earlier: set[str] = field(default_factory=set)
    """Ids of the scores that were there before."""


async def hear(
    case: JudgeCase,
    judges: Sequence[Judge],
    report: Report,
    *,
    criteria: Collection[str] | None = None,
    again: bool = False,
) -> Hearing:
    """Have a run judged, and all of it told.

    Args:
        case: A run that has ended, with all its events, earlier opinions among them.
        judges: Each is asked by all of its criteria that mean something here.
        report: Where new events go.
        criteria: Only these.
        again: Ask also what was answered before.

    Raises:
        MessagingUnavailableError: an opinion could not be stored; what could be was.
        EventRefusedError: the core worker refuses an opinion, for instance since it does not know the run.
    """
    hearing = Hearing()
    for judge in judges:
        events = await _asked(case, judge, report, criteria, hearing.earlier, again=again)
        hearing.scores += [event for event in events if isinstance(event, JudgeScored)]
        hearing.failures += [event for event in events if isinstance(event, JudgeFailed)]
    measured = compare(((case.run_key, event.payload) for event in hearing.scores), scenario=case.scenario)
    hearing.agreement = [_compared_event(case, item, hearing.scores) for item in measured]
    if hearing.agreement:
        await report(hearing.agreement)
    return hearing


def standing(events: Iterable[Event]) -> list[JudgeScored | JudgeFailed]:
    """The opinions that count, of all that were ever told of a run, in the order in which they were first told.

    Per judge, criterion and round (or the run) the last score; the last failure only where there is no score.
    """
    latest: dict[tuple[str, str, str | None, int | None], JudgeScored | JudgeFailed] = {}
    for event in events:
        if isinstance(event, JudgeScored | JudgeFailed):
            said = event.payload
            place = (said.judge, said.criterion, said.stage, said.round)
            if isinstance(event, JudgeScored) or not isinstance(latest.get(place), JudgeScored):
                latest[place] = event
    return list(latest.values())


async def _asked(
    case: JudgeCase, judge: Judge, report: Report, criteria: Collection[str] | None, earlier: set[str], *, again: bool
) -> list[JudgeScored | JudgeFailed]:
    """The opinions of one judge, in the order of its questions."""
    if not isinstance(judge, AskedJudge):
        opinions = [item for item in await judge.judge(case) if criteria is None or item.criterion in criteria]
        events = [_event(case, judge, item, 0) for item in opinions]
        await report(events)
        return events

    known = {event.event_id: event for event in case.events if isinstance(event, JudgeScored)}
    slots = asyncio.Semaphore(judge.concurrency)

    async def ask(question: Question) -> JudgeScored | JudgeFailed:
        repeat = 0
        while (event := known.get(_identity(case, judge, question, repeat))) is not None:
            if not again and _identity(case, judge, question, repeat + 1) not in known:
                earlier.add(event.event_id)
                return event
            repeat += 1
        async with slots:
            told = _event(case, judge, await judge.opinion(case, question), repeat)
            await report([told])
            return told

    questions = [item for item in judge.questions(case) if criteria is None or item.criterion in criteria]
    # All are waited for whatever becomes of one: an answer that is on its way is paid for.
    done = await asyncio.gather(*(ask(question) for question in questions), return_exceptions=True)
    for result in done:
        if isinstance(result, BaseException):
            raise result
    return [result for result in done if not isinstance(result, BaseException)]


def _event(case: JudgeCase, judge: Judge, opinion: Scored | JudgingFailed, repeat: int) -> JudgeScored | JudgeFailed:
    stage = _stage_of(case, opinion)
    fields = _envelope(case, stage, _occurrence(case, judge, opinion.criterion, stage, repeat))
    if isinstance(opinion, JudgingFailed):
        return JudgeFailed.of(**fields, severity="error", payload=opinion)
    return JudgeScored.of(**fields, payload=opinion)


def _compared_event(case: JudgeCase, measured: AgreementMeasured, scores: Sequence[JudgeScored]) -> JudgesCompared:
    compared = sorted(event.event_id for event in scores if event.payload.criterion == measured.criterion)
    occurrence = f"{measured.criterion}/{measured.measure}/{fingerprint(*compared)}"
    return JudgesCompared.of(**_envelope(case, None, occurrence), payload=measured)


def _envelope(case: JudgeCase, stage: StageCompleted | None, occurrence: str) -> dict[str, Any]:
    ending = ending_of(case)
    cause = stage or (ending[0] if ending else None)
    return {
        "entity_id": stage.entity_id if stage else case.run_key,
        "occurrence": occurrence,
        "source": JUDGE,
        "correlation_id": case.run_key,
        "session_id": case.events[0].session_id if case.events else case.run_key.rpartition("/")[0],
        "causation_id": cause.event_id if cause else None,
        "occurred_at": datetime.now(UTC),
    }


def _identity(case: JudgeCase, judge: Judge, question: Question, repeat: int) -> str:
    """The id that a score would have."""
    entity = question.stage.entity_id if question.stage else case.run_key
    return event_id(entity, _SCORED, _occurrence(case, judge, question.criterion, question.stage, repeat))


def _occurrence(case: JudgeCase, judge: Judge, criterion: str, stage: StageCompleted | None, repeat: int) -> str:
    if stage is not None:
        basis = fingerprint(stage.payload.notice.metadata.sha256)
    else:
        ending = ending_of(case)
        rounds = (event.payload.notice.metadata.sha256 for event in case.last_rounds())
        basis = fingerprint(*rounds, ending[1] if ending else "")
    return f"{judge.name}/{judge.version(criterion)}/{criterion}/{basis}/{repeat}"


def _stage_of(case: JudgeCase, opinion: Scored | JudgingFailed) -> StageCompleted | None:
    if opinion.stage is None:
        return None
    rounds = [event for event in case.last_rounds() if event.payload.stage == opinion.stage]
    return next((event for event in rounds if opinion.round in (None, event.payload.round)), None)
