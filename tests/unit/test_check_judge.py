"""The judge that counts: each criterion on a run where it holds, and on one where it does not."""

from decimal import Decimal

import pytest

from coatcheck.bench.judges.checks import CheckJudge, Limits
from coatcheck.bench.judging import JudgeCase
from schemas.event_payloads import JudgingFailed, Scored
from schemas.judging import CHECK_CRITERIA
from tests.unit.judge_cases import WORK, RunBuilder, good_run


async def rule(case: JudgeCase, criterion: str, limits: Limits | None = None) -> Scored | JudgingFailed | None:
    """The only opinion by one criterion; `None` when it means nothing for the run."""
    opinions = await CheckJudge(criteria=[criterion], limits=limits).judge(case)
    assert len(opinions) <= 1
    return opinions[0] if opinions else None


async def score(case: JudgeCase, criterion: str, limits: Limits | None = None) -> tuple[float, str]:
    """Score and label."""
    opinion = await rule(case, criterion, limits)
    assert isinstance(opinion, Scored), opinion
    return opinion.score, opinion.label


async def test_a_good_run_has_full_scores_by_every_criterion() -> None:
    """Each opinion says which judge, criterion and kind it is."""
    run = good_run()
    run.tool("read_file", "ok", "call-1")
    limits = Limits(max_tokens=1000, max_cost_usd=Decimal(1))
    run.turn(500, "0.1")
    opinions = await CheckJudge(limits=limits).judge(run.case(scenario="er_001"))
    assert [opinion.criterion for opinion in opinions] == list(CHECK_CRITERIA)
    for opinion in opinions:
        assert isinstance(opinion, Scored), opinion
        assert (opinion.judge, opinion.kind, opinion.score) == ("checks", "check", 1), opinion
        assert (opinion.scenario, opinion.model) == ("er_001", None)
        assert opinion.explanation


async def test_what_means_nothing_for_a_run_is_left_out() -> None:
    """No stage, no tool, no test, no budget: that is neither a zero nor a failure."""
    run = RunBuilder()
    run.end("cancelled")
    [opinion] = await CheckJudge().judge(run.case())
    assert isinstance(opinion, Scored)
    assert (opinion.criterion, opinion.score, opinion.label) == ("run-completed", 0, "cancelled")


async def test_a_run_that_has_not_ended_is_not_judged() -> None:
    """It may complete yet: an error and not a zero."""
    run = RunBuilder()
    run.stage("research")
    opinion = await rule(run.case(), "run-completed")
    assert isinstance(opinion, JudgingFailed)
    assert "has not ended" in opinion.error


async def test_the_end_of_a_run_may_be_a_repair_and_may_be_taken_back() -> None:
    """Terminated in Temporal, and later reset and completed."""
    run = RunBuilder()
    run.stage("research")
    run.repaired("cancelled")
    assert await score(run.case(), "run-completed") == (0, "cancelled")
    run.reset()
    assert isinstance(await rule(run.case(), "run-completed"), JudgingFailed)
    run.end()
    assert await score(run.case(), "run-completed") == (1, "completed")


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        ({"passed": 3, "failed": 1}, (0.75, "failed")),
        ({"passed": 0, "failed": 0}, (0, "none")),
        (None, (0, "none")),
    ],
)
async def test_evidence(evidence: dict[str, int] | None, expected: tuple[float, str]) -> None:
    """A pass without a check that ran proves nothing, which is a zero."""
    run = RunBuilder()
    run.stage("qa", "Bad.", verdict="fail", evidence={"passed": 0, "failed": 9})
    run.stage("qa", "All good, trust me.", round_number=2, verdict="pass", evidence=evidence)
    assert await score(run.case(), "evidence-passed") == expected


