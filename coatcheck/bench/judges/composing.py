"""From `coatcheck.toml` to judges that can be asked. Reads no environment: whoever calls hands in what is in it."""

from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

from pydantic import SecretStr

from coatcheck.bench.judges.checks import CheckJudge, Limits
from coatcheck.bench.judges.questions import AskedJudge, built_in
from coatcheck.bench.judges.scripted import ScriptedJudge
from coatcheck.errors import CoatcheckError
from coatcheck.gateway.prices import PriceTable, openai_endpoints
from schemas.config import Config
from schemas.judging import CHECK_CRITERIA, KIND_CHECKS, KIND_SCRIPTED, Criterion, JudgeConfig

OPENAI_KEY: Final = "OPENAI_API_KEY"
EXTRA_HINT: Final = "pip install 'coatcheck[evals]'"
ALWAYS: Final[Mapping[str, JudgeConfig]] = {
    "checks": JudgeConfig(kind=KIND_CHECKS),
    "scripted": JudgeConfig(kind=KIND_SCRIPTED),
}
"""Judges that need no configuration; one of the file may have their name, and is then taken instead."""


class UnknownJudgeError(CoatcheckError):
    """No judge or criterion has that name."""

    code = "judge.unknown"


@dataclass(frozen=True)
class Surroundings:
    """What judges need of the environment."""

    variable: Callable[[str], str | None]
    """Name → value; asked for the keys that the configuration names, and no others."""
    openai_base_url: str | None = None


def default_judges(config: Config) -> list[str]:
    """`checks`, and those of the file; the scripted one stands in where the file has none."""
    return list(dict.fromkeys(["checks", *(config.judges or ["scripted"])]))


def who_judges(config: Config, criterion: str) -> list[str]:
    """Those of `default_judges` that know a criterion."""
    asked = {**built_in(), **config.criteria}
    known = {**ALWAYS, **config.judges}
    return [name for name in default_judges(config) if _criteria(known[name], asked, [criterion])]


@asynccontextmanager
async def open_judges(
    config: Config,
    names: Sequence[str],
    surroundings: Surroundings,
    *,
    criteria: Collection[str] | None = None,
    limits: Limits | None = None,
) -> AsyncGenerator[list[AskedJudge]]:
    """The judges of these names, in their order; connections close when the block ends.

    Args:
        config: The team's configuration.
        names: Of judges in it, or `checks` and `scripted`.
        surroundings: Keys and the like.
        criteria: Only these; a judge that has none of them is left out.
        limits: A budget instead of that of the configuration, for judges that count.

    Raises:
        UnknownJudgeError: there is no judge of that name, or none of them has one of the criteria.
        CoatcheckError: phoenix-evals is not installed, or a key is not set; nobody was asked yet.
    """
    known = {**ALWAYS, **config.judges}
    for name in names:
        if name not in known:
            raise UnknownJudgeError(f"there is no judge {name!r}", hint=f"there are {', '.join(known)}")
    asked = {**built_in(), **config.criteria}
    wanted = {name: _criteria(known[name], asked, criteria) for name in dict.fromkeys(names)}
    for criterion in criteria or ():
        if not any(criterion in found for found in wanted.values()):
            there = dict.fromkeys(name for judge in names for name in _criteria(known[judge], asked, None))
            raise UnknownJudgeError(
                f"none of {', '.join(names)} judges by {criterion!r}", hint=f"there are {', '.join(there)}"
            )
    async with AsyncExitStack() as stack:
        means = _Means(config, asked, surroundings, limits, stack)
        yield [await _judge(means, name, known[name], found) for name, found in wanted.items() if found]


def _criteria(judge: JudgeConfig, asked: Mapping[str, Criterion], only: Collection[str] | None) -> list[str]:
    names = judge.criteria or (CHECK_CRITERIA if judge.kind == KIND_CHECKS else tuple(asked))
    return [name for name in names if only is None or name in only]


@dataclass(frozen=True)
class _Means:
    """What every judge of one configuration is made from."""

    config: Config
    asked: Mapping[str, Criterion]
    surroundings: Surroundings
    limits: Limits | None
    stack: AsyncExitStack


async def _judge(means: _Means, name: str, judge: JudgeConfig, criteria: Sequence[str]) -> AskedJudge:
    if judge.kind == KIND_CHECKS:
        own = Limits(max_tokens=judge.max_tokens, max_cost_usd=judge.max_cost_usd, max_rounds=judge.max_rounds)
        given = own if means.limits is None else replace(means.limits, max_rounds=own.max_rounds)
        return CheckJudge(name, criteria, limits=given)
    questions = {criterion: means.asked[criterion] for criterion in criteria}
    if judge.kind == KIND_SCRIPTED:
        return ScriptedJudge(name, questions)
    try:
        from coatcheck.bench.judges.llm import LLMJudge  # noqa: PLC0415  an extra, and half a second of imports
    except ImportError as error:
        raise CoatcheckError(f"the judge {name!r} asks a model, which needs phoenix-evals", hint=EXTRA_HINT) from error

    assert judge.model is not None
    own_endpoint = str(judge.base_url) if judge.base_url else None
    base_url = own_endpoint or means.surroundings.openai_base_url
    table = PriceTable(means.config.prices, own_endpoints=openai_endpoints(base_url))
    model = judge.model

    def price(tokens_in: int, tokens_out: int, cached: int) -> Decimal | None:
        return table.cost_usd(model, tokens_in=tokens_in, tokens_out=tokens_out, tokens_cached=cached)

    return await means.stack.enter_async_context(
        LLMJudge(
            name,
            questions,
            model=model.removeprefix("openai:"),
            base_url=base_url,
            api_key=_key(name, judge, means.surroundings),
            timeout_seconds=judge.timeout_seconds,
            attempts=judge.attempts,
            price=price,
        )
    )


def _key(name: str, judge: JudgeConfig, surroundings: Surroundings) -> SecretStr | None:
    """The key for the judge's endpoint: OpenAI's own is never sent to an address that the file names."""
    variable = judge.api_key_env or (None if judge.base_url else OPENAI_KEY)
    if variable is None:
        return None
    if not (value := surroundings.variable(variable)):
        raise CoatcheckError(f"the judge {name!r} needs a key, and {variable} is not set")
    return SecretStr(value)
