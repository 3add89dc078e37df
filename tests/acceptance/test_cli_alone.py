"""The command line without any server: misuse is 2, a dependency that is away is 3, and both come at once."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.acceptance.program import environment
from tests.acceptance.program import installed as coatcheck

BRIEF_LIMIT = 256 * 1024


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "Customer Search", "b"], "error: feature: a slug is"),
        (["run", "a.b", "b"], "hint: try 'a-b'"),
        (["run", "x" * 65, "b"], "this one has 65"),
        (["run", "x", " "], "error: brief: the brief is empty"),
        (["run", "x"], "error: BRIEF is missing"),
        (["run"], "error: FEATURE is missing"),
        (["run", "x", "b", "--gate", "nope"], "the stages are research, critique"),
        (["run", "x", "b", "--timeout-decision", "0"], "error: decision_timeout_seconds: "),
        (["run", "x", "b", "--id", "i" * 161], "error: the workflow id has 161 characters"),
        (["run", "x", "--file", "/nowhere/brief.md"], "error: cannot read /nowhere/brief.md"),
        (["run", "--request", "/nowhere/request.json"], "error: cannot read /nowhere/request.json"),
        (["run", "x", "b", "--frob"], "error: no such option"),
        (["fetch", "agog_features_backend:first"], "is not STREAM:SEQ"),
        (["decide", "x", "qa", "approve"], "either --sha256 or --latest"),
        (["decide", "x", "qa", "approve", "--sha256", "abc"], "at least 8 characters"),
        (["decide", "x", "qa", "perhaps", "--latest"], "is not one of 'approve', 'revise', 'reject'"),
        (["worker", "core", "roy"], "error: a core worker has no agents"),
        (["worker", "agents", "bob"], "error: no agent is called 'bob'"),
        (["frobnicate"], "error: no such command 'frobnicate'"),
        (["db"], "error: missing command"),
    ],
)
def test_misuse_exits_with_2_and_says_what_is_wrong(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    """Before anything connects, in under 2 s of work."""
    outcome = coatcheck(*arguments, data_dir=tmp_path)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert outcome.out == ""


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        (b"", "the request: Invalid JSON"),
        (b"\xff{}", "stdin is not UTF-8"),
        (b'{"feature": "x"}', "brief: Field required"),
        (b'{"feature": "x", "brief": "b", "agents": 5}', "agents: Extra inputs"),
        (b'{"feature": true, "brief": "b"}', "feature: Input should be a valid string"),
    ],
)
def test_a_bad_request_document_is_refused_by_field(tmp_path: Path, document: bytes, complaint: str) -> None:
    """One line that names the field."""
    outcome = coatcheck("run", "--request", "-", data_dir=tmp_path, stdin=document)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert complaint in outcome.err.splitlines()[0]


def test_a_brief_over_the_limit_is_refused_with_its_size(tmp_path: Path) -> None:
    """From stdin as from anywhere."""
    outcome = coatcheck("run", "x", "-", data_dir=tmp_path, stdin=b"a" * (BRIEF_LIMIT + 1))
    assert outcome.code == 2
    assert "brief: the brief is 262,145 bytes" in outcome.err


NOT_STARTED = [
    ["run", "x", "b"],
    ["watch", "x"],
    ["progress", "x"],
    ["decide", "x", "qa", "approve", "--latest"],
    ["pause", "x"],
    ["resume", "x"],
    ["cancel", "x"],
    ["fetch", "agog.deliverables.roy.backend.x"],
    ["deliverables", "x"],
    ["streams"],
    ["events", "x"],
    ["runs"],
    ["doctor"],
    ["db", "migrate"],
]


@pytest.mark.parametrize("arguments", NOT_STARTED, ids=lambda arguments: arguments[0])
def test_without_a_stack_every_command_exits_with_3(tmp_path: Path, arguments: list[str]) -> None:
    """And says how to start one."""
    outcome = coatcheck(*arguments, data_dir=tmp_path)
    assert outcome.code == 3
    assert "coatcheck up" in outcome.err


@pytest.mark.parametrize("arguments", [["run", "x", "b"], ["streams"], ["runs"]], ids=lambda arguments: arguments[0])
def test_servers_that_are_away_are_noticed_soon(tmp_path: Path, arguments: list[str]) -> None:
    """3 s for the connection; the rest is the start of the program on a busy machine."""
    begin = time.monotonic()
    outcome = coatcheck(
        *arguments,
        data_dir=tmp_path,
        TEMPORAL_ADDRESS="127.0.0.1:1",
        NATS_URL="nats://127.0.0.1:1",
        COATCHECK_NATS_ISOLATION="shared",
        DATABASE_URL="postgresql://nobody:nothing@127.0.0.1:1/x",
    )
    assert outcome.code == 3
    assert "does not answer" in outcome.err
    assert "nothing" not in outcome.err.replace("nothing was", "")
    assert time.monotonic() - begin < 15


def test_doctor_reports_every_server_that_is_away(tmp_path: Path) -> None:
    """One dead server hides nothing about the others."""
    outcome = coatcheck("doctor", "--json", data_dir=tmp_path, TEMPORAL_ADDRESS="127.0.0.1:1")
    verdicts = {finding["check"]: finding["verdict"] for finding in outcome.json}
    assert outcome.code == 3
    assert {name for name, verdict in verdicts.items() if verdict == "down"} >= {"temporal", "nats", "postgres"}
    assert verdicts["disk"] == "ok"


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"DATABASE_URL": "garbage"}, "error: PostgreSQL: "),
        ({"COATCHECK_AGENT_SLOTS": "many"}, "error: the environment: agent_slots"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(tmp_path: Path, variables: dict[str, str], complaint: str) -> None:
    """It is neither a crash nor a server that is down."""
    outcome = coatcheck("runs", data_dir=tmp_path, stdin=b"", **variables)
    assert outcome.code == 1
    assert outcome.err.startswith(complaint)


def test_help_names_every_command_and_each_has_an_example(tmp_path: Path) -> None:
    """Also when nothing is typed at all."""
    listing = coatcheck(data_dir=tmp_path)
    assert listing.code == 0
    for command in {arguments[0] for arguments in NOT_STARTED} - {"db"} | {"worker", "nats-config"}:
        assert f"  {command} " in listing.out
        assert "Example: coatcheck" in coatcheck(command, "--help", data_dir=tmp_path).out


def test_help_waits_for_no_driver() -> None:
    """Imports are what makes a command line slow; these take from 50 to 300 ms each."""
    heavy = ["temporalio", "asyncpg", "nats", "rich.console", "pydantic", "pydantic_ai", "psutil", "asyncio"]
    code = f"import sys; from coatcheck.cli import build; build(); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.strip() == "[]"


def test_nats_config_writes_private_files_and_keeps_the_keys(tmp_path: Path) -> None:
    """A second call gives the same accounts."""
    out = tmp_path / "conf"
    first = coatcheck("nats-config", "--out", str(out), data_dir=tmp_path / "data")
    assert first.code == 0
    written = Path(first.out.strip())
    assert written == out / "accounts.conf"
    assert written.stat().st_mode & 0o077 == 0
    text = written.read_text()
    coatcheck("nats-config", "--out", str(out), data_dir=tmp_path / "data")
    assert written.read_text() == text
    assert "ROY" in text
