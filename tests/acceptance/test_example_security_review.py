"""The example `docs/examples/security-review`: an agent and a stage more, on a stack that already has data."""

import base64
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coatcheck.localstack import LocalStack
from coatcheck.localstack.status import TemporalStatus
from coatcheck.messaging.keyring import KEYRING_FILE
from tests.acceptance.program import Outcome, coatcheck, environment
from tests.tls import flags

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "security-review" / "coatcheck.toml"
STAGES = ["research", "critique", "backend", "security", "frontend", "qa", "statistics"]

Cli = Callable[..., Outcome]


def new_stack(data_dir: Path, config_file: Path | None) -> LocalStack:
    """A stack whose author hardly pretends to think."""
    env = environment(COATCHECK_SCRIPTED_LATENCY_SECONDS="0.02")
    return LocalStack(data_dir, env=env, config_file=config_file)


def keys(data_dir: Path) -> dict[str, bytes]:
    """Every NATS key and password by its file's name."""
    files = (data_dir / "nats" / "keys").iterdir()
    return {path.name: path.read_bytes() for path in files if path.name != KEYRING_FILE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example, and beside it the data of a stack that was started without it and had a run."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE.parent, folder / "example")
    with new_stack(folder / "stack", None) as stack:
        run = coatcheck("run", "before", "A run of the default pipeline", "--wait", data_dir=stack.config.data_dir)
        assert run.code == 0, run.err
    return folder


@pytest.fixture(scope="module")
def before(folder: Path) -> dict[str, bytes]:
    """The keys before there was a new agent."""
    return keys(folder / "stack")


@pytest.fixture(scope="module")
def stack(folder: Path, before: dict[str, bytes]) -> Iterator[LocalStack]:
    """The same data, started with the example's file."""
    assert before
    with new_stack(folder / "stack", folder / "example" / "coatcheck.toml") as running:
        yield running


@pytest.fixture(scope="module")
def cli(stack: LocalStack) -> Cli:
    """Run a command against the stack; nothing tells it which `coatcheck.toml`, but the stack's own status."""

    def run(*arguments: str, **variables: Any) -> Outcome:
        return coatcheck(*arguments, data_dir=Path(stack.config.data_dir), **variables)

    return run


@pytest.fixture(scope="module")
def delivered(cli: Cli) -> Outcome:
    """A run of the pipeline `secure` to its end."""
    return cli("run", "invoice-export", "Export invoices as CSV", "--pipeline", "secure", "--wait")


def test_the_pipeline_runs_to_its_end(delivered: Outcome) -> None:
    """The new stage is where the file puts it."""
    assert delivered.code == 0, delivered.err
    rows = [line.split() for line in delivered.out.splitlines()[1 : 1 + len(STAGES)]]
    assert [row[0] for row in rows] == STAGES
    assert {row[2] for row in rows} == {"done"}


def test_the_review_sent_the_backend_back(delivered: Outcome, cli: Cli) -> None:
    """Sam's findings are a second round of the backend; his deliverables are on his own stream."""
    assert delivered.code == 0
    rows = cli("deliverables", "invoice-export", "--json").json
    rounds = [(row["stage"], row["verdict"]) for row in rows if row["stage"] in ("backend", "security")]
    assert ("security", "revise") in rounds
    assert rounds[-1] == ("security", "approve") or ("security", "approve") in rounds
    assert sum(stage == "backend" for stage, _ in rounds) >= 2
    review = cli("fetch", "agog.deliverables.sam.security.invoice-export", "--json").json
    assert review["ref"]["stream"] == "agog_features_security"
    assert review["deliverable"]["metadata"]["agent"] == "sam"


def test_the_new_agent_has_all_that_the_others_have(cli: Cli, folder: Path, before: dict[str, bytes]) -> None:
    """Stream, key and a queue that is polled; the others' keys are what they were."""
    names = [status["name"] for status in cli("streams", "--check", "--json").json]
    assert "agog_features_security" in names
    after = keys(folder / "stack")
    assert after.keys() - before.keys() == {"sam.nk"}
    assert {name: after[name] for name in before} == before
    findings = {item["check"]: item for item in cli("doctor", "--json").json}
    assert findings["agent workers"]["detail"] == "all 7 queues are polled"
    assert findings["config"]["verdict"] == "ok"
    assert findings["config"]["detail"].endswith("example/coatcheck.toml: 7 agents, pipelines default, secure")


def test_what_was_there_before_is_still_there(cli: Cli) -> None:
    """The run of the default pipeline can be read as ever."""
    assert cli("fetch", "agog.deliverables.roy.backend.before").code == 0


def test_the_default_pipeline_is_not_written_into_the_history(cli: Cli, delivered: Outcome) -> None:
    """Only a run that takes another pipeline carries it."""
    assert delivered.code == 0
    assert cli("run", "plain", "A run of the default pipeline", "--wait").code == 0
    assert "pipeline" not in start_input(cli, "feature/plain")
    taken = start_input(cli, "feature/invoice-export")["pipeline"]
    assert taken["name"] == "secure"
    assert taken["stages"][0] == {"name": "research", "agent": "cynthia", "task_type": "research", "kind": "work"}


def start_input(cli: Cli, workflow_id: str) -> dict[str, Any]:
    """What the run was started with, as Temporal's own program shows it."""
    status = cli("status", "--json").json
    show = [status["temporal"]["cli"], "workflow", "show", "--workflow-id", workflow_id, "--output", "json"]
    show += ["--address", status["temporal"]["address"], *flags(TemporalStatus(**status["temporal"]))]
    done = subprocess.run(show, capture_output=True, check=True)
    event = json.loads(done.stdout)["events"][0]["workflowExecutionStartedEventAttributes"]
    payload = event["input"]["payloads"][0]["data"]
    request: dict[str, Any] = json.loads(base64.b64decode(payload))
    return request


def test_an_unknown_pipeline_is_refused_with_the_nearest(cli: Cli) -> None:
    """Nothing is started."""
    refused = cli("run", "other", "A brief", "--pipeline", "secur")
    assert refused.code == 2
    assert "error: there is no pipeline 'secur'; did you mean 'secure'?" in refused.err
    assert "has default, secure" in refused.err
    assert cli("progress", "other").code == 1


def test_the_doctor_sees_that_the_file_has_changed(cli: Cli, folder: Path) -> None:
    """What is in it now is not what the stack was started with."""
    path = folder / "example" / "coatcheck.toml"
    path.write_text(path.read_text() + "\n")
    outcome = cli("doctor", "--json")
    [finding] = [item for item in outcome.json if item["check"] == "config"]
    assert outcome.code == 1
    assert finding["verdict"] == "failed"
    assert finding["detail"] == f"{path} has changed since the stack was started"


def test_the_stream_of_a_removed_role_stays(folder: Path, stack: LocalStack, delivered: Outcome) -> None:
    """Without the file the stack starts as before, with it the review is there again."""
    assert delivered.code == 0
    stack.stop()
    with new_stack(folder / "stack", None) as without:
        data_dir = without.config.data_dir
        assert "agog_features_security" not in coatcheck("streams", "--json", data_dir=data_dir).out
        assert coatcheck("doctor", data_dir=data_dir).code == 0
    with new_stack(folder / "stack", folder / "example" / "coatcheck.toml") as again:
        data_dir = again.config.data_dir
        review = coatcheck("fetch", "agog.deliverables.sam.security.invoice-export", data_dir=data_dir)
        assert review.code == 0
