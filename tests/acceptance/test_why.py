"""`coatcheck why` in every state that a run can be in, also while servers and workers are down."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coatcheck.localstack import LocalStack
from coatcheck.localstack.status import MemberState
from tests.acceptance.program import Outcome, coatcheck, environment
from tests.providers.script import Step
from tests.tls import flags

ROOT = Path(__file__).parents[2]
KEY = "sk-proj-Abcdefgh12345678"
PATIENCE_SECONDS = 60
STEPS = [
    Step(do="hang", feature="held", times=None),
    Step(
        do="error",
        feature="refused",
        status=401,
        code="invalid_api_key",
        type="invalid_request_error",
        message=f"Incorrect API key provided: {KEY}.",
        times=None,
    ),
]
RESEARCH = {"name": "research", "agent": "cynthia", "task_type": "research"}
CRITIQUE = {"name": "critique", "agent": "sylvia", "task_type": "critique", "kind": "review"}
SHORT = {"stages": [RESEARCH, CRITIQUE | {"needs": ["research"], "reviews": "research"}]}

Cli = Callable[..., Outcome]


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a provider that keeps one feature waiting and refuses another."""
    folder = tmp_path_factory.mktemp("provider")
    script = folder / "script.json"
    script.write_text(json.dumps([step.model_dump() for step in STEPS]))
    command = [sys.executable, "-m", "tests.providers.openai_server", "--bill", str(folder / "bill.jsonl")]
    with subprocess.Popen([*command, "--script", str(script)], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["base_url"]
        process.terminate()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, provider: str) -> Iterator[LocalStack]:
    """A stack whose members the tests stop and start again."""
    env = environment(OPENAI_BASE_URL=provider, OPENAI_API_KEY=KEY, COATCHECK_MODEL="openai:gpt-test")
    with LocalStack(tmp_path_factory.mktemp("why") / "stack", env=env) as running:
        yield running


@pytest.fixture
def cli(own: LocalStack) -> Cli:
    """Run a command against that stack."""

    def run(*arguments: str, stdin: bytes = b"", **variables: Any) -> Outcome:
        return coatcheck(*arguments, data_dir=Path(own.config.data_dir), stdin=stdin, **variables)

    return run


@pytest.fixture
def stopped(own: LocalStack) -> Iterator[Callable[[str], None]]:
    """Stop members; they run again when the test ends."""
    names: list[str] = []

    def stop(name: str) -> None:
        names.append(name)
        own.stop_member(name)

    yield stop
    for name in reversed(names):
        own.start_member(name)
    for member in (*own.status().servers, *own.status().workers):
        own.wait_member(member.name, lambda found: found.state is MemberState.RUNNING)


def start(cli: Cli, feature: str, *, wait: bool = False, **fields: Any) -> Outcome:
    """Start a run of two stages."""
    request = {"feature": feature, "brief": "Explain this", "pipeline": SHORT, **fields}
    return cli("run", "--request", "-", *(["--wait"] if wait else []), stdin=json.dumps(request).encode())


def why(cli: Cli, run: str) -> dict[str, Any]:
    """The answer as JSON."""
    outcome = cli("why", run, "--json")
    assert outcome.code == 0, outcome
    answer: dict[str, Any] = outcome.json
    return answer


