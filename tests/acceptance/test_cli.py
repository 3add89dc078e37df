"""The command line on a whole stack: start, watch, decide, read what was delivered."""

import hashlib
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coatcheck.localstack import LocalStack
from schemas.streams import AGENTS
from tests.acceptance.program import COATCHECK, Outcome, coatcheck, environment
from tests.tls import flags

Cli = Callable[..., Outcome]
STAGES = ["research", "critique", "backend", "frontend", "qa", "statistics"]
PATIENCE_SECONDS = 60


def wait_for(cli: Cli, run: str, status: str) -> dict[str, Any]:
    """Ask for the progress until the run has that status; a fresh run may not have begun."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        outcome = cli("progress", run, "--json")
        if outcome.code == 0 and outcome.json["status"] == status:
            progress: dict[str, Any] = outcome.json
            return progress
        assert time.monotonic() < deadline, outcome


@pytest.fixture(scope="module")
def delivered(stack: LocalStack) -> Outcome:
    """A run of `invoice-export` to its end."""
    return coatcheck("run", "invoice-export", "Export invoices as CSV", "--wait", data_dir=stack.config.data_dir)


def test_a_run_is_followed_to_its_end(delivered: Outcome) -> None:
    """One line per change on stderr, the final table on stdout, exit code 0."""
    assert delivered.code == 0, delivered.err
    rows = [line.split() for line in delivered.out.splitlines()[1:7]]
    assert [row[0] for row in rows] == STAGES
    assert {row[2] for row in rows} == {"done"}
    assert "invoice-export: completed, 6 of 6 stages" in delivered.out
    # Rounds that are shorter than the pause between two looks may be missed; the last of each stage never is.
    assert "critique: round 2 done in" in delivered.err
    assert "statistics: round 1 done in" in delivered.err


def test_a_deliverable_is_fetched_by_subject_and_by_number(delivered: Outcome, cli: Cli) -> None:
    """The same message: its markdown, or all of it with its ticket."""
    assert delivered.code == 0
    subject = "agog.deliverables.roy.backend.invoice-export"
    whole = cli("fetch", subject, "--json").json
    assert whole["subject"] == subject
    assert whole["deliverable"]["metadata"]["taskType"] == "backend"
    assert whole["task_key"].startswith("feature/invoice-export/")
    number = f"{whole['ref']['stream']}:{whole['ref']['sequence']}"
    text = cli("fetch", number)
    assert text.code == 0
    assert text.out.rstrip("\n") == whole["deliverable"]["content"].rstrip("\n")
    assert cli("fetch", number, "--json").json == whole


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ("agog.deliverables.roy.backend.never-made", "nothing is stored under"),
        ("agog.deliverables.roy.backend.*", "is not the subject of a deliverable"),
        ("agog_features_backend:9999", "agog_features_backend ends before 9999"),
        ("agog_secrets:1", "is no stream of deliverables"),
    ],
)
def test_what_cannot_be_fetched_is_said(cli: Cli, message: str, complaint: str) -> None:
    """One line, exit code 1."""
    outcome = cli("fetch", message)
    assert (outcome.code, outcome.out) == (1, "")
    assert complaint in outcome.err


def test_deliverables_are_listed_with_what_fetch_takes(delivered: Outcome, cli: Cli) -> None:
    """Every round of every stage, and the sha256 that the stream has."""
    assert delivered.code == 0
    rows = cli("deliverables", "invoice-export", "--json").json
    assert {(row["stage"], row["round"]) for row in rows} >= {("research", 1), ("research", 2), ("qa", 1)}
    table = cli("deliverables", "invoice-export").out
    last = rows[-1]
    assert f"{last['ref']['stream']}:{last['ref']['sequence']}" in table
    assert last["ref"]["sha256"][:12] in table
    assert cli("deliverables", "never-made").code == 1


def test_streams_are_as_declared(delivered: Outcome, cli: Cli) -> None:
    """Six, the buckets and the logs, without drift."""
    assert delivered.code == 0
    outcome = cli("streams", "--check", "--json")
    assert outcome.code == 0
    streams, buckets = outcome.json[: len(STAGES)], outcome.json[len(STAGES) :]
    assert [status["name"] for status in streams] == [f"agog_features_{stage}" for stage in STAGES]
    assert all(status["messages"] for status in streams)
    assert [status["name"] for status in buckets] == [
        "KV_agent_state",
        "KV_market_prices",
        *(f"OBJ_artifacts_{agent}" for agent in AGENTS),
        "audit_log",
        "dead_letters",
        "mcp_requests",
        "mcp_results",
    ]


def test_events_and_runs_tell_what_happened(delivered: Outcome, cli: Cli) -> None:
    """In order, under each of the run's names."""
    assert delivered.code == 0
    record = next(row for row in cli("runs", "--json").json if row["feature"] == "invoice-export")
    assert record["status"] == "completed"
    events = [json.loads(line) for line in cli("events", record["run_key"], "--json").out.splitlines()]
    assert [events[0]["event_type"], events[-1]["event_type"]] == ["run.started", "run.completed"]
    followed = cli("events", "invoice-export", "--follow")
    assert followed.code == 0
    assert len(followed.out.splitlines()) == len(events) + 1
    assert cli("events", "feature/invoice-export").out == followed.out
    sequences = [event["sequence"] for event in events]
    assert sequences == sorted(set(sequences))
    types = {event["event_type"] for event in events}
    assert types >= {"stage.started", "stage.completed", "turn.completed", "deliverable.published"}
    later = cli("events", "--from-sequence", str(sequences[5]), "show", "--json").err
    assert "no run of 'show'" in later  # an option first: what follows is the run
    later = cli("events", "show", "invoice-export", "--from-sequence", str(sequences[5]), "--json").out
    assert [json.loads(line) for line in later.splitlines()] == events[5:]
    for chosen in (["stage.completed"], ["stage.completed", "run.started"]):
        options = [word for name in chosen for word in ("--type", name)]
        lines = cli("events", "invoice-export", *options, "--json").out.splitlines()
        assert [json.loads(line) for line in lines] == [event for event in events if event["event_type"] in chosen]
    mistake = cli("events", "invoice-export", "--type", "stage.complete")
    assert (mistake.code, mistake.out) == (2, "")
    assert "there is no event type 'stage.complete'" in mistake.err


