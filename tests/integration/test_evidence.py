"""QA can't be talked into done: the declared checks are really run, and a pass without good evidence is a fail."""

from dataclasses import replace
from typing import Any

import pytest

from schemas.evidence import Evidence
from schemas.notice import MAX_NOTICE_BYTES, Notice, Verdict
from schemas.roles import DEFAULT_ROLES
from tests.integration.round_lab import PreparedTurns, RoundLab, submits
from tests.integration.test_rounds import APP, TEST, lab

__all__ = ["lab"]

GOOD = {"name": "tests", "command": ["python", "test_app.py"]}
BAD = {"name": "lint", "command": ["python", "-c", "print('bad style'); raise SystemExit(3)"]}
PASS = submits(verdict="pass")


async def judged(lab: RoundLab, *checks: dict[str, Any], turns: Any = (PASS,), **role: Any) -> Notice:
    """A backend that declares these checks, then QA's round over it."""
    await lab.round("roy", [("write_file", APP), ("write_file", TEST)], submits(checks=list(checks)))
    return await lab.round("billy", *turns, needs=["backend"], **role)


async def evidence_of(lab: RoundLab, notice: Notice) -> Evidence:
    """The whole evidence, as the deliverable keeps it."""
    return Evidence.model_validate((await lab.deliverable(notice)).metadata.model_dump()["evidence"])


async def test_a_pass_on_passing_checks_stands(lab: RoundLab) -> None:
    """Exit code and duration are in the notice, the command and its output in the deliverable."""
    notice = await judged(lab, GOOD)
    assert notice.metadata.verdict is Verdict.PASS
    assert notice.metadata.evidence is not None
    assert (notice.metadata.evidence.passed, notice.metadata.evidence.failed) == (1, 0)
    [result] = (await evidence_of(lab, notice)).results
    assert (result.stage, result.exit_code, result.command) == ("backend", 0, ("python", "test_app.py"))
    assert "| backend/tests |" in (await lab.deliverable(notice)).content


async def test_a_pass_against_a_failing_check_becomes_a_fail(lab: RoundLab) -> None:
    """The stage that owns the check is sent back, and the deliverable says what was claimed and what happened."""
    notice = await judged(lab, GOOD, BAD)
    assert notice.metadata.verdict is Verdict.FAIL
    assert notice.metadata.rework == ["backend"]
    assert "not accepted" in notice.summary
    assert notice.metadata.evidence is not None
    line = notice.metadata.evidence.checks[0]
    assert (line.check, line.exit, line.tail) == ("backend/lint", 3, "bad style")
    stored = await lab.deliverable(notice)
    assert stored.metadata.model_dump()["claimed_verdict"] == "pass"
    assert "was not accepted: 1 of 2 checks did not pass: backend/lint" in stored.content


async def test_a_pass_without_any_evidence_is_a_fail(lab: RoundLab) -> None:
    """Nobody declared a check: the claim stands on nothing."""
    notice = await judged(lab)
    assert (notice.metadata.verdict, notice.metadata.rework) == (Verdict.FAIL, None)
    assert "no other stage has declared a check" in notice.summary


async def test_a_tester_cannot_prove_anything_with_a_check_of_its_own(lab: RoundLab) -> None:
    """`true` passes, and says nothing of the work; declared in the report or run by the tool."""
    own = {"name": "fine", "command": ["true"]}
    notice = await judged(lab, turns=(submits(verdict="pass", checks=[own]),))
    assert notice.metadata.verdict is Verdict.FAIL
    notice = await lab.round("billy", [("run_checks", {"checks": [own]})], PASS, needs=["backend"])
    assert notice.metadata.verdict is Verdict.FAIL


async def test_a_role_without_code_needs_no_evidence(lab: RoundLab) -> None:
    """It is for its team to say so; failing checks count for it all the same."""
    assert (await judged(lab, evidence="if_declared")).metadata.verdict is Verdict.PASS
    assert (await judged(lab, BAD, evidence="if_declared")).metadata.verdict is Verdict.FAIL


