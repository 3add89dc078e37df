"""Judges and what they judge by, as `coatcheck.toml` names them: `[criteria.<name>]` and `[judges.<name>]`.

Two judges are always there: `checks`, which only counts what the events say, and `scripted`, which stands in for a
model where none is configured and says so.
"""

from decimal import Decimal
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, model_validator

from schemas.subjects import Slug

KIND_CHECKS: Final = "checks"
KIND_SCRIPTED: Final = "scripted"

About = Literal["run", "stage"]
"""One score for the whole run, or one for the accepted round of each stage."""
Score = Annotated[float, Field(ge=0, le=1)]


class Criterion(BaseModel):
    """A question that a model, or its scripted stand-in, answers with one of a few labels."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    question: Annotated[str, Field(min_length=1, max_length=20_000)]
    """What to judge, in words for the judge; the brief and the deliverables are put after it."""
    about: About = "stage"
    """`run`: one score, of all accepted deliverables together. `stage`: one score per stage."""
    inputs: bool = False
    """For `stage`: also show what the stage was given, which may cost several times as much."""
    labels: Annotated[dict[Annotated[str, Field(min_length=1, max_length=60)], Score], Field(min_length=2)] = {
        "met": 1,
        "partly_met": 0.5,
        "not_met": 0,
    }
    """Answer → score. Any other answer is a failure of the judge and not a score."""


class JudgeConfig(BaseModel):
    """One judge."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["checks", "llm", "scripted"]
    """`checks` counts, `llm` asks a model, `scripted` is a stand-in for a model and asks nobody."""
    criteria: tuple[Slug, ...] = ()
    """Only these; all that its kind knows when empty."""

    model: Annotated[str, Field(pattern=r"^openai:\S+$", max_length=200)] | None = None
    """For `llm`: `openai:<model>`, at OpenAI or at any endpoint that speaks its protocol."""
    base_url: HttpUrl | None = None
    """For `llm`: such an endpoint; `OPENAI_BASE_URL`, or OpenAI's own, when absent."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """For `llm`: name of the variable that holds the key. `OPENAI_API_KEY`, unless there is a `base_url`: then none."""
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 120
    """For `llm`: of one call."""
    attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """For `llm`: calls for one score, before the judge has failed."""

    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """For `checks`: what a run may take by `budget-kept`, in and out."""
    max_cost_usd: Annotated[Decimal, Field(ge=0)] | None = None
    """For `checks`: what a run may cost by `budget-kept`."""
    max_rounds: Annotated[int, Field(ge=1, le=20)] = 3
    """For `checks`: what `rounds-bounded` allows each stage."""

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Self:
        if self.kind == "llm" and self.model is None:
            raise ValueError("kind 'llm' needs a model, such as \"openai:gpt-5-mini\"")
        for kind, fields in _ONLY_FOR.items():
            if self.kind != kind and (extra := sorted(fields & self.model_fields_set)):
                raise ValueError(f"{', '.join(extra)}: only for kind {kind!r}")
        return self


_ONLY_FOR: Final = {
    "llm": {"model", "base_url", "api_key_env", "timeout_seconds", "attempts"},
    "checks": {"max_tokens", "max_cost_usd", "max_rounds"},
}

CHECK_CRITERIA: Final[tuple[str, ...]] = (
    "run-completed",
    "deliverables-readable",
    "evidence-passed",
    "acceptance-mentioned",
    "budget-kept",
    "rounds-bounded",
    "tools-succeeded",
)
"""What `checks` can judge by; `coatcheck.bench.judges.checks` says how."""
BUILT_IN_QUESTIONS: Final[tuple[str, ...]] = ("fulfils-brief", "grounded", "clear")
"""Criteria for models that are always there; their questions are files in `coatcheck/bench/judges/prompts`."""
