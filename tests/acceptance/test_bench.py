"""`coatcheck bench` as a person types it: run, replay, record, report, and how each exits."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from junitparser import JUnitXml

from coatcheck.localstack import LocalStack
from tests.acceptance.program import COATCHECK, Outcome, coatcheck, environment

Cli = Callable[..., Outcome]


@pytest.fixture(scope="module")
def result(stack: LocalStack) -> Outcome:
    """A gate and an expiry, twice each, at once."""
    arguments = ("bench", "run", "er_002", "er_004", "--repeat", "2", "--concurrency", "4", "--json")
    return coatcheck(*arguments, data_dir=Path(stack.config.data_dir))


def key_of(result: Outcome, scenario: str) -> str:
    """The run key of the first run of a scenario."""
    return str(next(run["run_key"] for run in result.json["runs"] if run["scenario"] == scenario))


def test_scenarios_pass_on_the_running_stack(result: Outcome) -> None:
    """Each repeat is a run of its own, and people decide as the scenario says."""
    assert result.code == 0
    runs = result.json["runs"]
    assert [(run["scenario"], run["repeat"], run["status"]) for run in runs] == [
        ("er_002", 1, "completed"),
        ("er_002", 2, "completed"),
        ("er_004", 1, "expired"),
        ("er_004", 2, "expired"),
    ]
    assert len({run["run_key"] for run in runs}) == 4
    assert [run["violations"] for run in runs] == [[]] * 4
    assert "er_002 #2: completed after" in result.err


def test_a_run_is_judged_by_those_whom_its_scenario_names(cli: Cli) -> None:
    """The whole default pipeline; the opinions are in the result, since they are events of the run."""
    done = cli("bench", "run", "er_001", "--json")
    assert (done.code, done.json["runs"][0]["violations"]) == (0, [])
    scores = {score["criterion"]: score["score"] for score in done.json["runs"][0]["scores"]}
    assert scores == {"run-completed": 1, "evidence-passed": 1, "rounds-bounded": 1}


def test_a_recorded_run_is_replayed_without_model_and_database(result: Outcome, cli: Cli) -> None:
    """Only NATS is asked: the other servers' addresses lead nowhere."""
    away = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x", "TEMPORAL_ADDRESS": "127.0.0.1:1"}
    key = key_of(result, "er_002")
    assert cli("bench", "replay", "--correlation", key, "--scenario", "er_002", **away).code == 0
    assert cli("bench", "replay", "--correlation", key, **away).code == 0
    other = cli("bench", "replay", "--correlation", key, "--scenario", "er_004", "--json", **away)
    assert other.code == 1
    assert {item["rule"] for item in other.json["runs"][0]["violations"]} >= {"sequence"}


def test_a_part_of_a_run_is_replayed(result: Outcome, cli: Cli) -> None:
    """From a sequence on, and from a time on."""
    key = key_of(result, "er_002")
    whole = cli("bench", "replay", "--correlation", key, "--json").json["runs"][0]
    listed = cli("events", key, "--json").out.splitlines()
    middle = json.loads(listed[len(listed) // 2])
    part = cli("bench", "replay", "--correlation", key, "--from-sequence", str(middle["sequence"]), "--json")
    assert (part.code, part.json["runs"][0]["violations"]) == (0, [])
    assert 0 < part.json["runs"][0]["events"] < whole["events"]
    later = cli("bench", "replay", "--correlation", key, "--from-time", "2100-01-01")
    assert (later.code, "has no event" in later.err) == (1, True)


def test_a_good_run_becomes_a_scenario_that_runs(result: Outcome, cli: Cli, tmp_path: Path) -> None:
    """Recorded, run again, and broken by hand: then it fails, and says where."""
    file = tmp_path / "my-gate.json"
    recorded = cli("bench", "record", key_of(result, "er_002"), "-o", str(file))
    assert recorded.code == 0, recorded.err
    assert cli("bench", "run", str(file), "--no-judge").code == 0
    assert cli("bench", "record", key_of(result, "er_002"), "-o", str(file)).code == 2
    scenario = json.loads(file.read_text())
    scenario["expect"]["sequence"].pop(1)
    file.write_text(json.dumps(scenario))
    broken = cli("bench", "run", str(file))
    assert broken.code == 1
    assert "sequence: expected stage.completed(research, 1) after sequence" in broken.out


def test_a_result_is_reported_for_people_and_for_a_ci(result: Outcome, cli: Cli, tmp_path: Path) -> None:
    """Each format from the same file."""
    file = tmp_path / "result.json"
    file.write_text(result.out)
    assert cli("bench", "report", str(file)).out.splitlines()[0].split()[:3] == ["SCENARIO", "RUN", "STATUS"]
    assert cli("bench", "report", str(file), "--format", "json").json == result.json
    read = JUnitXml.fromstring(cli("bench", "report", str(file), "--format", "junit").out.encode())
    assert (read.tests, read.failures) == (4, 0)
    assert cli("bench", "report", str(file), "--format", "svg", "--run", "3").out.startswith("<svg")
    assert cli("bench", "report", str(file), "--format", "svg", "--run", "5").code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run",), "no SCENARIO is named"),
        (("run", "er_999"), "there is no scenario 'er_999'"),
        (("run", "er_011"), "needs the agent codex"),
        (("replay", "--correlation", "customer-search"), "is no run key"),
        (("report", "/dev/null"), "is no result"),
    ],
    ids=str,
)
def test_misuse_is_told_before_anything_is_started(cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    """With exit code 2."""
    done = cli("bench", *arguments)
    assert (done.code, said in done.err) == (2, True), done.err


def test_a_server_that_is_away_is_no_failed_run(cli: Cli) -> None:
    """A CI tells the two apart by the exit code."""
    assert cli("bench", "run", "er_002", NATS_URL="nats://127.0.0.1:1").code == 3
    assert cli("bench", "run", "er_002", TEMPORAL_ADDRESS="127.0.0.1:1").code == 3


def test_a_benchmark_that_is_stopped_leaves_no_run_under_way(stack: LocalStack, cli: Cli, tmp_path: Path) -> None:
    """Ctrl-C while a run waits for a person who never comes: the run is cancelled."""
    request = {"feature": "left-alone", "brief": "Find it by name.", "gates": ["research"]}
    scenario = {"id": "left_alone", "title": "Nobody answers", "input": {"request": request}}
    file = tmp_path / "alone.json"
    file.write_text(json.dumps(scenario | {"expect": {"sequence": [{"event": "run.started"}]}}))
    program = [COATCHECK, "bench", "run", str(file)]
    variables = environment(COATCHECK_DATA_DIR=str(stack.config.data_dir))
    with subprocess.Popen(program, env=variables, stderr=subprocess.PIPE) as running:
        status_of(cli, "left-alone", "waiting")
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 130
    status_of(cli, "left-alone", "cancelled")


def status_of(cli: Cli, feature: str, wanted: str) -> None:
    """Wait until the run of a feature is so."""
    deadline = time.monotonic() + 30
    while not any(run["status"] == wanted for run in cli("runs", "--json").json if run["feature"] == feature):
        assert time.monotonic() < deadline, f"{feature} is never {wanted}"
