"""The stand-in for a model: deterministic, and plain about what it is."""

from coatcheck.bench.judges.questions import built_in
from coatcheck.bench.judges.scripted import ScriptedJudge
from schemas.event_payloads import JudgingFailed, Scored
from schemas.judging import Criterion
from tests.unit.judge_cases import RunBuilder, good_run


async def test_it_answers_every_built_in_question_and_says_that_it_is_scripted() -> None:
    """One score for the run, one per stage for the other two; the same every time; not of the kind `llm`."""
    judge = ScriptedJudge("scripted", built_in())
    opinions = await judge.judge(good_run().case())
    assert opinions == await judge.judge(good_run().case())
    asked = [(item.criterion, item.stage) for item in opinions]
    stages = ["research", "backend", "qa"]
    assert asked == [("fulfils-brief", None), *(("grounded", name) for name in stages), *(("clear", n) for n in stages)]
    for opinion in opinions:
        assert isinstance(opinion, Scored)
        assert (opinion.kind, opinion.model) == ("check", "scripted")
        assert opinion.explanation.startswith("Scripted, no model was asked: ")
        assert opinion.label in {"met", "partly_met", "not_met"}


async def test_the_label_is_the_one_next_to_the_share() -> None:
    """Of whatever labels the criterion has; half of the words is half of the score."""
    criteria = {"own": Criterion(question="?", about="run", labels={"no": 0, "some": 0.5, "yes": 1})}
    judge = ScriptedJudge("scripted", criteria)
    run = RunBuilder("invoices reminders printing mailing")
    run.stage("research", "invoices and reminders")
    [opinion] = await judge.judge(run.case())
    assert isinstance(opinion, Scored)
    assert (opinion.label, opinion.score) == ("some", 0.5)
    run.stage("research", "printing, mailing, reminders, invoices", round_number=2)
    [opinion] = await judge.judge(run.case())
    assert isinstance(opinion, Scored)
    assert (opinion.label, opinion.score) == ("yes", 1)


async def test_without_a_brief_it_has_failed() -> None:
    """There is nothing to compare with: an error, not a zero."""
    [opinion, *_] = await ScriptedJudge("scripted", built_in()).judge(good_run().case(brief=""))
    assert isinstance(opinion, JudgingFailed)
    assert "not known" in opinion.error
