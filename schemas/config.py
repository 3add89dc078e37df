"""`coatcheck.toml`: a team's own agents, pipelines, providers and prices. The file's form is a promise to its users.

Loading, with the line of each mistake, is `coatcheck.config`; the JSON schema is in `docs/reference/`.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Annotated, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.budget import Allowance, Budget
from schemas.judging import BUILT_IN_QUESTIONS, CHECK_CRITERIA, KIND_CHECKS, Criterion, JudgeConfig
from schemas.mcp import McpServer
from schemas.pipeline import DEFAULT_PIPELINE, Pipeline, Stage
from schemas.roles import DEFAULT_ROLES, ModelName, Role
from schemas.streams import StreamSpec, deliverable_stream
from schemas.subjects import Slug


class ProviderLimits(BaseModel):
    """What one provider (the part of a model's name before the colon) may be asked at once, over all gateways."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    """Calls in flight."""
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Tokens in and out, estimated before the call and corrected after it."""
    failures_to_open: Annotated[int, Field(ge=1)] = 5
    """Failed calls in a row after which the breaker opens and the next model of the chain is asked."""
    open_seconds: Annotated[float, Field(gt=0, le=86_400)] = 30
    """How long it stays open before one call tries again, unless the provider says (Retry-After)."""


class Price(BaseModel):
    """A model's price where the built-in table has none, or another one was agreed. US dollars per million tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    input_usd: Annotated[Decimal, Field(ge=0)]
    output_usd: Annotated[Decimal, Field(ge=0)]
    cached_input_usd: Annotated[Decimal, Field(ge=0)] | None = None
    """As `input_usd` when absent."""
    as_of: date
    source: Annotated[str, Field(min_length=1)]
    """Where the price was read: an address or a contract."""


class Tenant(BaseModel):
    """A tenant's share of scarce capacity."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    weight: Annotated[float, Field(gt=0, le=1000)] = 1
    budget: Slug | None = None
    """Which of `[budgets]` a run of this tenant has that names none."""
    per_day: Allowance | None = None
    """What all its runs together may use on one day (UTC)."""


class Limits(BaseModel):
    """What may be used on one day (UTC), whatever the budgets of single runs allow."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    per_day: Allowance | None = None
    """By everybody together."""
    agents: dict[Slug, Allowance] = {}
    """Agent → what its model calls may use per day."""


class CheckLimits(BaseModel):
    """Bounds on each check that is run."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    cpu_seconds: Annotated[int, Field(ge=1)] = 600
    memory_mb: Annotated[int, Field(ge=64)] = 2048
    output_mb: Annotated[int, Field(ge=1)] = 16
    """What a check may print; it is killed when it prints more."""
    require_isolation: bool = False
    """Refuse to run checks where the network cannot be taken from them."""


class Disagreement(NamedTuple):
    """Two places of a configuration that cannot both be right."""

    key: tuple[str | int, ...]
    """The later of the two."""
    message: str


def disagreements(roles: Mapping[str, Role], pipelines: Mapping[str, Sequence[Stage]]) -> list[Disagreement]:
    """Everything in which roles and pipelines do not fit together, in their order."""
    found: list[Disagreement] = []
    owners: dict[str, str] = {}
    for agent, role in roles.items():
        if agent != role.agent:
            found.append(Disagreement(("roles", agent), f"this is the role of {role.agent!r}"))
        if (other := owners.setdefault(role.task_type, agent)) != agent:
            told = f"{role.task_type!r} is already the task type of {other!r}: each has its own stream"
            found.append(Disagreement(("roles", agent, "task_type"), told))
    for name, stages in pipelines.items():
        for index, stage in enumerate(stages):
            found += _misfits(("pipelines", name, "stages", index), stage, roles)
    return found


def _misfits(key: tuple[str | int, ...], stage: Stage, roles: Mapping[str, Role]) -> list[Disagreement]:
    role = roles.get(stage.agent)
    if role is None:
        return [Disagreement((*key, "agent"), f"there is no role {stage.agent!r}; there are {', '.join(roles)}")]
    found = []
    if stage.task_type != role.task_type:
        told = f"stage {stage.name!r} is of type {stage.task_type!r}, but {role.agent} does {role.task_type!r}"
        found.append(Disagreement((*key, "task_type"), told))
    if stage.kind != role.reports:
        told = f"stage {stage.name!r} wants a {stage.kind} report, but {role.agent} writes {role.reports} reports"
        found.append(Disagreement((*key, "kind"), told))
    return found


def misjudged(criteria: Collection[str], judges: Mapping[str, JudgeConfig]) -> list[Disagreement]:
    """Criteria that a judge cannot have: its kind does not know them, or nobody does."""
    found: list[Disagreement] = []
    for name, judge in judges.items():
        known = CHECK_CRITERIA if judge.kind == KIND_CHECKS else (*BUILT_IN_QUESTIONS, *criteria)
        for index, criterion in enumerate(judge.criteria):
            if criterion not in known:
                told = f"a judge of kind {judge.kind!r} has no criterion {criterion!r}; there are {', '.join(known)}"
                found.append(Disagreement(("judges", name, "criteria", index), told))
    return found


def unknown_callers(servers: Mapping[str, McpServer], agents: Collection[str]) -> list[Disagreement]:
    """Agents of MCP servers' allow-lists that do not exist."""
    return [
        Disagreement(("mcp", name, "agents", index), f"there is no role {agent!r}; there are {', '.join(agents)}")
        for name, server in servers.items()
        for index, agent in enumerate(server.agents)
        if agent not in agents
    ]


def unknown_spenders(budgets: Mapping[str, Budget], agents: Collection[str]) -> list[Disagreement]:
    """Agents of budgets that do not exist."""
    return [
        Disagreement(("budgets", name, "agents", agent), f"there is no role {agent!r}; there are {', '.join(agents)}")
        for name, budget in budgets.items()
        for agent in budget.agents
        if agent not in agents
    ]


class Config(BaseModel):
    """Everything in `coatcheck.toml`, with the defaults where it says nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    models: tuple[ModelName, ...] = ()
    """The chain of roles that name no models of their own; `COATCHECK_MODEL` goes before."""
    roles: dict[Slug, Role] = dict(DEFAULT_ROLES)
    """Agent → role; those of the file are added to the six of ours, or replace them."""
    pipelines: dict[Slug, Pipeline] = {DEFAULT_PIPELINE.name: DEFAULT_PIPELINE}
    """Name → stages; `default` is what a run takes that names none."""
    providers: dict[str, ProviderLimits] = {}
    """The part of a model's name before the colon → its limits."""
    prices: dict[ModelName, Price] = {}
    tenants: dict[Slug, Tenant] = {}
    """Those that are not named have weight 1."""
    budgets: dict[Slug, Budget] = {}
    """Name → what a run may spend that names it, or whose tenant does."""
    limits: Limits = Limits()
    checks: CheckLimits = CheckLimits()
    criteria: dict[Slug, Criterion] = {}
    """Name → question for judges that are models, besides those that are built in, or instead of one of them."""
    judges: dict[Slug, JudgeConfig] = {}
    """Name → judge, besides `checks`; without any, `scripted` stands in for a model."""
    mcp: dict[Slug, McpServer] = {}
    """Name → MCP server whose tools agents may call through the gateway."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if found := disagreements(self.roles, {name: pipeline.stages for name, pipeline in self.pipelines.items()}):
            raise ValueError("; ".join(f"{'.'.join(map(str, item.key))}: {item.message}" for item in found))
        return self

    @model_validator(mode="after")
    def _budgets_of_tenants_exist(self) -> Self:
        for name, tenant in self.tenants.items():
            if tenant.budget is not None and tenant.budget not in self.budgets:
                raise ValueError(f"tenants.{name}.budget: there is no budget {tenant.budget!r}")
        return self

    def callers(self) -> frozenset[str]:
        """Agents that may call tools of any MCP server."""
        return frozenset(agent for server in self.mcp.values() for agent in server.agents)

    @property
    def agents(self) -> tuple[str, ...]:
        """Every agent, ours first."""
        return tuple(self.roles)

    @property
    def streams(self) -> tuple[StreamSpec, ...]:
        """Every agent's stream, in the order of `agents`."""
        return tuple(deliverable_stream(role.agent, role.task_type) for role in self.roles.values())


DEFAULT_CONFIG = Config()