async def second_round(lab: RoundLab, *checks: dict[str, Any], calls: Any = (), first: Any = (GOOD, BAD)) -> Notice:
    """The backend failed a check, goes over its work with `calls`, and declares these; QA claims a pass again."""
    assert (await judged(lab, *first)).metadata.verdict is Verdict.FAIL
    return await next_round(lab, *checks, calls=calls)


async def next_round(lab: RoundLab, *checks: dict[str, Any], calls: Any = ()) -> Notice:
    """Another round of the backend, and of QA over it."""
    turns = [calls] if calls else []
    await lab.round("roy", *turns, submits(checks=list(checks)), needs=["qa"])
    return await lab.round("billy", PASS, needs=["backend"])


async def test_a_failed_check_cannot_be_dropped(lab: RoundLab) -> None:
    """It is run all the same, round after round, for the stage that declared it; everybody is told why."""
    notice = await second_round(lab, GOOD)
    for number in (1, 2):
        assert (notice.metadata.verdict, notice.metadata.rework) == (Verdict.FAIL, ["backend"])
        why = f"1 of 2 checks did not pass: backend/lint (dropped; failed in round {number})"
        assert why in notice.summary
        assert f"**The verdict “pass” was not accepted: {why}.**" in (await lab.deliverable(notice)).content
        results = (await evidence_of(lab, notice)).results
        assert [(item.stage, item.name, item.exit_code) for item in results] == [
            ("backend", "tests", 0),
            ("backend", "lint", 3),
        ]
        assert results[1].command == tuple(BAD["command"])
        assert results[1].output_tail == "bad style\n"
        notice = await next_round(lab, GOOD)


async def test_a_tester_is_told_what_was_dropped(lab: RoundLab) -> None:
    """The tool runs it too, so that a tester can say so before anybody has to object."""
    await judged(lab, GOOD, BAD)
    await lab.round("roy", submits(checks=[GOOD]), needs=["qa"])
    model = PreparedTurns([[("run_checks", {})], submits(verdict="fail", rework=["backend"])])
    notice = await lab.attempt(DEFAULT_ROLES["billy"], model, lab.task("qa", ["backend"]))
    told = "\n".join(model.told(2))
    assert "1 of 2 checks passed" in told
    assert "backend/lint: failed, exit code 3" in told
    assert "    backend/lint (dropped; failed in round 1): not declared any more, but run" in told
    assert [item.name for item in (await evidence_of(lab, notice)).failures] == ["lint"]


async def test_a_dropped_check_that_passes_now_is_settled(lab: RoundLab) -> None:
    """Its files were mended: it counts once more, and then it is gone."""
    wants_file = {"name": "notes", "command": ["cat", "notes.md"]}
    mend = [("write_file", {"path": "backend/notes.md", "content": "Notes."})]
    notice = await second_round(lab, GOOD, calls=mend, first=(GOOD, wants_file))
    assert notice.metadata.verdict is Verdict.PASS
    assert [item.name for item in (await evidence_of(lab, notice)).results] == ["tests", "notes"]
    notice = await next_round(lab, GOOD)
    assert [item.name for item in (await evidence_of(lab, notice)).results] == ["tests"]


async def test_another_command_under_the_same_name_takes_its_place(lab: RoundLab) -> None:
    """Commands may be wrong too; but only the same stage can say so."""
    notice = await second_round(lab, GOOD, BAD | {"command": ["true"]})
    assert notice.metadata.verdict is Verdict.PASS
    assert [item.exit_code for item in (await evidence_of(lab, notice)).results] == [0, 0]


async def test_another_stage_cannot_redeclare_a_dropped_check(lab: RoundLab) -> None:
    """Nor the tester: a name belongs to its stage."""
    await judged(lab, GOOD, BAD)
    await lab.round("roy", submits(checks=[GOOD]), needs=["qa"])
    fine = BAD | {"command": ["true"]}
    await lab.round("jen", submits(checks=[fine]), needs=["backend"])
    notice = await lab.round("billy", submits(verdict="pass", checks=[fine]), needs=["frontend"])
    assert (notice.metadata.verdict, notice.metadata.rework) == (Verdict.FAIL, ["backend"])