def test_events_are_followed_live_until_the_run_ends(cli: Cli) -> None:
    """The same lines as read afterwards: nothing left out, nothing twice."""
    started = cli("run", "followed-live", "Follow this", "--json").json
    followed = cli("events", started["run_key"], "--follow", "--json")
    assert followed.code == 0
    assert "run.completed" in followed.out
    assert cli("events", "followed-live", "--json").out == followed.out


def test_the_table_of_events_is_rebuilt_from_the_log(delivered: Outcome, cli: Cli) -> None:
    """As many rows as before, and nothing is wrong afterwards."""
    assert delivered.code == 0
    wait_for_table(cli)
    rebuilt = cli("events", "rebuild", "--json").json
    assert 0 < rebuilt["removed"] <= rebuilt["read"]
    wait_for_table(cli)
    assert cli("events", "dead", "--json").json == []
    assert cli("events", "dead").out.startswith("NUMBER  WHEN")
    assert "dead letters             0" in cli("events", "status").out


def wait_for_table(cli: Cli) -> None:
    """Until the table has caught up with the audit log."""
    deadline = time.monotonic() + 30
    while (status := cli("events", "status", "--json")).json["lag"]:
        assert time.monotonic() < deadline
    assert status.code == 0


def test_a_closed_run_is_reported_and_cannot_be_steered(delivered: Outcome, cli: Cli) -> None:
    """`watch` gives the result; pause, cancel and decide say that it is over."""
    assert delivered.code == 0
    result = cli("watch", "invoice-export", "--json")
    assert (result.code, result.json["status"]) == (0, "completed")
    for arguments in (["pause"], ["resume"], ["cancel"]):
        outcome = cli(*arguments, "invoice-export")
        assert outcome.code == 1
        assert "feature/invoice-export has ended (completed)" in outcome.err
    assert "nothing waits for a decision" in cli("decide", "invoice-export", "qa", "approve", "--latest").err


def test_a_person_decides_on_exactly_what_was_reviewed(cli: Cli) -> None:
    """A prefix of the sha256 is enough; another sha256 or stage is refused; a second run is refused meanwhile."""
    started = cli("run", "gated", "--file", "-", "--gate", "critique", "--json", stdin=b"Decide on this")
    assert started.json["workflow_id"] == "feature/gated"
    twin = cli("run", "gated", "again")
    assert twin.code == 1
    assert "feature/gated is already running" in twin.err
    [waiting] = wait_for(cli, "gated", "waiting")["waiting"]
    fetched = cli("fetch", waiting["subject"], "--json").json
    assert fetched["ref"]["sha256"] == waiting["sha256"]
    prefix = waiting["sha256"][:8]
    other = hashlib.sha256(b"another").hexdigest()
    assert cli("decide", "gated", "critique", "approve", "--sha256", other).code == 1
    assert "critique waits for a decision, not qa" in cli("decide", "gated", "qa", "approve", "--sha256", prefix).err
    approved = cli("decide", started.json["run_key"], "critique", "approve", "--sha256", prefix, "--by", "Ada")
    assert approved.code == 0
    assert approved.err == "approve recorded for critique\n"
    assert cli("watch", "gated").code == 0
    made = [line for line in cli("events", "gated", "--json").out.splitlines() if "decision.made" in line]
    assert [json.loads(line)["payload"]["by"] for line in made] == ["Ada"]


def test_a_rejected_run_exits_with_1(cli: Cli) -> None:
    """The reason is in the last line."""
    cli("run", "refused", "Nobody wants it", "--gate", "research")
    wait_for(cli, "refused", "waiting")
    assert cli("decide", "refused", "research", "reject", "--latest", "--by", "Ada", "--comment", "no").code == 0
    outcome = cli("watch", "refused")
    assert outcome.code == 1
    assert outcome.err.endswith("error: the run was rejected: Ada rejected research: no\n")


