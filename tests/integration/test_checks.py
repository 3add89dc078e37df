"""Checks over the files of several stages, run for real."""

import asyncio
from pathlib import Path

import psutil
import pytest

from coatcheck.errors import ArtifactInvalidError
from coatcheck.workspace.checks import CheckRunner, StageFiles
from coatcheck.workspace.sandbox import Sandbox
from schemas.config import CheckLimits
from schemas.evidence import Check, CheckOutcome

TESTS = b"""
import unittest
from app import double
class Doubling(unittest.TestCase):
    def test_double(self):
        self.assertEqual(double(2), 4)
"""


def check(name: str, *command: str, timeout_seconds: int = 60) -> Check:
    """A check as a deliverable declares it."""
    return Check(name=name, command=command, timeout_seconds=timeout_seconds)


UNIT_TESTS = check("unit tests", "python", "-m", "unittest")


@pytest.fixture
def runner(tmp_path: Path) -> CheckRunner:
    """At the best level that there is, in the folder `workspaces`."""
    return CheckRunner(Sandbox(CheckLimits()), tmp_path / "workspaces")


def left(tmp_path: Path) -> list[Path]:
    """What is in the folder of workspaces."""
    return list((tmp_path / "workspaces").iterdir())


async def test_evidence_tells_a_bug_from_its_repair(runner: CheckRunner, tmp_path: Path) -> None:
    """The same tests fail on the one and pass on the other; nothing of the first run is there in the second."""
    broken = {"app.py": b"def double(n): return n + 1", "test_app.py": TESTS}
    evidence = await runner.run([StageFiles("backend", broken, [UNIT_TESTS])])
    (result,) = evidence.results
    assert not evidence.holds
    assert (result.stage, result.name, result.command) == ("backend", "unit tests", UNIT_TESTS.command)
    assert (result.outcome, result.exit_code) == (CheckOutcome.FAILED, 1)
    assert "AssertionError: 3 != 4" in result.output_tail
    repaired = {**broken, "app.py": b"def double(n): return n * 2"}
    evidence = await runner.run([StageFiles("backend", repaired, [UNIT_TESTS])])
    assert evidence.holds
    assert evidence.results[0].seconds > 0
    assert left(tmp_path) == []


async def test_each_check_runs_in_its_stage(runner: CheckRunner) -> None:
    """In order, with the files of all stages beside it, those of stages without checks too."""
    stages = [
        StageFiles("research", {"notes/a.txt": b"notes"}, []),
        StageFiles("backend", {"b.txt": b"back"}, [check("one", "cat", "b.txt"), check("two", "touch", "new")]),
        StageFiles("frontend", {}, [check("three", "cat", "../backend/b.txt", "../research/notes/a.txt")]),
    ]
    evidence = await runner.run(stages)
    assert [(item.stage, item.name) for item in evidence.results] == [
        ("backend", "one"),
        ("backend", "two"),
        ("frontend", "three"),
    ]
    assert [item.output_tail for item in evidence.results] == ["back", "", "backnotes"]


async def test_no_check_touches_what_another_stage_is_judged_by(runner: CheckRunner, tmp_path: Path) -> None:
    """A stage's own later checks see what it wrote; the others find every file as it was delivered."""
    forge = "for stage in backend frontend; do echo forged > ../$stage/a.txt; touch ../$stage/new; done"
    show = check("show", "sh", "-c", "cat a.txt ../*/a.txt; ls ../*")
    stages = [
        StageFiles("backend", {"a.txt": b"back "}, [check("forge", "sh", "-c", forge), show]),
        StageFiles("frontend", {"a.txt": b"front "}, [show, check("forge", "sh", "-c", forge)]),
        StageFiles("qa", {"a.txt": b"qa "}, [show]),
    ]
    _, own, frontend, _, qa = (item.output_tail for item in (await runner.run(stages)).results)
    assert own.count("forged") == 3
    assert own.count("new") == 2
    listing = "".join(f"../{stage}:\na.txt\n" + "\n" * (stage != "qa") for stage in ("backend", "frontend", "qa"))
    assert frontend == f"front back front qa {listing}"
    assert qa == f"qa back front qa {listing}"
    assert left(tmp_path) == []


async def test_withdrawn_checks_find_the_files_as_they_were_delivered(runner: CheckRunner) -> None:
    """They run last, and what the declared checks of the same stage have done makes them neither pass nor fail."""
    files = {"app.py": b"def double(n): return n + 1", "test_app.py": TESTS}
    repair = check("repair", "sh", "-c", "echo 'def double(n): return n * 2' > app.py")
    evidence = await runner.run(
        [
            StageFiles("backend", files, [repair], withdrawn=[UNIT_TESTS]),
            StageFiles("frontend", {}, [check("page", "true")]),
        ]
    )
    assert [item.name for item in evidence.results] == ["repair", "page", "unit tests"]
    assert [item.stage for item in evidence.failures] == ["backend"]


async def test_a_stage_whose_only_check_is_withdrawn_is_checked(runner: CheckRunner) -> None:
    """Declaring nothing at all does not help."""
    evidence = await runner.run([StageFiles("backend", {}, [], withdrawn=[check("lint", "false")])])
    assert [item.name for item in evidence.failures] == ["lint"]


async def test_one_failure_does_not_stop_the_others(runner: CheckRunner) -> None:
    """Every declared check has its result."""
    checks = [
        check("a", "false"),
        check("b", "no-such"),
        check("c", "sleep", "60", timeout_seconds=1),
        check("d", "true"),
    ]
    evidence = await runner.run([StageFiles("backend", {}, checks)])
    outcomes = [CheckOutcome.FAILED, CheckOutcome.NOT_STARTED, CheckOutcome.TIMED_OUT, CheckOutcome.PASSED]
    assert [item.outcome for item in evidence.results] == outcomes
    assert [item.exit_code for item in evidence.results] == [1, None, -9, 0]
    assert not evidence.holds


@pytest.mark.parametrize("stages", [[], [StageFiles("backend", {"a": b""}, [])]])
async def test_no_checks_are_no_evidence(runner: CheckRunner, stages: list[StageFiles]) -> None:
    """Nothing ran, so nothing holds."""
    evidence = await runner.run(stages)
    assert evidence.results == []
    assert not evidence.holds


async def test_bad_files_are_refused(runner: CheckRunner, tmp_path: Path) -> None:
    """Before anything runs; nothing is left."""
    with pytest.raises(ArtifactInvalidError):
        await runner.run([StageFiles("backend", {"../out": b""}, [check("a", "touch", str(tmp_path / "ran"))])])
    assert left(tmp_path) == []
    assert not (tmp_path / "ran").exists()


async def test_a_cancelled_run_leaves_nothing(runner: CheckRunner, tmp_path: Path) -> None:
    """Neither processes nor files, also such as cannot be removed without changing them."""
    script = "mkdir -p deep/er; touch deep/er/x; chmod 0 deep/er deep; touch ready; sleep 600"
    before = psutil.Process().children(recursive=True)
    running = asyncio.create_task(runner.run([StageFiles("backend", {}, [check("a", "sh", "-c", script)])]))
    while not list(tmp_path.rglob("ready")):
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert left(tmp_path) == []
    assert set(psutil.Process().children(recursive=True)) <= set(before)
