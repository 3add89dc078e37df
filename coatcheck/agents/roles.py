"""Roles: who does what kind of work, with which prompt, model, tools and limits. Data only; the loop is elsewhere."""

from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from schemas.pipeline import StageKind
from schemas.subjects import Slug

FETCH_DELIVERABLE: Final = "fetch_deliverable"
"""Tool `fetch_deliverable(stage, offset)`: more of a deliverable, or one of an earlier stage that was not handed."""
SUBMIT_REPORT: Final = "submit_report"
"""The output tool: calling it ends the work."""


class Role(BaseModel):
    """One agent's job. The activity type is `<agent>.<task_type>`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    agent: Slug
    task_type: Slug
    kind: StageKind = StageKind.WORK
    """Decides the form of the report (`coatcheck.agents.reports`)."""
    prompt: Annotated[str, Field(pattern=r"^[a-z0-9-]+\.md$")]
    """File in `coatcheck/agents/prompts`."""
    model: str | None = None
    """`provider:model`; the LLM proxy's default when absent."""
    tools: tuple[str, ...] = (FETCH_DELIVERABLE,)
    """Names of the tools that the loop offers besides the output tool."""
    max_turns: Annotated[int, Field(ge=1, le=100)] = 12
    """Model calls of one round, tool calls and re-asked answers included; then the stage ends with `agent.limit`."""
    output_retries: Annotated[int, Field(ge=0, le=10)] = 2
    """How often an invalid report is sent back with its errors before the stage fails."""


DEFAULT_ROLES: Final[Mapping[str, Role]] = {
    role.agent: role
    for role in (
        Role(agent="cynthia", task_type="research", prompt="research.md"),
        Role(agent="sylvia", task_type="critique", prompt="critique.md", kind=StageKind.REVIEW),
        Role(agent="roy", task_type="backend", prompt="backend.md"),
        Role(agent="jen", task_type="frontend", prompt="frontend.md"),
        Role(agent="billy", task_type="qa", prompt="qa.md", kind=StageKind.TEST),
        Role(agent="priya", task_type="statistics", prompt="statistics.md"),
    )
}
"""Agent → role: the six agents of seed 003, each with its stream."""


@lru_cache(maxsize=64)
def load_instructions(role: Role) -> str:
    """Read the system prompt of `role`, once per process.

    Raises:
        FileNotFoundError: the package has no such prompt file.
    """
    return resources.files("coatcheck.agents").joinpath("prompts", role.prompt).read_text(encoding="utf-8").strip()
