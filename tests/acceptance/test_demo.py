"""The demo as a stranger runs it, from an empty folder, and the README's promises."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coatcheck.localstack import load_status
from tests.acceptance.program import Outcome, environment
from tests.acceptance.program import installed as coatcheck
from tests.tls import flags

README = (Path(__file__).parents[2] / "README.md").read_text()
SUBJECT = "agog.deliverables.cynthia.research.customer-search"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with nothing in it; whatever the demo leaves running is stopped at the end."""
    empty = tmp_path_factory.mktemp("demo")
    yield empty
    assert coatcheck("down", data_dir=empty / ".coatcheck").code == 0


@pytest.fixture(scope="module")
def killed(folder: Path) -> Outcome:
    """`coatcheck demo --kill`, from nothing."""
    return coatcheck("demo", "--kill", data_dir=folder / ".coatcheck")


def test_the_run_survives_the_kill_and_nothing_is_paid_again(killed: Outcome) -> None:
    """The worker dies in a model call; the run completes and says what it cost."""
    assert killed.code == 0, killed.err
    assert "with SIGKILL in the middle of" in killed.err
    assert "Model calls that were paid for again: 0" in killed.out
    assert "customer-search: completed, 6 of 6 stages" in killed.out
    assert "written by the scripted author" in killed.out


def test_the_worker_really_died(killed: Outcome, folder: Path) -> None:
    """The supervisor saw a SIGKILL and started another one."""
    assert killed.code == 0
    agents = load_status(folder / ".coatcheck").member("agents")
    assert agents.restarts == 1
    assert agents.last_exit is not None
    assert "SIGKILL" in agents.last_exit


def test_what_the_demo_says_to_try_next_works(killed: Outcome, folder: Path) -> None:
    """Every command it prints, but the one that stops the stack."""
    commands = re.findall(r"^  \S*coatcheck (.+)$", killed.out, re.MULTILINE)
    assert "down" in commands
    for command in commands:
        if command != "down":
            outcome = coatcheck(*command.split(), data_dir=folder / ".coatcheck", cwd=folder)
            assert (outcome.code, bool(outcome.out)) == (0, True), (command, outcome)


def test_a_raw_nats_client_reads_as_observer(killed: Outcome, folder: Path) -> None:
    """The README's own snippet, which knows nothing of our code."""
    assert killed.code == 0
    [snippet] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(Path(sys.executable).parent / "coatcheck", folder / ".venv" / "bin")
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=folder, env=environment(), capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert "'agent': 'cynthia', 'taskType': 'research', 'feature': 'customer-search'" in done.stdout.decode()


def test_the_message_has_the_seeds_shape(killed: Outcome, folder: Path) -> None:
    """Exactly `content` and `metadata` with the seed's fields first (seed 003, Published Message Structure)."""
    assert killed.code == 0
    message = coatcheck("fetch", SUBJECT, "--json", data_dir=folder / ".coatcheck").json["deliverable"]
    assert list(message["metadata"])[:6] == [
        "agent",
        "taskType",
        "feature",
        "timestamp",
        "files_analyzed",
        "duration_minutes",
    ]
    assert message["content"].startswith("> ")


def test_every_notice_is_the_seeds_and_at_most_1_kb(killed: Outcome, folder: Path) -> None:
    """Read from the run itself, through the plain `temporal` program (seed 003, Completion Notice Structure)."""
    assert killed.code == 0
    status = load_status(folder / ".coatcheck")
    assert status.temporal is not None
    run = coatcheck("runs", "--json", data_dir=folder / ".coatcheck").json[0]["temporal_workflow_id"]
    query = ["workflow", "query", "-w", run, "--type", "notices", "--address", status.temporal.address, "-o", "json"]
    query += flags(status.temporal)
    done = subprocess.run([str(status.temporal.cli), *query], capture_output=True, timeout=60, check=True)
    notices = [entry["notice"] for entry in json.loads(done.stdout)["queryResult"][0]]
    assert len(notices) == 10
    for notice in notices:
        assert sorted(notice) == sorted(
            [
                "status",
                "agent",
                "task",
                "nats_channel",
                "summary",
                "complexity",
                "blockers",
                "ready_for_next_stage",
                "completion_time",
                "files_modified",
                "metadata",
            ]
        )
        assert len(json.dumps(notice, ensure_ascii=False).encode()) <= 1024


def test_every_command_in_the_readme_exists() -> None:
    """`coatcheck --help` knows each of them."""
    known = coatcheck("--help", data_dir=Path("unused")).out
    for command in set(re.findall(r"coatcheck ([a-z][a-z-]+)", README)):
        assert re.search(rf"^\W*{command}\b", known, re.MULTILINE), command