def until(cli: Cli, run: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Ask until the answer is as it should be."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        outcome = cli("why", run, "--json")
        if outcome.code == 0 and condition(outcome.json):
            answer: dict[str, Any] = outcome.json
            return answer
        assert time.monotonic() < deadline, outcome


def waits(answer: dict[str, Any]) -> str:
    """Everything that the run waits for, as one text."""
    return "\n".join(wait["what"] for wait in answer["waits"])


@pytest.fixture(scope="module")
def held(own: LocalStack) -> str:
    """A run whose model never answers."""
    request = {"feature": "held", "brief": "Wait for ever", "pipeline": SHORT}
    outcome = coatcheck("run", "--request", "-", data_dir=Path(own.config.data_dir), stdin=json.dumps(request).encode())
    assert outcome.code == 0, outcome
    return "held"


def test_running(cli: Cli, held: str) -> None:
    """The pending activity, its queue's workers, and the model call that is under way."""
    answer = until(cli, held, lambda answer: "turn 1 is with openai:gpt-test" in waits(answer))
    assert (answer["status"], answer["stage"], answer["round"]) == ("running", "research", 1)
    assert "cynthia, who works on research-1" in waits(answer)
    [pending] = answer["pending"]
    assert (pending["activity_id"], pending["activity"], pending["queue"]) == (
        "research-1",
        "cynthia.research",
        "agent-cynthia",
    )
    assert pending["is_started"]
    assert (pending["attempt"], pending["pollers"], answer["missing"]) == (1, 1, [])
    text = cli("why", held).out
    assert text.startswith("held: running in research, round 1, for ")
    assert "WAITS FOR\n  cynthia, who works on research-1; turn 1 is with openai:gpt-test since" in text
    assert f"/workflows/feature%2Fheld/{answer['run_key'].rpartition('/')[2]}" in text


def test_waiting_for_a_decision(cli: Cli) -> None:
    """The command that answers can be copied, and answers."""
    start(cli, "gated", gates=["research"])
    answer = until(cli, "gated", lambda answer: answer["status"] == "waiting")
    assert (answer["stage"], answer["round"]) == ("research", 1)
    [wait] = answer["waits"]
    assert wait["what"] == "a decision on research-1: this stage waits for an approval"
    assert wait["since"] == answer["since"] is not None
    assert wait["until"] > wait["since"]
    decide, fetch = wait["remedies"]
    assert f"    {decide}\n    {fetch}\n" in cli("why", "gated").out
    assert cli(*fetch.split()[1:]).code == 0
    program, *arguments = decide.partition("  (")[0].split()
    assert program == "coatcheck"
    assert cli(*arguments, "--by", "Ada").code == 0
    ended = until(cli, "gated", lambda answer: answer["status"] == "completed")
    assert ended["waits"] == []


def test_paused(cli: Cli) -> None:
    """How to let it go on."""
    start(cli, "halted", gates=["research"])
    until(cli, "halted", lambda answer: answer["status"] == "waiting")
    assert cli("pause", "halted").code == 0
    assert cli("decide", "halted", "research", "approve", "--latest").code == 0
    answer = until(cli, "halted", lambda answer: answer["status"] == "paused")
    assert answer["waits"][0]["what"] == "the run is paused: no stage begins"
    program, *arguments = answer["waits"][0]["remedies"][0].split()
    assert program == "coatcheck"
    assert cli(*arguments).code == 0
    until(cli, "halted", lambda answer: answer["status"] == "completed")


@pytest.fixture(scope="module")
def finished(own: LocalStack) -> str:
    """A run that completed."""
    data_dir = Path(own.config.data_dir)
    request = {"feature": "finished", "brief": "Explain this", "pipeline": SHORT, "tenant": "acme"}
    outcome = coatcheck("run", "--request", "-", "--wait", data_dir=data_dir, stdin=json.dumps(request).encode())
    assert outcome.code == 0, outcome
    return "finished"


def test_completed(cli: Cli, finished: str) -> None:
    """Who spent what, what was judged, which message came of it; a price that is unknown stays so."""
    answer = why(cli, finished)
    assert (answer["status"], answer["tenant"], answer["waits"], answer["error"]) == ("completed", "acme", [], None)
    assert [(row["stage"], row["agent"], row["calls"], row["models"]) for row in answer["stages"]] == [
        ("research", "cynthia", 1, ["openai:gpt-test"]),
        ("critique", "sylvia", 1, ["openai:gpt-test"]),
    ]
    assert {row["cost_usd"] for row in answer["stages"]} == {None}
    assert answer["total"]["unpriced"] == 2
    [judged] = answer["judgements"]
    assert (judged["task"], judged["verdict"]) == ("critique-1", "approve")
    assert [message["task"] for message in answer["messages"]] == ["research-1", "critique-1"]
    for message in answer["messages"]:
        fetched = cli("fetch", message["message"], "--json").json
        assert fetched["ref"]["bytes"] == message["bytes"]
        assert [item["path"] for item in message["files"]] == [
            item["path"] for item in fetched["deliverable"]["artifacts"]
        ]
    assert [event["event"] for event in answer["events"]][-1] == "run.completed"
    text = cli("why", "feature/finished")
    assert text.code == 0
    assert "finished: completed, " in text.out
    assert "unknown" in text.out
    assert "2 turns unpriced" in text.out
    assert "WAITS FOR" not in text.out


def test_the_default_pipeline(stack: LocalStack) -> None:
    """On one screen: why research and the backend were done again, and which message has which file."""
    data_dir = Path(stack.config.data_dir)
    assert coatcheck("run", "explained", "Find customers by name", "--wait", data_dir=data_dir).code == 0
    text = coatcheck("why", "explained", data_dir=data_dir).out
    lines = text.splitlines()
    assert sum(-(-max(len(line), 1) // 100) for line in lines) <= 40
    answer = coatcheck("why", "explained", "--json", data_dir=data_dir).json
    judged = {item["task"]: item for item in answer["judgements"]}
    assert judged["critique-1"]["findings"]
    assert (judged["qa-1"]["verdict"], judged["qa-1"]["rework"]) == ("fail", ["backend"])
    assert judged["qa-1"]["failed_checks"]
    [backend] = [message for message in answer["messages"] if message["stage"] == "backend"]
    fetched = coatcheck("fetch", backend["message"], "--json", data_dir=data_dir).json
    want = [{"path": item["path"], "bytes": item["bytes"]} for item in fetched["deliverable"]["artifacts"]]
    assert backend["files"] == want != []
    [line] = [line for line in lines if backend["message"] in line]
    assert want[0]["path"] in line
    assert {row["cost_usd"] for row in answer["stages"]} == {"0"}


def test_cost_of_a_run_by_stage(cli: Cli, finished: str) -> None:
    """The same numbers as `why` has, and how much of it is not known."""
    answer = why(cli, finished)
    report = cli("cost", "--by", "stage", "--run", finished, "--json").json
    assert {row["label"]["stage"]: row["tokens_in"] for row in report["rows"]} == {
        row["stage"]: row["tokens_in"] for row in answer["stages"]
    }
    assert report["total"] == answer["total"]
    assert report["total"]["cost_usd"] is None
    outcome = cli("cost", "--tenant", "acme", "--since", "1d")
    assert [line.split()[0] for line in outcome.out.splitlines()] == ["RUN", answer["run_key"], "total"]
    assert "2 of 2 finished turns have no known price" in outcome.err
    assert len(cli("cost", "--since", "2100-01-01").out.splitlines()) == 2


def test_failed(cli: Cli) -> None:
    """The stage, the provider's words without the key that they repeat, and its code."""
    assert start(cli, "refused", wait=True).code == 1
    answer = why(cli, "refused")
    assert (answer["status"], answer["stage"], answer["waits"]) == ("failed", "research", [])
    assert answer["error"].startswith("research-1 (cynthia): ")
    assert "Incorrect API key provided" in answer["error"]
    assert KEY not in "".join(event["payload"].get("reason", "") for event in _events(cli, "refused"))
    for outcome in (cli("why", "refused"), cli("why", "refused", "--json")):
        assert "***" in outcome.out
        assert KEY not in outcome.out + outcome.err
    assert "error: research-1 (cynthia): " in cli("why", "refused").out


def _events(cli: Cli, run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in cli("events", run, "--json").out.splitlines()]


def test_refused_input(own: LocalStack, cli: Cli) -> None:
    """A run that was never recorded: only Temporal knows why it ended."""
    temporal = own.status().temporal
    assert temporal is not None
    command = [str(temporal.cli), "workflow", "start", "--address", temporal.address, "--workflow-id", "by-mistake"]
    command += flags(temporal)
    command += ["--type", "FeaturePipeline", "--task-queue", "coatcheck", "--input", '{"feature": "A B", "brief": "x"}']
    subprocess.run(command, check=True, capture_output=True, env=environment())
    answer = until(cli, "by-mistake", lambda answer: answer["status"] == "failed")
    assert "a slug is lower-case letters" in answer["error"]


def test_an_unknown_run(cli: Cli, finished: str) -> None:
    """With what may have been meant."""
    assert finished
    outcome = cli("why", "finnished")
    assert outcome.code == 1
    assert "no run is called 'finnished'" in outcome.err
    assert "hint: did you mean 'finished'" in outcome.err


def test_the_agents_worker_is_down(cli: Cli, stopped: Callable[[str], None]) -> None:
    """Whose it is, at once, and what starts it."""
    stopped("agents")
    start(cli, "orphaned")
    answer = until(cli, "orphaned", lambda answer: bool(answer["pending"]))
    assert answer["status"] == "running"
    assert "cynthia's worker to take research-1" in waits(answer)
    [trouble] = [wait for wait in answer["waits"] if wait["what"].startswith("agents of the local stack, ")]
    assert "which is stopped" in trouble["what"]
    assert trouble["remedies"][0] == "coatcheck up"


def test_the_core_worker_is_down(cli: Cli, held: str, stopped: Callable[[str], None]) -> None:
    """The rows instead of the workflow's own answer, which the note says."""
    before = why(cli, held)
    stopped("core")
    answer = why(cli, held)
    assert "no core worker answers: the stages are as they were last recorded" in answer["missing"]
    assert [(row["stage"], row["state"]) for row in answer["stages"]] == [("research", "running")]
    assert [item["activity_id"] for item in answer["pending"]] == [item["activity_id"] for item in before["pending"]]
    assert "core of the local stack, which is stopped" in waits(answer)


def test_temporal_is_down(cli: Cli, finished: str, held: str, stopped: Callable[[str], None]) -> None:
    """What was recorded, and that nothing moves meanwhile."""
    stopped("temporal")
    answer = why(cli, held)
    assert (answer["status"], answer["pending"]) == ("running", [])
    assert any("Temporal" in note and "does not answer" in note for note in answer["missing"])
    assert "temporal of the local stack, which is stopped" in waits(answer)
    assert "cynthia, who works on research-1 as far as is recorded" in waits(answer)
    ended = why(cli, finished)
    assert (ended["status"], ended["waits"], len(ended["messages"])) == ("completed", [], 2)
    assert cli("why", "never-started").code == 1


def test_postgresql_is_down(cli: Cli, held: str, finished: str, stopped: Callable[[str], None]) -> None:
    """What Temporal and the workflow know; with both down there is no answer, and the exit code says so."""
    until(cli, held, lambda answer: not answer["missing"])  # the core worker is back since the test before
    stopped("postgres")
    answer = why(cli, held)
    assert (answer["status"], answer["stage"], answer["total"]) == ("running", "research", None)
    assert any("PostgreSQL" in note for note in answer["missing"])
    assert "postgres of the local stack, which is stopped" in waits(answer)
    assert [message["task"] for message in why(cli, finished)["messages"]] == ["research-1", "critique-1"]
    stopped("temporal")
    outcome = cli("why", held)
    assert (outcome.code, outcome.out) == (3, "")
    assert "Temporal" in outcome.err
    assert "PostgreSQL" in outcome.err


def test_nats_is_down(cli: Cli, finished: str, stopped: Callable[[str], None]) -> None:
    """The messages are told, their files are not."""
    stopped("nats")
    answer = why(cli, finished)
    assert [message["files"] for message in answer["messages"]] == [None, None]
    assert any("no files are told" in note for note in answer["missing"])
