"""What a judge is asked, one question per criterion and thing; and how answers and failures become opinions."""

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib import resources
from typing import Any, Final

from coatcheck.bench.judging import JudgeCase, JudgeKind
from coatcheck.bench.recording import ENDINGS
from coatcheck.errors import CoatcheckError, DeliverableError, DependencyDownError, StreamMissingError
from coatcheck.redaction import redacted
from schemas.event_payloads import JudgingFailed, Scored
from schemas.events import Event, RunRepaired, RunReset, StageCompleted
from schemas.judging import BUILT_IN_QUESTIONS, Criterion

MAX_TEXT: Final = 2000
"""Characters of an explanation or an error in an event (`schemas.event_payloads`)."""
CONCURRENT_QUESTIONS: Final = 4
"""Of one judge and one run: six stages are judged in two steps, and no provider minds four calls."""

_SHAPES: Final[Mapping[str, dict[str, Any]]] = {
    "fulfils-brief": {"about": "run"},
    "grounded": {"about": "stage", "inputs": True},
    "clear": {"about": "stage"},
}


class JudgingError(CoatcheckError):
    """The judge has no score to give: it could not be asked, or gave no usable answer."""

    code = "judging.failed"


@dataclass
class Spent:
    """What a judge has taken so far."""

    calls: int = 0
    """Answered ones, well or not."""
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: Decimal | None = Decimal(0)
    """`None` when an answer did not say its tokens, or no price is known."""


@dataclass(frozen=True)
class Question:
    """One score that is wanted."""

    criterion: str
    stage: StageCompleted | None = None
    """The accepted round that it is about; `None` for the whole run."""


@dataclass(frozen=True)
class Answer:
    """A score and why."""

    score: float
    label: str
    explanation: str


class AskedJudge(ABC):
    """A judge that answers one question at a time, so that those which were answered before need not be asked again.

    Args:
        name: As in its scores.
        criteria: What it judges by, in the order of its answers.
    """

    kind: JudgeKind = "check"
    model: str | None = None
    concurrency: int = CONCURRENT_QUESTIONS
    spent: Spent | None = None
    """Of a judge that asks a model."""

    def __init__(self, name: str, criteria: Sequence[str]) -> None:
        self.name = name
        self.criteria = tuple(criteria)

    @abstractmethod
    def version(self, criterion: str) -> str:
        """Another one whenever the judge or its question changed."""

    @abstractmethod
    def questions(self, case: JudgeCase) -> list[Question]:
        """Everything that it can say of this run; a criterion that means nothing there has no question."""

    @abstractmethod
    async def answer(self, case: JudgeCase, question: Question) -> Answer:
        """Answer one of its questions.

        Raises:
            JudgingError: it has no score to give.
            CoatcheckError: what it needs cannot be read; counts as the same.
        """

    async def judge(self, case: JudgeCase) -> list[Scored | JudgingFailed]:
        """Answer every question, some at the same time; the opinions are in the order of the questions."""
        slots = asyncio.Semaphore(self.concurrency)

        async def ask(question: Question) -> Scored | JudgingFailed:
            async with slots:
                return await self.opinion(case, question)

        return await asyncio.gather(*(ask(question) for question in self.questions(case)))

    async def opinion(self, case: JudgeCase, question: Question) -> Scored | JudgingFailed:
        """Answer one question; a failure takes the place of the score."""
        about: dict[str, Any] = {
            "judge": self.name,
            "kind": self.kind,
            "criterion": question.criterion,
            "stage": question.stage.payload.stage if question.stage else None,
            "round": question.stage.payload.round if question.stage else None,
            "scenario": case.scenario,
        }
        try:
            answer = await self.answer(case, question)
        except CoatcheckError as error:
            return JudgingFailed(**about, error=clipped(str(error) or type(error).__name__))
        explanation = clipped(answer.explanation)
        return Scored(**about, score=answer.score, label=answer.label, explanation=explanation, model=self.model)


def ending_of(case: JudgeCase) -> tuple[Event, str] | None:
    """The event that ended the run, which may be its repair, and the status it ended in; `None` while it goes on."""
    for event in reversed(case.events):
        if event.event_type in ENDINGS:
            return event, event.event_type.removeprefix("run.")
        if isinstance(event, RunRepaired) and f"run.{event.payload.run.status}" in ENDINGS:
            return event, event.payload.run.status
        if isinstance(event, RunReset | RunRepaired):
            return None
    return None


def clipped(text: str, limit: int = MAX_TEXT) -> str:
    """A text of others as an event may hold it: no secrets, no lone surrogates, at most `limit` characters."""
    text = str(redacted(text)).encode("utf-8", "replace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def fingerprint(*parts: object) -> str:
    """Twelve hex digits that change when any part does."""
    return hashlib.sha256("\0".join(str(part) for part in parts).encode("utf-8", "replace")).hexdigest()[:12]


def built_in() -> dict[str, Criterion]:
    """The questions that are always there."""
    return {name: Criterion(question=prompt_text(f"{name}.md").strip(), **_SHAPES[name]) for name in BUILT_IN_QUESTIONS}


def prompt_text(name: str) -> str:
    """A file of the folder `prompts`."""
    return resources.files("coatcheck.bench.judges").joinpath("prompts", name).read_text(encoding="utf-8")


def questions_by(criteria: Mapping[str, Criterion], case: JudgeCase) -> list[Question]:
    """One question per criterion about the run, one per stage for those about stages."""
    asked: list[Question] = []
    for name, criterion in criteria.items():
        stages = case.last_rounds()
        if criterion.about == "run":
            asked += [Question(name)] if stages else []
        else:
            asked += [Question(name, stage) for stage in stages]
    return asked


async def read_content(case: JudgeCase, stage: StageCompleted) -> str:
    """The text that a stage delivered.

    Raises:
        JudgingError: it cannot be read (any more).
    """
    try:
        stored = await case.fetch(stage.payload.notice.ref)
    except (DeliverableError, DependencyDownError, StreamMissingError) as error:
        raise JudgingError(f"the deliverable of {stage.payload.stage}-{stage.payload.round}: {error}") from error
    return stored.deliverable.content
