"""`coatcheck judge`: a real run, judged by counting, by the scripted stand-in, and by a model of a local provider."""

import asyncio
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from coatcheck.bench.judges.questions import CONCURRENT_QUESTIONS
from coatcheck.localstack import LocalStack
from tests.acceptance.program import COATCHECK, Outcome, environment
from tests.providers.openai_server import OpenAIServer
from tests.providers.script import Script, Step

Cli = Callable[..., Outcome]


@pytest.fixture(scope="module")
def feature(stack: object) -> str:
    """The run that is judged."""
    assert stack
    return "judged-run"


@contextmanager
def provider(bill: Path, *steps: Step) -> Iterator[OpenAIServer]:
    """A provider in a thread of its own, since commands are waited for here."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = OpenAIServer(bill=bill, script=Script(steps))
    asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def met(label: str = "met", **fields: object) -> Step:
    """An answer, as often as it is asked for."""
    text = json.dumps({"explanation": "It says so.", "label": label})
    return Step.model_validate({"do": "text", "arguments": {"text": text}, "times": None, **fields})


def test_a_run_is_judged_and_judging_again_tells_nothing_new(cli: Cli, feature: str) -> None:
    """By the two judges that need no configuration."""
    assert cli("run", feature, "Find customers by name.\n\n- It forgives a typing error.", "--wait").code == 0
    first = cli("judge", feature, "--json")
    assert first.code == 0, first.err
    scores = first.json["scores"]
    by_check = {item["criterion"]: item for item in scores if item["judge"] == "checks"}
    assert by_check["run-completed"]["label"] == "completed"
    assert by_check["evidence-passed"]["score"] == 1
    assert by_check["deliverables-readable"]["score"] == 1
    assert by_check["tools-succeeded"]["score"] > 0.5
    assert {item["model"] for item in scores if item["judge"] == "scripted"} == {"scripted"}
    assert all(item["is_new"] for item in scores)
    again = cli("judge", feature, "--json")
    assert not any(item["is_new"] for item in again.json["scores"])
    assert {item["event_id"] for item in again.json["scores"]} == {item["event_id"] for item in scores}
    shown = cli("judge", feature)
    assert "run-completed" in shown.out
    assert "the scripted judge compares words and asks no model" in shown.err
    assert f"{len(scores)} of {len(scores)} scores were there before" in shown.err


def test_a_model_judges_beside_the_scripted_one(cli: Cli, feature: str, tmp_path: Path) -> None:
    """Its scores are events, its agreement with the other is reported, its calls are counted; its failure exits 1."""
    assert cli("judge", feature).code == 0
    config = tmp_path / "coatcheck.toml"
    with provider(tmp_path / "bill.jsonl", Step(do="refusal"), met("partly_met")) as server:
        config.write_text(
            f'[judges.strict]\nkind = "llm"\nmodel = "openai:gpt-test"\nbase_url = "{server.base_url}"\n'
            'criteria = ["clear"]\n[judges.scripted]\nkind = "scripted"\n'
        )
        judge = ("judge", feature, "--criterion", "clear")
        failed = cli(*judge, COATCHECK_CONFIG=str(config))
        assert failed.code == 1
        assert failed.err.count("no score: strict, clear ") == 1
        assert "the model refused" in failed.err
        assert "an error is not a zero" in failed.err
        done = cli(*judge, "--json", COATCHECK_CONFIG=str(config))
        assert done.code == 0, done.err
        asked = len(server.requests)
    strict = [item for item in done.json["scores"] if item["judge"] == "strict"]
    assert {(item["kind"], item["model"], item["score"]) for item in strict} == {("llm", "openai:gpt-test", 0.5)}
    assert sum(item["is_new"] for item in strict) == 1
    assert asked == 1 + len(strict)
    measures = {item["measure"]: item for item in done.json["agreement"]}
    assert measures["mean_absolute_difference"]["judges"] == ["scripted", "strict"]
    assert measures["cohen_kappa"]["compared"] == len(strict)
    assert [(item["judge"], item["calls"]) for item in done.json["spent"]] == [("strict", 1)]


def test_a_judging_that_is_killed_pays_for_no_score_twice(
    stack: LocalStack, cli: Cli, feature: str, tmp_path: Path
) -> None:
    """Every score is stored before the next question is asked: only what was under way is asked again."""
    config = tmp_path / "coatcheck.toml"
    with provider(tmp_path / "bill.jsonl", met(times=3), Step(do="hang", times=None)) as server:
        config.write_text(
            f'[judges.mortal]\nkind = "llm"\nmodel = "openai:gpt-test"\nbase_url = "{server.base_url}"\n'
            'criteria = ["clear", "grounded"]\n'
        )
        judge = ("judge", feature, "--judge", "mortal", "--json")
        env = environment(COATCHECK_DATA_DIR=str(stack.config.data_dir), COATCHECK_CONFIG=str(config))
        with subprocess.Popen([COATCHECK, *judge], env=env, stdout=subprocess.DEVNULL) as killed:
            wait_for(lambda: len(server.requests) == 3 + CONCURRENT_QUESTIONS)
            killed.kill()
        assert killed.returncode == -signal.SIGKILL
        server.script._steps.clear()
        server.script.add(met("not_met"))
        done = cli(*judge, COATCHECK_CONFIG=str(config))
        asked = len(server.requests) - 3 - CONCURRENT_QUESTIONS
    assert done.code == 0, done.err
    scores = done.json["scores"]
    assert sorted(item["label"] for item in scores if not item["is_new"]) == ["met"] * 3
    assert {item["label"] for item in scores if item["is_new"]} == {"not_met"}
    assert asked == len(scores) - 3 == sum(item["is_new"] for item in scores)


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds, a minute at most."""
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_mistakes_are_told_before_anything_is_asked(cli: Cli, feature: str, tmp_path: Path) -> None:
    """Names that there are not, a key that is not set, a run that is not there."""
    unknown = cli("judge", feature, "--judge", "strct")
    assert (unknown.code, unknown.err) == (2, "error: there is no judge 'strct'\nhint: there are checks, scripted\n")
    nobody = cli("judge", feature, "--judge", "checks", "--criterion", "clear")
    assert nobody.code == 2
    assert "none of checks judges by 'clear'" in nobody.err
    config = tmp_path / "coatcheck.toml"
    config.write_text('[judges.strict]\nkind = "llm"\nmodel = "openai:gpt-test"\n')
    keyless = cli("judge", feature, COATCHECK_CONFIG=str(config))
    assert (keyless.code, keyless.err) == (1, "error: the judge 'strict' needs a key, and OPENAI_API_KEY is not set\n")
    assert cli("judge", "never-was").code == 1
