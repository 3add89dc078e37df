"""A team's own command agent as a seventh stage: from `coatcheck.toml` to its files, and what is known of its cost."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coatcheck.localstack import LocalStack
from tests.acceptance.program import Outcome, coatcheck, environment

PROGRAM = """
import sys
from pathlib import Path
prompt = sys.stdin.read()
told = "Export invoices" in prompt and "stage=\\"qa\\"" in prompt
Path("changes").mkdir()
Path("changes/made.txt").write_text(f"told: {told}")
Path("DELIVERABLE.md").write_text("# Patched by a command\\n\\n" + "What was changed and why. " * 10)
"""
CONFIG = f"""
[roles.codex]
kind = "command"
task_type = "patch"
command = ["python", "-c", '''{PROGRAM}''']

[[pipelines.default.stages]]
name = "research"
agent = "cynthia"

[[pipelines.default.stages]]
name = "critique"
agent = "sylvia"
needs = ["research"]
reviews = "research"

[[pipelines.default.stages]]
name = "backend"
agent = "roy"
needs = ["research", "critique"]

[[pipelines.default.stages]]
name = "frontend"
agent = "jen"
needs = ["research", "backend"]

[[pipelines.default.stages]]
name = "qa"
agent = "billy"
needs = ["research", "backend", "frontend"]
reworks = ["backend", "frontend"]

[[pipelines.default.stages]]
name = "statistics"
agent = "priya"
needs = ["critique", "qa"]

[[pipelines.default.stages]]
name = "patch"
agent = "codex"
needs = ["backend", "qa"]
"""


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Outcome]]:
    """Run a command against a stack with this configuration."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "coatcheck.toml").write_text(CONFIG)
    env = environment(COATCHECK_SCRIPTED_LATENCY_SECONDS="0.02")
    with LocalStack(folder / "stack", env=env, config_file=folder / "coatcheck.toml") as stack:
        yield lambda *arguments: coatcheck(*arguments, data_dir=Path(stack.config.data_dir))


def test_a_command_as_the_last_stage(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    """It is told what the others are, its file can be fetched, and what it spent is unknown, not 0."""
    run = cli("run", "invoices", "Export invoices as CSV", "--wait")
    assert run.code == 0, run.err
    fetched = cli("fetch", "agog.deliverables.codex.patch.invoices", "--out", str(tmp_path / "out"))
    assert fetched.code == 0, fetched.err
    assert (tmp_path / "out" / "changes" / "made.txt").read_text() == "told: True"
    stages = {row["label"]["stage"]: row["cost_usd"] for row in cli("cost", "--by", "stage", "--json").json["rows"]}
    assert (stages["patch"], stages["backend"]) == (None, "0")
    cost = cli("cost")
    assert cost.out.splitlines()[-1].split()[-1] == "unknown"
    assert "note: 1 round was worked by command agents" in cost.err
    for told in (cli("progress", "invoices").out, cli("why", "invoices").out):
        [line] = [line for line in told.splitlines() if line.startswith("patch ")]
        assert "unknown" in line
