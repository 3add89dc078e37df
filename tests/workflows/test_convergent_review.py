"""Reviews end: by approval, at the limit, or as soon as another round would change nothing; the result says which."""

import pytest

from schemas.notice import Verdict
from schemas.pipeline import DecisionAction, RunStatus
from schemas.review import FindingMark
from tests.workflows.conftest import Behaviour, Pipelines, says
from tests.workflows.test_feature_pipeline import decision, waits
from workflows.feature_pipeline import FeaturePipelineWorkflow


def finds(*found: str) -> Behaviour:
    """A revise with these findings; a lower-case name is a minor one."""
    marks = [str(FindingMark.of(name, is_major=name.isupper(), where="R1", claim=name.lower())) for name in found]
    return says(Verdict.REVISE, findings=marks)


async def test_always_unhappy_reviewer_is_stopped_when_it_repeats_itself(pipelines: Pipelines) -> None:
    """Two rounds with the same findings are enough: a person is asked, and the result keeps the reason."""
    for number in (1, 2, 3, 4):
        pipelines.team.behave("critique", number, finds("A", "B"))
    handle = await pipelines.start()
    progress = await waits(handle)
    assert progress.waiting[0].reason.startswith("the same findings came back (A, B), round 2")
    await handle.execute_update(FeaturePipelineWorkflow.decide, decision(progress, DecisionAction.APPROVE))
    result = await handle.result()
    assert len(pipelines.team.orders["critique"]) == 2
    assert "the same findings came back (A, B)" in result.stages[1].reason
    assert result.stages[1].reason.endswith("approved by ann")


async def test_oscillating_reviewer_is_stopped_when_an_old_finding_returns(pipelines: Pipelines) -> None:
    """A, then B, then A again: the author is sent in circles."""
    for number, found in enumerate(["A", "B", "A", "B"], start=1):
        pipelines.team.behave("critique", number, finds(found))
    pipelines_request = {"pipeline": _with_rounds(10)}
    progress = await waits(await pipelines.start(**pipelines_request))
    assert progress.waiting[0].reason.startswith("findings come and go (A again), round 3")


async def test_only_minor_findings_do_not_hold_the_feature_up(pipelines: Pipelines) -> None:
    """The first round is worth a revision; after that nobody is asked and nothing is done again."""
    pipelines.team.behave("critique", 1, finds("A", "b"))
    pipelines.team.behave("critique", 2, finds("c"))
    result = await pipelines.run()
    assert result.status is RunStatus.COMPLETED
    assert result.stages[1].reason == "only minor findings are left (c)"
    assert len(pipelines.team.orders["research"]) == 2


async def test_new_major_findings_go_on_until_the_limit(pipelines: Pipelines) -> None:
    """A reviewer that always finds something else is bounded by the rounds."""
    for number, found in enumerate("ABC", start=1):
        pipelines.team.behave("critique", number, finds(found))
    progress = await waits(await pipelines.start())
    assert progress.waiting[0].reason.startswith("not accepted after 3 rounds")


async def test_progress_is_allowed_to_take_its_rounds(pipelines: Pipelines) -> None:
    """Fewer findings each time is what revisions are for."""
    pipelines.team.behave("critique", 1, finds("A", "B"))
    pipelines.team.behave("critique", 2, finds("B"))
    result = await pipelines.run()
    assert [stage.reason for stage in result.stages[:2]] == ["", "approve in round 3"]


@pytest.mark.parametrize("rework", [None, ["frontend"]])
async def test_a_pass_against_its_own_evidence_is_none(pipelines: Pipelines, rework: list[str] | None) -> None:
    """Even if an agent's process says pass, failed checks in the same notice send the work back."""
    evidence = {"passed": 1, "failed": 1, "checks": []}
    pipelines.team.behave("qa", 1, says(Verdict.PASS, evidence=evidence, rework=rework))
    result = await pipelines.run()
    assert result.stages[4].reason == "pass in round 2"
    assert len(pipelines.team.orders[(rework or ["backend"])[0]]) == 2


def _with_rounds(count: int) -> dict[str, object]:
    from schemas.pipeline import DEFAULT_PIPELINE  # noqa: PLC0415

    stages = [stage.model_copy(update={"max_rounds": count}) for stage in DEFAULT_PIPELINE.stages]
    return DEFAULT_PIPELINE.model_copy(update={"stages": tuple(stages)}).model_dump(mode="json")
