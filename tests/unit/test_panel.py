"""Opinions become events: named so that nothing is asked or told twice, and nothing new is lost."""

import asyncio
from collections.abc import Sequence

import pytest

from coatcheck.bench.judges.checks import CheckJudge, Limits
from coatcheck.bench.judges.questions import Answer, AskedJudge, JudgingError, Question
from coatcheck.bench.judging import JudgeCase, JudgeKind
from coatcheck.bench.panel import Hearing, hear, standing
from coatcheck.errors import MessagingUnavailableError
from schemas.event_payloads import JudgingFailed, Scored
from schemas.events import JudgeEvent, JudgeScored, read_event
from tests.unit.judge_cases import RUN, RunBuilder, good_run


class Opinionated(AskedJudge):
    """Gives each stage the next of some scores; `None` is a failure."""

    def __init__(self, name: str, scores: Sequence[float | None], *, version: str = "v1") -> None:
        super().__init__(name, ["clear"])
        self.asked: list[str] = []
        self._scores = iter(scores)
        self._version = version

    def version(self, criterion: str) -> str:
        """As given."""
        return f"{self._version}-{criterion}"

    def questions(self, case: JudgeCase) -> list[Question]:
        """One per stage."""
        return [Question("clear", stage) for stage in case.last_rounds()]

    async def answer(self, case: JudgeCase, question: Question) -> Answer:
        """The next score."""
        assert question.stage is not None
        assert case.run_key == RUN
        self.asked.append(question.stage.payload.stage)
        score = next(self._scores)
        if score is None:
            raise JudgingError("it would not say")
        return Answer(score, {0: "not_met", 1: "met"}.get(score, "partly_met"), "Because.")


class Told:
    """Where events go; what is stored, by id, the first one wins."""

    def __init__(self) -> None:
        self.stored: dict[str, JudgeEvent] = {}
        self.is_away = False

    async def __call__(self, events: Sequence[JudgeEvent]) -> None:
        """Store, as the core worker does after the wire."""
        if self.is_away:
            raise MessagingUnavailableError("nobody answers")
        for event in events:
            again = read_event(event.to_wire())
            assert again == event
            self.stored.setdefault(event.event_id, event)

    def case(self, run: RunBuilder) -> JudgeCase:
        """The run with what was told so far."""
        return run.case(extra=list(self.stored.values()))


def scores(hearing: Hearing) -> list[float]:
    """In their order."""
    return [event.payload.score for event in hearing.scores]


async def test_every_opinion_is_an_event_about_its_round() -> None:
    """Of the judge's identity, caused by the round it is about, or by the run's end."""
    run, told = good_run(), Told()
    hearing = await hear(run.case(scenario="er_001"), [Opinionated("ada", [1, None, 0]), CheckJudge()], told)
    ada = [event for event in hearing.scores if event.payload.judge == "ada"]
    assert [(event.payload.stage, event.payload.score) for event in ada] == [("research", 1), ("qa", 0)]
    assert [event.entity_id for event in ada] == [f"{RUN}/research-1", f"{RUN}/qa-1"]
    [failed] = hearing.failures
    assert failed.payload == JudgingFailed(
        judge="ada",
        kind="check",
        criterion="clear",
        error="it would not say",
        stage="backend",
        round=1,
        scenario="er_001",
    )
    assert failed.severity == "error"
    of_the_run = next(event for event in hearing.scores if event.payload.judge == "checks")
    assert of_the_run.entity_id == of_the_run.correlation_id == RUN
    assert of_the_run.causation_id == run.events[-1].event_id
    assert {event.source for event in told.stored.values()} == {"judge"}
    assert set(told.stored) == {event.event_id for event in [*hearing.scores, *hearing.failures]}


async def test_judging_again_asks_nobody_and_tells_nothing() -> None:
    """But what has failed is asked again; a score then stands beside the failure."""
    run, told = good_run(), Told()
    await hear(told.case(run), [Opinionated("ada", [1, None, 0])], told)
    before = dict(told.stored)
    judge = Opinionated("ada", [0.5])
    hearing = await hear(told.case(run), [judge], told)
    assert judge.asked == ["backend"]
    assert scores(hearing) == [1, 0.5, 0]
    assert len(hearing.earlier) == 2
    new = told.stored.keys() - before.keys()
    assert [type(told.stored[name]) for name in new] == [JudgeScored]
    silent = Opinionated("ada", [])
    assert scores(await hear(told.case(run), [silent], told)) == [1, 0.5, 0]
    assert silent.asked == []


async def test_again_asks_once_more_under_the_next_number() -> None:
    """The later score counts from then on."""
    run, told = good_run(), Told()
    for number, given in enumerate(([1, 1, 1], [0, 0, 0], [0.5, 0.5, 0.5]), 1):
        assert scores(await hear(told.case(run), [Opinionated("ada", given)], told, again=True)) == given
        assert len(told.stored) == 3 * number
    assert scores(await hear(told.case(run), [Opinionated("ada", [])], told)) == [0.5, 0.5, 0.5]


