"""`CheckJudge`: what can be counted in a run's events and deliverables. The same run always gets the same score.

A criterion that means nothing for a run (no tools were called, no budget was set) has no score there.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, TypeAlias

from coatcheck.bench.judges.questions import (
    Answer,
    AskedJudge,
    JudgingError,
    Question,
    ending_of,
    fingerprint,
    read_content,
)
from coatcheck.bench.judges.words import points, stems
from coatcheck.bench.judging import JudgeCase
from coatcheck.errors import DeliverableError
from schemas.events import StageCompleted, ToolCompleted, TurnCompleted
from schemas.judging import CHECK_CRITERIA
from schemas.notice import Verdict

MENTIONED: Final = 0.6
"""Share of a point's words that have to occur: whoever writes in words of their own uses most of the request's."""
_RULES: Final = 1
"""Counts changes of the rules."""
_TOLD: Final = 5
"""Names in one explanation."""


@dataclass(frozen=True)
class Limits:
    """What `budget-kept` and `rounds-bounded` hold a run against."""

    max_tokens: int | None = None
    max_cost_usd: Decimal | None = None
    max_rounds: int = 3


Rule: TypeAlias = Callable[[JudgeCase, Limits], Awaitable[Answer]]


class CheckJudge(AskedJudge):
    """Counts.

    Args:
        name: As in its scores.
        criteria: Some of `CHECK_CRITERIA`.
        limits: What a run may take.
    """

    def __init__(
        self, name: str = "checks", criteria: Sequence[str] = CHECK_CRITERIA, *, limits: Limits | None = None
    ) -> None:
        super().__init__(name, criteria)
        self._limits = limits or Limits()

    def version(self, criterion: str) -> str:
        """Of the rules, and of the limits that the criterion looks at."""
        return fingerprint(_RULES, criterion, *(getattr(self._limits, name) for name in _LIMITS.get(criterion, ())))

    def questions(self, case: JudgeCase) -> list[Question]:
        """One per criterion that means something here."""
        return [Question(name) for name in self.criteria if _APPLIES.get(name, _always)(case, self._limits)]

    async def answer(self, case: JudgeCase, question: Question) -> Answer:
        """Count.

        Raises:
            JudgingError: what is to be counted is not known.
        """
        return await _RULES_BY_NAME[question.criterion](case, self._limits)


# --- the run --------------------------------------------------------------------------------------------------------


async def _run_completed(case: JudgeCase, _: Limits) -> Answer:
    if (ending := ending_of(case)) is None:
        raise JudgingError("the run has not ended, as far as its events tell")
    label = ending[1]
    return Answer(float(label == "completed"), label, f"The run is {label}.")


async def _rounds_bounded(case: JudgeCase, limits: Limits) -> Answer:
    rounds = {event.payload.stage: event.payload.round for event in case.last_rounds()}
    over = [f"{stage} took {taken}" for stage, taken in rounds.items() if taken > limits.max_rounds]
    score = 1 - len(over) / len(rounds)
    told = _listed(over) or f"no stage took more than {max(rounds.values())}"
    return Answer(score, "over" if over else "within", f"At most {limits.max_rounds} rounds: {told}.")


async def _budget_kept(case: JudgeCase, limits: Limits) -> Answer:
    spent = [event.payload for event in case.events if isinstance(event, TurnCompleted)]
    notices = [event.payload.notice.metadata for event in case.events if isinstance(event, StageCompleted)]
    taken: Sequence[TurnLike] = [(item.tokens_in, item.tokens_out, item.cost_usd) for item in spent or notices]
    tokens = sum(tokens_in + tokens_out for tokens_in, tokens_out, _ in taken)
    shares, told = [], []
    if limits.max_tokens is not None:
        shares.append(_share(limits.max_tokens, tokens))
        told.append(f"{tokens:,} of {limits.max_tokens:,} tokens")
    if limits.max_cost_usd is not None:
        costs = [cost for _, _, cost in taken if cost is not None]
        if len(costs) < len(taken):
            raise JudgingError(f"the cost is not known: {len(taken) - len(costs)} of {len(taken)} have no known price")
        cost = sum(costs, Decimal(0))
        shares.append(_share(limits.max_cost_usd, cost))
        told.append(f"${cost:.4f} of ${limits.max_cost_usd:.4f}")
    score = min(shares)
    return Answer(score, "kept" if score == 1 else "exceeded", f"The run took {' and '.join(told)}.")


TurnLike: TypeAlias = tuple[int, int, Decimal | None]


async def _tools_succeeded(case: JudgeCase, _: Limits) -> Answer:
    calls = [event.payload for event in case.events if isinstance(event, ToolCompleted)]
    failed = [f"{call.tool} in {call.stage}-{call.round}" for call in calls if call.outcome == "error"]
    told = f"{len(calls) - len(failed)} of {len(calls)} tool calls succeeded"
    why = f"; failed: {_listed(failed)}" if failed else ""
    return Answer(1 - len(failed) / len(calls), "failures" if failed else "succeeded", f"{told}{why}.")


# --- what was delivered ---------------------------------------------------------------------------------------------


async def _deliverables_readable(case: JudgeCase, _: Limits) -> Answer:
    stages = case.last_rounds()
    missing = []
    for stage in stages:
        try:
            stored = await case.fetch(stage.payload.notice.ref)
        except DeliverableError as error:
            missing.append(f"{stage.payload.stage}: {error}")
        else:
            if not stored.deliverable.content.strip():
                missing.append(f"{stage.payload.stage}: it is empty")
    told = _listed(missing) or f"all {len(stages)} can be read and have the sha256 of their notices"
    return Answer(1 - len(missing) / len(stages), "missing" if missing else "readable", f"Deliverables: {told}.")


async def _evidence_passed(case: JudgeCase, _: Limits) -> Answer:
    passed = failed = 0
    names: list[str] = []
    for stage in _tests(case):
        evidence = stage.payload.notice.metadata.evidence
        if evidence is not None:
            passed, failed = passed + evidence.passed, failed + evidence.failed
            names += [line.check for line in evidence.checks if line.exit != 0]
    if not passed + failed:
        return Answer(0, "none", "No declared check ran, so nothing is proven.")
    why = f"; failed: {_listed(names)}" if names else ""
    told = f"{passed} of {passed + failed} declared checks passed{why}."
    return Answer(passed / (passed + failed), "failed" if failed else "passed", told)


async def _acceptance_mentioned(case: JudgeCase, _: Limits) -> Answer:
    wanted = points(case.brief)
    if not wanted:
        raise JudgingError("the brief is not known here: events carry its sha256 alone")
    work = [stage for stage in case.last_rounds() if stage.payload.notice.metadata.verdict is None]
    texts = [await read_content(case, stage) for stage in work]
    known = stems("\n".join(texts))
    missing = [point for point in wanted if not _is_mentioned(point, known)]
    told = f"{len(wanted) - len(missing)} of {len(wanted)} points of the brief are mentioned"
    why = f"; not: {_listed([repr(point) for point in missing])}" if missing else ""
    label = "all" if not missing else "none" if len(missing) == len(wanted) else "some"
    return Answer(1 - len(missing) / len(wanted), label, f"{told}{why}.")


def _is_mentioned(point: str, known: set[str]) -> bool:
    wanted = stems(point)
    return not wanted or len(wanted & known) / len(wanted) >= MENTIONED


def _tests(case: JudgeCase) -> list[StageCompleted]:
    """The last rounds of stages that test."""
    return [
        stage
        for stage in case.last_rounds()
        if stage.payload.notice.metadata.evidence is not None
        or stage.payload.notice.metadata.verdict in (Verdict.PASS, Verdict.FAIL)
    ]


def _share(limit: Decimal | int, taken: Decimal | int) -> float:
    """1 within the limit, and beyond it the less the further."""
    return 1.0 if taken <= limit else float(Decimal(limit) / Decimal(taken))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more


def _always(_: JudgeCase, __: Limits) -> bool:
    return True


_RULES_BY_NAME: Final[Mapping[str, Rule]] = {
    "run-completed": _run_completed,
    "deliverables-readable": _deliverables_readable,
    "evidence-passed": _evidence_passed,
    "acceptance-mentioned": _acceptance_mentioned,
    "budget-kept": _budget_kept,
    "rounds-bounded": _rounds_bounded,
    "tools-succeeded": _tools_succeeded,
}
_APPLIES: Final[Mapping[str, Callable[[JudgeCase, Limits], bool]]] = {
    "deliverables-readable": lambda case, _: bool(case.last_rounds()),
    "evidence-passed": lambda case, _: bool(_tests(case)),
    "acceptance-mentioned": lambda case, _: bool(case.last_rounds()),
    "budget-kept": lambda _, limits: (limits.max_tokens, limits.max_cost_usd) != (None, None),
    "rounds-bounded": lambda case, _: bool(case.last_rounds()),
    "tools-succeeded": lambda case, _: any(isinstance(event, ToolCompleted) for event in case.events),
}
"""Which runs a criterion means something for; all of them unless named here."""
_LIMITS: Final[Mapping[str, tuple[str, ...]]] = {
    "budget-kept": ("max_tokens", "max_cost_usd"),
    "rounds-bounded": ("max_rounds",),
}
"""Which limits a criterion looks at."""
