"""Runs the default stages with the scripted author: real prompts, claims and tools, no servers."""

import hashlib
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any

from pydantic_ai import Agent, ModelRetry, ToolOutput
from pydantic_ai.messages import ModelMessage

from coatcheck.agents.instructions import load_instructions
from coatcheck.agents.prompt import build_prompt, deliverable_claim, deliverable_section, expand
from coatcheck.agents.reports import WorkReport, report_model
from coatcheck.agents.scripted import ScriptedModel
from schemas.activities import StageInputRef, StageOrder
from schemas.deliverable import DeliverableRef
from schemas.evidence import Check
from schemas.pipeline import DEFAULT_PIPELINE
from schemas.roles import APPLY_PATCH, DEFAULT_ROLES, RUN_CHECKS, SEARCH_FILES, SUBMIT_REPORT, WRITE_FILE
from schemas.streams import stream_name
from tests.unit.scripted_workspace import FolderWorkspace

TEXT_ROUNDS = ("research", "critique", "research", "critique", "backend", "frontend", "qa", "statistics")
"""Without a workspace: nothing is run, so nothing is found."""
ROUNDS = (*TEXT_ROUNDS[:-1], "backend", "qa", "statistics")
"""With one: the checks fail in the first round of QA and pass in the second."""


@dataclass
class Round:
    """What one round gave."""

    report: WorkReport
    turns: int
    input_tokens: int
    output_tokens: int
    prompt: str
    messages: list[ModelMessage]


@dataclass
class Run:
    """A run in memory; `rounds` is keyed `critique-2`."""

    feature: str
    brief: str
    model: ScriptedModel = field(default_factory=ScriptedModel)
    rounds: dict[str, Round] = field(default_factory=dict)
    shelf: dict[str, tuple[DeliverableRef, str]] = field(default_factory=dict)
    offer_tool: bool = True
    workspace: FolderWorkspace | None = None
    """With one, the roles get their tools; else only `fetch_deliverable`."""

    def text(self, name: str) -> str:
        """The report of a round, such as `critique-2`."""
        return self.rounds[name].report.report

    async def play(self, *stages: str) -> "Run":
        """Run these stages, one round each, or the whole default sequence."""
        for stage in stages or (ROUNDS if self.workspace else TEXT_ROUNDS):
            await self._round(stage)
        return self

    def order(self, stage: str, comment: str = "") -> StageOrder:
        """The order of the stage's next round, with the references that the workflow would hand over."""
        number = 1 + sum(name.rpartition("-")[0] == stage for name in self.rounds)
        names = [*DEFAULT_PIPELINE.stage(stage).needs, *([stage] if number > 1 else [])]
        if stage == "research" and number > 1:
            names.append("critique")
        if stage in {"backend", "frontend"} and "qa" in self.shelf:
            names.append("qa")
        return StageOrder(
            run_key="feature/test/run-1",
            feature=self.feature,
            stage=stage,
            round=number,
            inputs=[StageInputRef(stage=name, ref=self.shelf[name][0]) for name in names],
            tickets=[StageInputRef(stage=name, ref=self.shelf[name][0]) for name in self.shelf if name not in names],
            comment=comment,
        )

    async def _round(self, stage: str) -> None:
        role = DEFAULT_ROLES[DEFAULT_PIPELINE.stage(stage).agent]
        order = self.order(stage)
        prompt, claims = build_prompt(role, order)
        contents = dict(self.shelf.values())
        bodies = {claim.marker: contents[claim.deliverable] if claim.deliverable else self.brief for claim in claims}
        agent = Agent(
            self.model,
            output_type=ToolOutput(report_model(role.reports), name=SUBMIT_REPORT),
            instructions=load_instructions(role),
        )
        if self.offer_tool:
            agent.tool_plain(self.fetch_deliverable)
        if self.workspace is not None:
            _add_workspace(agent, self.workspace, stage, role.tools)
        result = await agent.run(expand(prompt, claims, bodies))
        usage, report = result.usage, result.output
        sha256 = hashlib.sha256(report.report.encode()).hexdigest()
        ref = DeliverableRef(
            stream=stream_name(role.task_type), sequence=len(self.rounds) + 1, sha256=sha256, bytes=len(report.report)
        )
        self.shelf[stage] = (ref, report.report)
        if self.workspace is not None:
            self.workspace.declared[stage] = report.checks
        self.rounds[f"{stage}-{order.round}"] = Round(
            report, usage.requests, usage.input_tokens, usage.output_tokens, prompt, result.all_messages()
        )

    def fetch_deliverable(self, stage: str, offset: int = 0) -> str:
        """Read what another stage of this run has delivered."""
        if stage not in self.shelf:
            raise ModelRetry(f"no stage {stage!r}")
        ref, text = self.shelf[stage]
        claim = deliverable_claim(ref, stage, offset)
        return expand(deliverable_section(claim, ref, stage), [claim], {claim.marker: text})


def _add_workspace(agent: Agent[None, Any], workspace: FolderWorkspace, stage: str, names: Container[str]) -> None:
    def write_file(path: str, content: str) -> str:
        return workspace.write(stage, path, content)

    def apply_patch(patch: str) -> str:
        return workspace.patch(stage, patch)

    def search_files(pattern: str, folder: str = "") -> str:
        return workspace.search(pattern, folder)

    def run_checks(checks: list[Check] | None = None) -> str:
        return workspace.run_checks(stage, checks or [])

    tools: dict[str, Callable[..., str]] = {
        WRITE_FILE: write_file,
        APPLY_PATCH: apply_patch,
        SEARCH_FILES: search_files,
        RUN_CHECKS: run_checks,
    }
    for name, tool in tools.items():
        if name in names:
            agent.tool_plain(sequential=name != SEARCH_FILES)(tool)