async def test_acceptance_points_are_the_items_of_the_brief() -> None:
    """Two of them; the reviewer's words do not count as work."""
    run = RunBuilder()
    run.stage("research", "The search forgives any typing error that people make.")
    run.stage("critique", WORK, verdict="approve")
    opinion = await rule(run.case(), "acceptance-mentioned")
    assert isinstance(opinion, Scored)
    assert (opinion.score, opinion.label) == (0.5, "some")
    assert "'Results come twenty to a page.'" in opinion.explanation
    run.stage("backend", "Page of results: twenty each.")
    assert await score(run.case(), "acceptance-mentioned") == (1, "all")


async def test_a_brief_without_a_list_has_its_sentences_as_points() -> None:
    """And one that is not known is an error."""
    run = RunBuilder("Invoices are printed. Reminders are mailed monthly.")
    run.stage("research", "We print invoices... invoices are printed on paper.")
    assert await score(run.case(), "acceptance-mentioned") == (0.5, "some")
    assert isinstance(await rule(run.case(brief=""), "acceptance-mentioned"), JudgingFailed)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(max_tokens=1500), (1, "kept")),
        (Limits(max_tokens=750), (0.5, "exceeded")),
        (Limits(max_tokens=0), (0, "exceeded")),
        (Limits(max_tokens=1500, max_cost_usd=Decimal("0.10")), (0.25, "exceeded")),
    ],
)
async def test_budget_is_of_all_turns(limits: Limits, expected: tuple[float, str]) -> None:
    """Also of those whose round failed; beyond the limit the score falls with the excess."""
    run = good_run()
    run.turn(1000, "0.3")
    run.turn(500, "0.1", turn=2)
    assert await score(run.case(), "budget-kept", limits) == expected


async def test_an_unknown_cost_is_no_cost_of_nothing() -> None:
    """It cannot be held against a limit in dollars, but its tokens can."""
    run = good_run()
    run.turn(1000, None)
    opinion = await rule(run.case(), "budget-kept", Limits(max_cost_usd=Decimal(5)))
    assert isinstance(opinion, JudgingFailed)
    assert "1 of 1 have no known price" in opinion.error
    assert await score(run.case(), "budget-kept", Limits(max_tokens=2000)) == (1, "kept")


async def test_rounds_of_the_last_round_of_each_stage() -> None:
    """One of two stages took one too many."""
    run = RunBuilder()
    for number in (1, 2, 3):
        run.stage("research", f"Round {number}", round_number=number)
    run.stage("backend")
    assert await score(run.case(), "rounds-bounded", Limits(max_rounds=2)) == (0.5, "over")
    assert await score(run.case(), "rounds-bounded", Limits(max_rounds=3)) == (1, "within")


async def test_tools() -> None:
    """The share that returned without an error; which did not is told."""
    run = RunBuilder()
    for call, outcome in enumerate(("ok", "ok", "error", "ok")):
        run.tool("run_checks", outcome, str(call))
    opinion = await rule(run.case(), "tools-succeeded")
    assert isinstance(opinion, Scored)
    assert (opinion.score, opinion.label) == (0.75, "failures")
    assert "run_checks in backend-1" in opinion.explanation


async def test_deliverables_that_are_gone_or_empty() -> None:
    """One of three can be read; the others are named with the reason."""
    run = RunBuilder()
    gone = run.stage("research")
    run.stage("backend", "  \n")
    run.stage("qa", "Fine.", verdict="pass")
    del run.bodies[gone]
    opinion = await rule(run.case(), "deliverables-readable")
    assert isinstance(opinion, Scored)
    assert opinion.score == pytest.approx(1 / 3)
    assert "research: agog_features_research.1 is no longer kept" in opinion.explanation
    assert "backend: it is empty" in opinion.explanation
    # Where the text itself is wanted, there is no score.
    assert isinstance(await rule(run.case(), "acceptance-mentioned"), JudgingFailed)


def test_another_limit_is_another_version() -> None:
    """So that what was told by the old one does not stand for the new one."""
    loose, tight = CheckJudge(limits=Limits(max_tokens=2)), CheckJudge(limits=Limits(max_tokens=1))
    assert loose.version("budget-kept") != tight.version("budget-kept")
    assert loose.version("budget-kept") == CheckJudge(limits=Limits(max_tokens=2)).version("budget-kept")
