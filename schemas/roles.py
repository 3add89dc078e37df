"""Roles: who does what kind of work, with which prompt, models, tools and limits. Data only; teams add their own."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.deliverable import ArtifactPath
from schemas.pipeline import StageKind
from schemas.subjects import Slug

ModelName = Annotated[str, Field(pattern=r"^(scripted|[a-z0-9_-]+:\S+)$", max_length=200)]
"""`provider:model`, such as `openai:gpt-5-mini`."""

ToolName = Literal[
    "fetch_deliverable", "list_files", "read_file", "write_file", "search_files", "apply_patch", "run_checks"
]
FETCH_DELIVERABLE: Final = "fetch_deliverable"
"""`fetch_deliverable(stage, offset)`: more of a deliverable, or one of an earlier stage that was not handed."""
LIST_FILES: Final = "list_files"
"""`list_files(folder)`: paths and sizes in the workspace, one folder per stage."""
READ_FILE: Final = "read_file"
"""`read_file(path, offset)`."""
WRITE_FILE: Final = "write_file"
"""`write_file(path, content)`: whole files, only below the stage's own folder."""
SEARCH_FILES: Final = "search_files"
"""`search_files(pattern, folder)`: lines that match a regular expression."""
APPLY_PATCH: Final = "apply_patch"
"""`apply_patch(patch)`: a unified diff, applied whole or not at all."""
RUN_CHECKS: Final = "run_checks"
"""`run_checks(checks)`: runs the declared checks of all stages, and the given ones of one's own."""
SUBMIT_REPORT: Final = "submit_report"
"""The output tool: calling it ends the work."""

READING_TOOLS: Final[tuple[ToolName, ...]] = (FETCH_DELIVERABLE, LIST_FILES, READ_FILE, SEARCH_FILES)
BUILDING_TOOLS: Final[tuple[ToolName, ...]] = (*READING_TOOLS, WRITE_FILE, APPLY_PATCH, RUN_CHECKS)


class Role(BaseModel):
    """One agent's job. The activity type is `<agent>.<task_type>`, the stream `agog_features_<task_type>`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    agent: Slug
    task_type: Slug
    reports: StageKind = StageKind.WORK
    """The form of the report: work, a review with findings and a verdict, or a test result."""
    kind: Literal["llm", "command"] = "llm"
    """`llm`: a model through the LLM proxy. `command`: a coding agent's command line."""

    prompt: Annotated[str, Field(pattern=r"\.md$")] | None = None
    """The instructions: a file of ours in `coatcheck/agents/prompts`, or one beside `coatcheck.toml`."""
    instructions: Annotated[str | None, Field(exclude=True)] = None
    """The text of `prompt`, filled in when a configuration is loaded; not to be set in a file."""
    models: tuple[ModelName, ...] = ()
    """`provider:model` in order of preference; the LLM proxy's own chain when empty."""
    tools: tuple[ToolName, ...] = (FETCH_DELIVERABLE,)
    """What the loop offers besides the output tool."""
    max_turns: Annotated[int, Field(ge=1, le=200)] = 12
    """Model calls of one round, tool calls and re-asked answers included; then the stage ends with `agent.limit`."""
    output_retries: Annotated[int, Field(ge=0, le=10)] = 2
    """How often an invalid report is sent back with its errors before the stage fails."""

    evidence: Literal["required", "if_declared"] = "required"
    """For a test: whether a pass needs checks that ran, or only that those which are declared passed."""

    command: tuple[str, ...] = ()
    """For `command`: program and arguments. The prompt comes on standard input, the folder is the stage's own."""
    deliverable: ArtifactPath = "DELIVERABLE.md"
    """For `command`: the file that has to be there at the end; `REPORT.json` beside it may hold the other fields."""
    timeout_seconds: Annotated[int, Field(ge=1, le=3300)] = 1800
    """For `command`: then its whole process group is killed."""
    env: tuple[str, ...] = ()
    """For `command`: names of variables of the worker that it may see, besides PATH, HOME, LANG and TERM."""
    network: bool = True
    """For `command`: whether it may use the network, as most coding agents must."""

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Self:
        if self.kind == "command" and not self.command:
            raise ValueError('kind \'command\' needs a command, such as ["my-agent", "--stdin"]')
        if self.kind == "llm" and self.command:
            raise ValueError("a command is given, but kind is 'llm': say kind = \"command\"")
        if self.kind == "llm" and self.prompt is None and self.instructions is None:
            raise ValueError("kind 'llm' needs a prompt file")
        return self


DEFAULT_ROLES: Final[Mapping[str, Role]] = {
    role.agent: role
    for role in (
        Role(agent="cynthia", task_type="research", prompt="research.md"),
        Role(agent="sylvia", task_type="critique", prompt="critique.md", reports=StageKind.REVIEW),
        Role(agent="roy", task_type="backend", prompt="backend.md", tools=BUILDING_TOOLS, max_turns=60),
        Role(agent="jen", task_type="frontend", prompt="frontend.md", tools=BUILDING_TOOLS, max_turns=60),
        Role(
            agent="billy",
            task_type="qa",
            prompt="qa.md",
            reports=StageKind.TEST,
            tools=(*READING_TOOLS, RUN_CHECKS),
            max_turns=40,
        ),
        Role(agent="priya", task_type="statistics", prompt="statistics.md"),
    )
}
"""Agent → role: the six agents of seed 003, each with its stream."""
