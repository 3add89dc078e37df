"""From `coatcheck.toml` to judges: who is there, whose key goes where, and what is told before anybody is asked."""

import sys
from pathlib import Path
from typing import Any

import pytest

from coatcheck.bench.judges.checks import CheckJudge
from coatcheck.bench.judges.composing import (
    Surroundings,
    UnknownJudgeError,
    default_judges,
    open_judges,
    who_judges,
)
from coatcheck.bench.judges.llm import LLMJudge
from coatcheck.bench.judges.questions import built_in
from coatcheck.config import load_config
from coatcheck.errors import CoatcheckError
from schemas.config import DEFAULT_CONFIG, Config
from schemas.judging import BUILT_IN_QUESTIONS, CHECK_CRITERIA
from tests.unit.judge_cases import good_run

LLM = {"kind": "llm", "model": "openai:gpt-test"}
OWN = "http://localhost:11434/v1"


def config(**judges: dict[str, Any]) -> Config:
    """A configuration with these judges."""
    return Config.model_validate({"judges": judges})


async def opened(config: Config, name: str, **variables: str) -> LLMJudge:
    """An LLM judge of that configuration; closed again."""
    base_url = variables.pop("base_url", None)
    async with open_judges(config, [name], Surroundings(variables.get, base_url)) as [judge]:
        assert isinstance(judge, LLMJudge)
        return judge


def sent(judge: LLMJudge) -> tuple[str, str]:
    """The key, and where it would go."""
    [client] = {evaluator.llm._async_client.client for evaluator in judge._evaluators.values()}
    return client.api_key, str(client.base_url)


def test_who_is_there_by_default() -> None:
    """Counting always; the scripted one only while nobody is configured."""
    assert default_judges(DEFAULT_CONFIG) == ["checks", "scripted"]
    assert default_judges(config(strict=LLM)) == ["checks", "strict"]
    assert default_judges(config(checks={"kind": "checks", "max_rounds": 1})) == ["checks"]
    assert who_judges(config(strict=LLM), "clear") == ["strict"]
    assert who_judges(DEFAULT_CONFIG, "run-completed") == ["checks"]
    assert who_judges(DEFAULT_CONFIG, "beauty") == []
    assert who_judges(config(checks={"kind": "checks", "criteria": ["run-completed"]}), "budget-kept") == []


async def test_openais_key_goes_to_openai_only() -> None:
    """An address in the file gets the key that is named for it, or none."""
    variables = {"OPENAI_API_KEY": "sk-openai", "MINE": "sk-mine"}
    assert sent(await opened(config(a=LLM), "a", **variables)) == ("sk-openai", "https://api.openai.com/v1/")
    assert sent(await opened(config(a=LLM | {"base_url": OWN}), "a", **variables)) == ("none", f"{OWN}/")
    named = LLM | {"base_url": OWN, "api_key_env": "MINE"}
    assert sent(await opened(config(a=named), "a", **variables)) == ("sk-mine", f"{OWN}/")
    # `OPENAI_BASE_URL` is where the environment itself sends that key.
    assert sent(await opened(config(a=LLM), "a", **variables, base_url=OWN)) == ("sk-openai", f"{OWN}/")


async def test_a_key_that_is_not_set_is_told() -> None:
    """Also when it is empty."""
    for variables in ({}, {"MINE": ""}):
        with pytest.raises(CoatcheckError, match="the judge 'a' needs a key, and MINE is not set"):
            await opened(config(a=LLM | {"api_key_env": "MINE"}), "a", **variables)


async def test_without_the_extra_only_a_model_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what to install is said."""
    monkeypatch.delitem(sys.modules, "coatcheck.bench.judges.llm")
    monkeypatch.setitem(sys.modules, "phoenix.evals", None)
    async with open_judges(DEFAULT_CONFIG, ["checks", "scripted"], Surroundings({}.get)) as judges:
        assert len(judges) == 2
    with pytest.raises(CoatcheckError) as caught:
        await opened(config(a=LLM), "a", OPENAI_API_KEY="k")
    assert caught.value.hint == "pip install 'coatcheck[evals]'"


async def test_unknown_names_are_told_with_those_that_there_are() -> None:
    """Judges, and criteria that none of the asked ones has."""
    with pytest.raises(UnknownJudgeError) as caught:
        async with open_judges(config(strict=LLM), ["strct"], Surroundings({}.get)):
            pass
    assert caught.value.hint == "there are checks, scripted, strict"
    with pytest.raises(UnknownJudgeError, match="none of scripted judges by 'run-completed'"):
        async with open_judges(DEFAULT_CONFIG, ["scripted"], Surroundings({}.get), criteria=["run-completed"]):
            pass


async def test_criteria_and_limits_of_the_file(tmp_path: Path) -> None:
    """A criterion of one's own may replace a built-in one; limits reach the judge that counts."""
    path = tmp_path / "coatcheck.toml"
    path.write_text(
        '[criteria.clear]\nquestion = "Is it short?"\nabout = "run"\n[criteria.kind]\nquestion = "Is it kind?"\n'
        '[judges.mine]\nkind = "scripted"\n[judges.frugal]\nkind = "checks"\nmax_tokens = 7\nmax_rounds = 1\n'
        'criteria = ["rounds-bounded", "budget-kept"]'
    )
    async with open_judges(load_config(path), ["mine", "frugal"], Surroundings({}.get)) as [mine, frugal]:
        assert mine.criteria == (*BUILT_IN_QUESTIONS, "kind")
        asked = mine.questions(good_run().case())
        assert [question.stage for question in asked if question.criterion == "clear"] == [None]
        assert frugal.criteria == ("rounds-bounded", "budget-kept")
        assert isinstance(frugal, CheckJudge)
        assert (frugal._limits.max_tokens, frugal._limits.max_rounds) == (7, 1)
    async with open_judges(load_config(path), ["mine", "frugal"], Surroundings({}.get), criteria=["kind"]) as judges:
        assert [judge.name for judge in judges] == ["mine"]


def test_what_is_built_in_is_what_is_listed() -> None:
    """The names in the schemas, the files with the questions, and the rules."""
    questions = built_in()
    assert tuple(questions) == BUILT_IN_QUESTIONS
    assert all(
        item.question and item.labels == {"met": 1, "partly_met": 0.5, "not_met": 0} for item in questions.values()
    )
    assert CheckJudge().criteria == CHECK_CRITERIA
