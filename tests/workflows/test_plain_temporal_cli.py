"""Starting with the plain `temporal` program: good input runs, bad input FAILS with the reason and never hangs."""

import asyncio
import json
import sys
import time
from pathlib import Path

import pytest

from schemas.pipeline import MAX_BRIEF_BYTES
from schemas.subjects import MAX_SLUG_LENGTH
from schemas.workflow_ids import MAX_WORKFLOW_ID_LENGTH
from tests.workflows.conftest import Pipelines

TEMPORAL = Path(sys.executable).parent / "temporal"
BRIEF = '"brief": "Find customers"'


def request(**fields: object) -> str:
    """A request as JSON, with these fields in place of the good ones."""
    return json.dumps({"feature": "customer-search", "brief": "Find customers", **fields})


async def execute(pipelines: Pipelines, *arguments: str, workflow_id: str = "") -> tuple[int, str, float]:
    """`temporal workflow execute`; returns its exit code, its output and the seconds it took."""
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        str(TEMPORAL),
        *("workflow", "execute", "--type", "FeaturePipeline", "--task-queue", "coatcheck"),
        *("--address", pipelines.client.service_client.config.target_host),
        *("--workflow-id", workflow_id or f"cli/{time.monotonic_ns()}", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), time.monotonic() - started


async def test_good_input_runs(pipelines: Pipelines) -> None:
    """Feature and brief are enough."""
    code, output, _ = await execute(pipelines, "--input", request())
    assert code == 0, output
    assert "COMPLETED" in output
    assert "agog_features_statistics:1" in output


BAD: dict[str, tuple[list[str], str]] = {
    "no-feature": (["--input", f"{{{BRIEF}}}"], "feature"),
    "no-brief": (["--input", '{"feature": "a"}'], "brief"),
    "unknown-field": (["--input", request(urgent=True)], "urgent"),
    "empty-brief": (["--input", request(brief="")], "brief is empty"),
    "blank-brief": (["--input", request(brief=" \n\t")], "brief is empty"),
    "dots": (["--input", request(feature="a.b")], "slug"),
    "spaces": (["--input", request(feature="customer search")], "slug"),
    "star": (["--input", request(feature="*")], "slug"),
    "greater": (["--input", request(feature="a>")], "slug"),
    "upper-case": (["--input", request(feature="Search")], "slug"),
    "unicode": (["--input", request(feature="größe")], "slug"),
    "trailing-hyphen": (["--input", request(feature="a-")], "slug"),
    "newline": (["--input", request(feature="a\n")], "slug"),
    "too-long": (["--input", request(feature="a" * (MAX_SLUG_LENGTH + 1))], "64 characters"),
    "feature-number": (["--input", request(feature=5)], "feature"),
    "brief-list": (["--input", request(brief=["a"])], "brief"),
    "timeout-text": (["--input", request(decision_timeout_seconds="soon")], "decision_timeout_seconds"),
    "unknown-gate": (["--input", request(gates=["nowhere"])], "nowhere"),
    "empty-pipeline": (["--input", request(pipeline={"stages": []})], "stages"),
    "array": (["--input", "[1, 2]"], "should be an object"),
    "text": (["--input", '"search"'], "should be an object"),
    "null": (["--input", "null"], "one JSON object"),
    "nothing": ([], "one JSON object"),
    "two-inputs": (["--input", request(), "--input", "3"], "one input"),
    "not-json": (["--input", "search", "--input-meta", "encoding=binary/plain"], "one JSON object"),
    "unknown-encoding": (["--input", "search", "--input-meta", "encoding=binary/odd"], "binary/odd"),
}


@pytest.mark.parametrize(("arguments", "reason"), BAD.values(), ids=BAD.keys())
async def test_bad_input_fails_with_its_reason(pipelines: Pipelines, arguments: list[str], reason: str) -> None:
    """FAILED in under 2 s, with words that name what is wrong; no agent was asked for anything."""
    code, output, seconds = await execute(pipelines, *arguments)
    assert code == 1
    assert "FAILED" in output
    assert reason in output
    assert "pydantic.dev" not in output
    assert seconds < 2
    assert pipelines.team.orders == {}
    assert pipelines.team.steps == []


async def test_brief_over_256_kb_fails(pipelines: Pipelines, tmp_path: Path) -> None:
    """One byte more than allowed fails, exactly as much runs."""
    allowed, over = tmp_path / "allowed.json", tmp_path / "over.json"
    allowed.write_text(request(brief="x" * MAX_BRIEF_BYTES))
    over.write_text(request(brief="x" * (MAX_BRIEF_BYTES + 1)))
    code, output, seconds = await execute(pipelines, "--input-file", str(over))
    assert (code, "FAILED" in output, "262,145 bytes" in output) == (1, True, True)
    assert seconds < 2
    code, output, _ = await execute(pipelines, "--input-file", str(allowed))
    assert code == 0, output[-2000:]


async def test_workflow_id_that_does_not_fit_our_keys_fails(pipelines: Pipelines) -> None:
    """Our keys are the workflow id and more, in a column of 255."""
    workflow_id = "w" * (MAX_WORKFLOW_ID_LENGTH + 1)
    code, output, _ = await execute(pipelines, "--input", request(), workflow_id=workflow_id)
    assert code == 1
    assert "workflow id has 161 characters" in output