async def test_another_version_or_another_deliverable_is_judged_anew() -> None:
    """A changed prompt, limit or model, and a round that came after a reset."""
    run, told = good_run(), Told()
    await hear(told.case(run), [Opinionated("ada", [1, 1, 1])], told)
    assert scores(await hear(told.case(run), [Opinionated("ada", [0, 0, 0], version="v2")], told)) == [0, 0, 0]
    counted = [await hear(told.case(run), [CheckJudge(limits=Limits(max_tokens=n))], told) for n in (500, 500, 600)]
    assert [len(hearing.earlier) for hearing in counted] == [0, 6, 5]
    for number in (1, 2):  # a reset does the same round again, under the same task key
        run.stage("backend", f"Something else, {number}.", round_number=number)
        judge = Opinionated("ada", [0.5])
        assert sorted(scores(await hear(told.case(run), [judge], told))) == [0.5, 1, 1]
        assert judge.asked == ["backend"]
        assert not (await hear(told.case(run), [CheckJudge(limits=Limits(max_tokens=500))], told)).earlier


async def test_agreement_is_told_and_changes_with_the_scores() -> None:
    """Over what both have scored; the same scores tell it once."""
    run, told = good_run(), Told()
    judges = [Opinionated("ada", [1, 0, 1]), Opinionated("bob", [1, None, 0.5])]
    hearing = await hear(told.case(run), judges, told)
    found = [(event.payload.measure, event.payload.value, event.payload.compared) for event in hearing.agreement]
    assert found == [("cohen_kappa", 0, 2), ("mean_absolute_difference", 0.25, 2)]
    before = len(told.stored)
    await hear(told.case(run), [Opinionated("ada", []), Opinionated("bob", [None])], told)
    assert len(told.stored) == before
    later = await hear(told.case(run), [Opinionated("ada", []), Opinionated("bob", [0])], told)
    assert [event.payload.compared for event in later.agreement] == [3, 3]
    assert len(told.stored) == before + 3


async def test_of_all_opinions_the_last_scores_stand() -> None:
    """A failure stands only where no score ever came."""
    run, told = good_run(), Told()
    for given in ([1, None, None], [0, None, 0.5], [0.5, None, None]):
        await hear(told.case(run), [Opinionated("ada", given)], told, again=True)
    found = standing(told.case(run).events)
    values = [(item.payload.stage, item.payload.score if isinstance(item, JudgeScored) else None) for item in found]
    assert values == [("research", 0.5), ("backend", None), ("qa", 0.5)]


async def test_only_some_criteria() -> None:
    """The others are not even asked."""
    run, told = good_run(), Told()
    hearing = await hear(run.case(), [Opinionated("ada", []), CheckJudge()], told, criteria=["run-completed"])
    assert [event.payload.criterion for event in hearing.scores] == ["run-completed"]


async def test_an_opinion_that_cannot_be_stored_is_an_error_and_loses_no_other() -> None:
    """Each is told before the next question's slot is free."""
    run, told = good_run(), Told()
    told.is_away = True
    with pytest.raises(MessagingUnavailableError):
        await hear(run.case(), [Opinionated("ada", [1, 1, 1])], told)

    class Leaving(Opinionated):
        concurrency = 1

        async def answer(self, case: JudgeCase, question: Question) -> Answer:
            for _ in range(len(self.asked) * 10):  # so that whoever does not wait for it has left
                await asyncio.sleep(0)
            told.is_away = len(self.asked) == 1
            return await super().answer(case, question)

    told.is_away = False
    with pytest.raises(MessagingUnavailableError):
        await hear(run.case(), [Leaving("ada", [1, 0.5, 0])], told)
    assert len(told.stored) == 2  # the first, and the third, which was asked when the server was there again


async def test_a_judge_of_somebody_elses_is_heard_too() -> None:
    """Whatever fits the protocol."""

    class Plain:
        name = "plain"
        kind: JudgeKind = "human"

        def version(self, criterion: str) -> str:
            return criterion

        async def judge(self, case: JudgeCase) -> list[Scored | JudgingFailed]:
            await asyncio.sleep(0)
            assert case.run_key == RUN
            about = {"judge": self.name, "kind": self.kind}
            return [
                Scored(**about, criterion="taste", score=1, stage="qa", round=1),
                Scored(**about, criterion="other", score=0),
            ]

    run, told = good_run(), Told()
    hearing = await hear(run.case(), [Plain()], told, criteria=["taste"])
    assert [event.entity_id for event in hearing.scores] == [f"{RUN}/qa-1"]
    assert len(told.stored) == 1