def test_pause_resume_and_cancel(cli: Cli) -> None:
    """A paused run begins no stage; a cancelled one leaves rows that say so."""
    name = cli("run", "halting", "Stop and go", "--gate", "research", "--gate", "backend", "--id", "halt-1", "--json")
    run = name.json["run_key"]
    wait_for(cli, run, "waiting")
    assert cli("pause", run).code == 0
    assert cli("decide", run, "research", "approve", "--latest").code == 0
    paused = wait_for(cli, "halt-1", "paused")
    assert [row["state"] for row in paused["stages"][:2]] == ["done", "pending"]
    assert cli("resume", "halting").code == 0  # by its feature: the id is not the default one
    wait_for(cli, run, "waiting")
    assert cli("cancel", run).code == 0
    outcome = cli("watch", run)
    assert outcome.code == 1
    assert outcome.err.endswith("error: the run was cancelled\n")
    assert next(row["status"] for row in cli("runs", "--json").json if row["run_key"] == run) == "cancelled"


def test_the_plain_temporal_program_starts_a_run(stack: LocalStack, cli: Cli) -> None:
    """What it starts is found by its feature; bad input fails with the reason."""
    temporal = stack.status().temporal
    assert temporal is not None
    assert temporal.cli is not None

    def start(workflow_id: str, document: str) -> None:
        command = [str(temporal.cli), "workflow", "start", "--address", temporal.address, "--workflow-id", workflow_id]
        command += ["--type", "FeaturePipeline", "--task-queue", "coatcheck", "--input", document, *flags(temporal)]
        subprocess.run(command, check=True, capture_output=True, env=environment())

    start("by-hand", '{"feature": "plain-start", "brief": "Started by hand"}')
    assert cli("watch", "by-hand").code == 0
    assert cli("progress", "plain-start", "--json").json["status"] == "completed"
    start("by-mistake", '{"feature": "Plain Start", "brief": "x"}')
    outcome = cli("watch", "by-mistake")
    assert outcome.code == 1
    assert "a slug is lower-case letters" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_ctrl_c_leaves_the_run_alone(stack: LocalStack, cli: Cli) -> None:
    """Exit code 130, one line that says so, no traceback."""
    command = [str(COATCHECK), "run", "interrupted", "x", "--gate", "research", "--wait"]
    env = environment(COATCHECK_DATA_DIR=str(stack.config.data_dir))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "waits for a decision" in line:
                break
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "the run goes on; `coatcheck watch feature/interrupted` follows it again" in rest
    assert "Traceback" not in rest
    assert cli("progress", "interrupted", "--json").json["status"] == "waiting"
    assert cli("cancel", "interrupted").code == 0


def test_doctor_finds_nothing_wrong(cli: Cli) -> None:
    """Every check, on a stack that has just been started."""
    outcome = cli("doctor", "--json")
    assert outcome.code == 0, outcome.out
    assert {finding["verdict"] for finding in outcome.json} == {"ok"}
    (isolation,) = (finding["detail"] for finding in outcome.json if finding["check"] == "isolation of checks")
    assert isolation.split(":")[0] in {"bubblewrap", "namespaces", "limits only"}


def test_tools_without_a_server_are_no_empty_table(cli: Cli) -> None:
    """It says what is missing, and where an example is."""
    listed = cli("tools", "list")
    assert (listed.code, listed.out) == (0, "")
    assert "has no MCP server" in listed.err
    assert "docs/how-to/tools.md" in listed.err
    assert cli("tools", "list", "--json").json == {"kind": "offers", "tools": [], "servers": []}


def test_unknown_runs_are_said_to_be_unknown(cli: Cli) -> None:
    """Exit code 1 and where to look."""
    for command in ("watch", "progress", "pause", "events"):
        outcome = cli(command, "never-started")
        assert outcome.code == 1
        assert "never-started" in outcome.err
        assert "coatcheck runs" in outcome.err


def test_rows_are_shown_while_no_worker_answers(new_stack: Callable[..., LocalStack], tmp_path: Path) -> None:
    """And the command says so; a decision is refused, since only a worker can take it."""
    own = new_stack(env=environment(COATCHECK_SCRIPTED_LATENCY_SECONDS="0.02"))
    data_dir = tmp_path / "stack"
    assert coatcheck("run", "orphaned", "x", "--wait", data_dir=data_dir).code == 0
    own.stop_member("core")
    outcome = coatcheck("progress", "orphaned", "--json", data_dir=data_dir)
    assert outcome.code == 0, outcome.err
    assert outcome.json["status"] == "completed"
    assert "no worker answers; these are the recorded rows" in outcome.err
    refused = coatcheck("decide", "orphaned", "qa", "approve", "--latest", data_dir=data_dir)
    assert refused.code == 3
    assert "no core worker answers" in refused.err
