"""The provider as a process of its own: what it prints, obeys, answers and writes on the bill."""

import asyncio
import json
import sys
from pathlib import Path

import pytest
from openai import AsyncOpenAI, InternalServerError

from coatcheck.agents.reports import ReviewReport, TestReport, WorkReport
from tests.providers.answers import report_arguments
from tests.providers.bill import calls, paid
from tests.providers.script import Call

PROMPT = '<request feature="search" stage="critique" round="2" agent="sylvia">\nReview it.\n</request>'


async def test_as_a_process(tmp_path: Path) -> None:
    """The script and the bill are files; the bill survives a kill -9."""
    bill, script = tmp_path / "bill.jsonl", tmp_path / "script.json"
    script.write_text(json.dumps([{"do": "error", "stage": "critique", "turn": 1, "status": 502}]))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.providers.openai_server", "--bill", str(bill), "--script", str(script)),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    try:
        base_url = json.loads(await process.stdout.readline())["base_url"]
        async with AsyncOpenAI(api_key="sk-test", base_url=base_url, max_retries=0) as client:
            ask = client.chat.completions.create
            with pytest.raises(InternalServerError):
                await ask(model="gpt-test", messages=[{"role": "user", "content": PROMPT}])
            answer = await ask(model="gpt-test", messages=[{"role": "user", "content": PROMPT}])
    finally:
        process.kill()
        await process.wait()
    assert answer.choices[0].message.content == "I have finished the critique of search."
    assert [(call.stage, call.round, call.turn) for call in calls(bill)] == [("critique", 2, 1)] * 2
    assert [(line.step, line.paid) for line in paid(bill)] == [("answer", True)]


def test_answers_are_valid_for_every_kind_of_stage() -> None:
    """And favourable: a run with a competent model goes straight through."""
    call = Call(feature="search", stage="critique", round=1)
    for model in (WorkReport, ReviewReport, TestReport):
        report = model.model_validate(report_arguments(model.model_json_schema(), call, report_bytes=5000))
        assert len(report.report.encode()) == 5000
        assert report.custom_fields().get("verdict") in {None, "approve", "pass"}
