"""`coatcheck events export` on a real run of the real agents, and its refusals."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coatcheck.localstack import LocalStack
from tests.acceptance.program import Outcome, coatcheck

TYPES = {"agent_events", "agent_tasks", "tool_executions", "workflow_data", "sft", "preferences"}
CANARY = "canary-of-the-export@example.com"


@pytest.fixture(scope="module")
def feature(stack: LocalStack) -> str:
    """A run that has ended, whose brief has somebody's address in it."""
    brief = f"Find customers by name. Ask {CANARY}."
    done = coatcheck("run", "export-search", brief, "--wait", data_dir=Path(stack.config.data_dir))
    assert done.code == 0, done.err
    return "export-search"


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """All rows of a type."""
    return [
        json.loads(line) for path in sorted((folder / name).glob("*.jsonl")) for line in path.read_text().splitlines()
    ]


def test_a_run_is_exported_with_everything_that_it_was(
    cli: Callable[..., Outcome], feature: str, tmp_path: Path
) -> None:
    """Rows of every type, chats with their reports, and no address; the second time nothing is different."""
    out = tmp_path / "training"
    done = cli("events", "export", "--out", str(out), "--json")
    assert done.code == 0, done.err
    told = done.json
    assert {name for day in told for name in day["rows"]} >= TYPES - {"preferences"}
    assert not any(count for day in told for count in day["withheld"].values()), told
    for day in told:
        for file in day["files"]:
            assert hashlib.sha256((out / file["path"]).read_bytes()).hexdigest() == file["sha256"]
    mine = [row for row in rows(out, "sft") if row["feature"] == feature]
    assert {row["stage"] for row in mine} >= {"research", "critique", "backend", "qa"}
    for row in mine:
        assert row["messages"][0]["role"] == "user"
        assert row["messages"][-1]["role"] == "assistant"
        assert len(row["messages"][-1]["content"]) > 200
        assert row["run_outcome"] == "completed"
        assert row["models"]
    tasks = {row["task"]: row for row in rows(out, "agent_tasks") if row["feature"] == feature}
    assert {row["task"] for row in mine} <= set(tasks)
    pairs = [row for row in rows(out, "preferences") if row["feature"] == feature]
    assert pairs, "the scripted research is sent back once"
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    assert not any(CANARY.encode() in path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert any("[redacted:email]" in row["messages"][0]["content"] for row in mine)

    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = cli("events", "export", "--out", str(out), "--type", "sft")
    assert again.code == 0, again.err
    assert "sft" in again.out
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    changed = {path.name for path in after if before.get(path) != after[path]}
    assert not {name for name in changed if not name.startswith("manifest")}


def test_misuse_is_told(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    """Before anything connects."""
    for arguments, word in (
        (("--type", "weights"), "weights"),
        (("--from", "2026-11-02", "--to", "2026-11-01"), "before"),
        (("--from", "yesterday"), "yesterday"),
    ):
        done = cli("events", "export", "--out", str(tmp_path / "out"), *arguments)
        assert done.code == 2, done.err
        assert word in done.err
    assert not (tmp_path / "out").exists()
    done = cli("events", "export", "--out", "ftp://host/path")
    assert (done.code, "ftp" in done.err) == (1, True)


def test_without_servers_it_says_so(tmp_path: Path) -> None:
    """Exit code 3, as everywhere."""
    done = coatcheck("events", "export", "--out", str(tmp_path / "out"), data_dir=tmp_path / "nothing")
    assert done.code == 3
    assert "coatcheck up" in done.err
