"""`[judges.*]` and `[criteria.*]` of `coatcheck.toml`."""

from pathlib import Path
from textwrap import dedent

import pytest

from coatcheck.config import load_config
from coatcheck.errors import ConfigError
from schemas.config import Config
from schemas.judging import JudgeConfig


def load(folder: Path, text: str) -> Config:
    """Load a file with that text."""
    path = folder / "coatcheck.toml"
    path.write_text(dedent(text).removeprefix("\n"))
    return load_config(path)


def mistakes(folder: Path, text: str) -> list[str]:
    """What is said about a file with that text, without its name."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return [line.partition("coatcheck.toml:")[2] for line in str(caught.value).splitlines()]


def test_a_judge_and_a_criterion_of_ones_own(tmp_path: Path) -> None:
    """A judge may name criteria of the file and built-in ones."""
    found = load(
        tmp_path,
        """
        [judges.strict]
        kind = "llm"
        model = "openai:gpt-5-mini"
        base_url = "http://localhost:11434/v1"
        criteria = ["plain-words", "clear"]

        [criteria.plain-words]
        question = "Does it do without jargon?"
        about = "run"
        labels = { yes = 1, no = 0 }
        """,
    )
    judge = found.judges["strict"]
    assert (judge.kind, judge.model, judge.criteria) == ("llm", "openai:gpt-5-mini", ("plain-words", "clear"))
    assert (judge.attempts, judge.timeout_seconds, judge.api_key_env) == (3, 120, None)
    assert found.criteria["plain-words"].labels == {"yes": 1, "no": 0}
    assert found.criteria["plain-words"].about == "run"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[judges.a]\nkind = "llm"', "1: judges.a: kind 'llm' needs a model"),
        ('[judges.a]\nkind = "checks"\nattempts = 2', "1: judges.a: attempts: only for kind 'llm'"),
        ('[judges.a]\nkind = "scripted"\nmax_rounds = 2', "1: judges.a: max_rounds: only for kind 'checks'"),
        ('[judges.a]\nkind = "llm"\nmodl = "openai:x"', "3: judges.a.modl: unknown key; did you mean 'model'?"),
        ('[judges.a]\nkind = "llm"\nmodel = "gpt"', "3: judges.a.model: should be openai:model"),
        (
            '[judges.a]\nkind = "llm"\nmodel = "openai:x"\napi_key_env = "sk-1234"',
            "4: judges.a.api_key_env: should be the name of a variable",
        ),
        (
            '[judges.a]\nkind = "checks"\ncriteria = [\n  "run-completed",\n  "clear",\n]',
            "5: judges.a.criteria.1: a judge of kind 'checks' has no criterion 'clear'; there are run-completed",
        ),
        (
            '[judges.a]\nkind = "scripted"\ncriteria = ["plain"]',
            "3: judges.a.criteria.0: a judge of kind 'scripted' has no criterion 'plain'; there are fulfils-brief",
        ),
        ('[criteria.a]\nquestion = "?"\nlabels = { yes = 1 }', "3: criteria.a.labels: "),
        ('[criteria.a]\nquestion = "?"\nlabels = { yes = 2, no = 0 }', "3: criteria.a.labels.yes: should be less than"),
        ('[criteria."A B"]\nquestion = "?"', "1: criteria."),
    ],
)
def test_each_mistake_has_its_line(tmp_path: Path, text: str, told: str) -> None:
    """And the words of a person."""
    [line] = mistakes(tmp_path, text)
    assert line.startswith(told)


def test_a_key_never_stands_in_the_file() -> None:
    """There is a field for the name of its variable only."""
    assert not {"api_key", "key", "token"} & JudgeConfig.model_fields.keys()