async def test_a_tester_cannot_drop_a_failed_check_either(lab: RoundLab) -> None:
    """It may say, under the same name, what it had meant."""
    own = {"name": "probe", "command": ["false"]}
    notice = await judged(lab, GOOD, turns=(submits(verdict="pass", checks=[own]),))
    assert notice.metadata.verdict is Verdict.FAIL
    notice = await lab.round("billy", PASS, needs=["backend"])
    assert "qa/probe (dropped; failed in round 1)" in notice.summary
    meant = submits(verdict="pass", checks=[own | {"command": ["true"]}])
    assert (await lab.round("billy", meant, needs=["backend"])).metadata.verdict is Verdict.PASS


async def test_dropped_checks_are_no_evidence_for_a_pass(lab: RoundLab) -> None:
    """A stage that declares nothing any more has nothing that proves its work, even if the old checks pass by now."""
    wants_file = {"name": "notes", "command": ["cat", "notes.md"]}
    mend = [("write_file", {"path": "backend/notes.md", "content": "Notes."})]
    notice = await second_round(lab, calls=mend, first=(wants_file,))
    assert notice.metadata.verdict is Verdict.FAIL
    assert "no other stage has declared a check" in notice.summary


async def test_a_fail_on_passing_checks_stands(lab: RoundLab) -> None:
    """A tester may see what no check does."""
    turns = (submits(verdict="fail", rework=["backend"]),)
    assert (await judged(lab, GOOD, turns=turns)).metadata.verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["python", "-c", "while True: pass"], "timed_out"),
        (["no-such-program"], "not_started"),
        (["python", "-c", "import os; os.kill(os.getpid(), 9)"], "failed, exit code -9"),
    ],
)
async def test_a_check_that_does_not_end_well_is_no_evidence(lab: RoundLab, command: list[str], words: str) -> None:
    """Time-outs, missing programs and deaths are failures, each by its name."""
    notice = await judged(lab, {"name": "odd", "command": command, "timeout_seconds": 1})
    assert notice.metadata.verdict is Verdict.FAIL
    assert words in (await lab.deliverable(notice)).content


async def test_checks_see_the_files_of_all_stages(lab: RoundLab) -> None:
    """The page's check reads the backend beside it."""
    await lab.round("roy", [("write_file", APP)], submits())
    page = {"path": "frontend/index.html", "content": "<p>double</p>"}
    check = {"name": "page", "command": ["python", "-c", "assert 'double' in open('../backend/app.py').read()"]}
    await lab.round("jen", [("write_file", page)], submits(checks=[check]), needs=["backend"])
    notice = await lab.round("billy", PASS, needs=["frontend"])
    assert notice.metadata.verdict is Verdict.PASS


async def test_a_second_attempt_keeps_the_first_evidence(lab: RoundLab) -> None:
    """Checks may end in another way the next time: what was published is what the notice says."""
    role, model = DEFAULT_ROLES["billy"], PreparedTurns([PASS])
    await lab.round("roy", submits(checks=[BAD]))
    task = lab.task("qa", ["backend"])
    first = await lab.attempt(role, model, task)
    await lab.round("roy", submits(checks=[BAD | {"command": ["true"]}]), needs=["backend"])
    passing = task.order.model_copy(update={"inputs": [lab.shelf["backend"]]})
    second = await lab.attempt(role, model, replace(task, order=passing))
    assert (second.ref, second.metadata.verdict) == (first.ref, Verdict.FAIL)
    assert second.metadata.evidence == first.metadata.evidence


async def test_evidence_fits_into_every_notice(lab: RoundLab) -> None:
    """Twenty failing checks with long names and much output."""
    noisy = "print('\\U0001f600\\ufffd' * 40); raise SystemExit(1)"
    checks = [{"name": f"{number:02d} {'x' * 50}", "command": ["python", "-c", noisy]} for number in range(20)]
    notice = await judged(lab, *checks)
    assert len(notice.to_wire()) <= MAX_NOTICE_BYTES
    assert notice.metadata.evidence is not None
    assert notice.metadata.evidence.failed == 20
