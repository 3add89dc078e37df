"""`coatcheck.toml` on the command line, without any server: which file is taken, what is said about it."""

import json
from pathlib import Path

import pytest

from coatcheck.localstack.status import StackState, StackStatus, SupervisorStatus
from tests.acceptance.program import coatcheck

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = DOCS / "examples" / "security-review" / "coatcheck.toml"
WRONG = "[roles.sam]\nmax_turn = 3\n"
SAID = "coatcheck.toml:2: roles.sam.max_turn: unknown key; did you mean 'max_turns'?"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which has no `coatcheck.toml` yet."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own(folder: Path, agent: str) -> Path:
    """Write a file with one agent of that name."""
    path = folder / "coatcheck.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'[roles.{agent}]\ntask_type = "{agent}-work"\nprompt = "qa.md"\n')
    return path


def test_check_prints_what_was_understood(tmp_path: Path) -> None:
    """Tables for people, JSON for programs."""
    people = coatcheck("config", "check", str(EXAMPLE), data_dir=tmp_path)
    assert people.code == 0, people.err
    assert "sam      security    review   llm   -       prompts/security.md  agent-sam\n" in people.out
    assert "security    sam      review  backend, research            backend" in people.out
    programs = coatcheck("config", "check", str(EXAMPLE), "--json", data_dir=tmp_path).json
    assert programs["file"] == str(EXAMPLE)
    assert programs["roles"]["sam"]["task_type"] == "security"
    assert [stage["name"] for stage in programs["pipelines"]["secure"]["stages"]][3] == "security"


def test_a_wrong_file_exits_with_2_and_names_every_mistake(folder: Path) -> None:
    """One line each, nothing on stdout."""
    (folder / "coatcheck.toml").write_text(WRONG)
    outcome = coatcheck("config", "check", data_dir=folder / "data")
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.splitlines() == ["error: coatcheck.toml:1: roles.sam.task_type: is missing", f"error: {SAID}"]


@pytest.mark.parametrize("command", [["up"], ["demo"], ["run", "x", "b"], ["worker", "agents"]])
def test_nothing_begins_with_a_wrong_file(folder: Path, command: list[str]) -> None:
    """Every command that would take it says so first."""
    (folder / "coatcheck.toml").write_text(WRONG)
    outcome = coatcheck(*command, data_dir=folder / "data")
    assert outcome.code == 2
    assert SAID in outcome.err
    assert not (folder / "data").exists()


@pytest.mark.parametrize("command", [["up", "--config"], ["demo", "--config"], ["run", "x", "b", "--config"]])
def test_a_file_that_is_named_must_be_there(folder: Path, command: list[str]) -> None:
    """A slip of the pen is not the defaults."""
    outcome = coatcheck(*command, "team.toml", data_dir=folder / "data")
    assert outcome.code == 2
    assert f"there is no file {folder}/team.toml" in outcome.err


def test_which_file_is_taken(folder: Path) -> None:
    """The variable, then what the stack was started with, then the current folder's, then the defaults."""
    data = folder / "data"

    def agents(**variables: str) -> list[str]:
        return list(coatcheck("config", "show", "--json", data_dir=data, **variables).json["roles"])[6:]

    assert agents() == []
    own(folder, "here")
    assert agents() == ["here"]
    started = {"state": StackState.STOPPED, "started_at": "2026-11-01T00:00:00Z"}
    status = StackStatus(
        data_dir=data,
        config_file=own(folder / "elsewhere", "there"),
        state=StackState.STOPPED,
        supervisor=SupervisorStatus.model_validate(started),
    )
    data.mkdir()
    (data / "status.json").write_text(status.model_dump_json())
    assert agents() == ["there"]
    assert agents(COATCHECK_CONFIG=str(own(folder / "third", "named"))) == ["named"]
    # A stack that was started without a file knows nothing of one that has come since.
    (data / "status.json").write_text(status.model_copy(update={"config_file": None}).model_dump_json())
    assert agents() == []


def test_an_unknown_pipeline_is_misuse(folder: Path) -> None:
    """Before anything connects; without a file it says where pipelines come from."""
    outcome = coatcheck("run", "x", "b", "--pipeline", "defualt", data_dir=folder / "data")
    assert outcome.code == 2
    assert "error: there is no pipeline 'defualt'; did you mean 'default'?" in outcome.err
    assert "hint: own pipelines come from a coatcheck.toml" in outcome.err


def test_gates_are_those_of_the_chosen_pipeline(tmp_path: Path) -> None:
    """A stage of the team's own may be a gate; the refusal is about Temporal, not about the stage."""
    arguments = ["run", "x", "b", "--pipeline", "secure", "--config", str(EXAMPLE), "--gate"]
    assert coatcheck(*arguments, "security", data_dir=tmp_path).code == 3
    refused = coatcheck(*arguments, "nope", data_dir=tmp_path)
    assert refused.code == 2
    assert "the stages are research, critique, backend, security, frontend, qa, statistics" in refused.err


def test_a_whole_request_takes_no_pipeline_besides(folder: Path) -> None:
    """It says itself which stages it wants."""
    arguments = ["run", "--request", "-", "--pipeline", "secure", "--config", str(EXAMPLE)]
    outcome = coatcheck(*arguments, data_dir=folder / "data", stdin=b'{"feature": "x", "brief": "b"}')
    assert outcome.code == 2
    assert "--request holds the whole request" in outcome.err


def test_the_accounts_of_a_server_of_ones_own_have_the_own_agents(folder: Path) -> None:
    """`nats-config` makes a key and an account for each."""
    own(folder, "sam")
    outcome = coatcheck("nats-config", "--out", "out", data_dir=folder / "data")
    assert outcome.code == 0, outcome.err
    assert "agog.deliverables.sam.>" in (folder / "out" / "accounts.conf").read_text()
    assert (folder / "data" / "nats" / "keys" / "sam.nk").exists()


def test_the_schema_is_printed(tmp_path: Path) -> None:
    """What `make schema` writes, to the byte."""
    outcome = coatcheck("config", "schema", data_dir=tmp_path)
    assert outcome.out == (DOCS / "reference" / "coatcheck.schema.json").read_text()
    assert json.loads(outcome.out)["title"] == "coatcheck.toml"
