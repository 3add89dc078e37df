"""`ScriptedJudge`: stands in for a model where none is configured, so that everything around judges can be tried.

It compares words and nothing else; every explanation begins by saying so, and its events are of the kind `check`, so
that nobody takes them for a model's opinion.
"""

from collections.abc import Mapping
from typing import Final

from coatcheck.bench.judges.questions import (
    Answer,
    AskedJudge,
    JudgingError,
    Question,
    fingerprint,
    questions_by,
    read_content,
)
from coatcheck.bench.judges.words import stems
from coatcheck.bench.judging import JudgeCase
from schemas.judging import Criterion

SCRIPTED: Final = "scripted"
_RULES: Final = 1
"""Counts changes of the rule."""


class ScriptedJudge(AskedJudge):
    """Takes the label whose score is next to the share of the brief's words that occur in what is judged.

    Args:
        name: As in its scores.
        criteria: Name → question, whose labels it uses.
    """

    model = SCRIPTED

    def __init__(self, name: str, criteria: Mapping[str, Criterion]) -> None:
        super().__init__(name, tuple(criteria))
        self._criteria = dict(criteria)

    def version(self, criterion: str) -> str:
        """Of the rule and the labels; the question is not read."""
        return fingerprint(_RULES, sorted(self._criteria[criterion].labels.items()))

    def questions(self, case: JudgeCase) -> list[Question]:
        """As a model would be asked."""
        return questions_by(self._criteria, case)

    async def answer(self, case: JudgeCase, question: Question) -> Answer:
        """Compare words.

        Raises:
            JudgingError: the brief is not known, or a deliverable cannot be read.
        """
        wanted = stems(case.brief)
        if not wanted:
            raise JudgingError("the scripted judge compares with the brief, which is not known here")
        stages = [question.stage] if question.stage else case.last_rounds()
        found = wanted & stems("\n".join([await read_content(case, stage) for stage in stages]))
        share = len(found) / len(wanted)
        labels = self._criteria[question.criterion].labels
        label = min(labels, key=lambda name: (abs(labels[name] - share), labels[name], name))
        told = f"Scripted, no model was asked: {len(found)} of {len(wanted)} words of the brief occur."
        return Answer(labels[label], label, told)
