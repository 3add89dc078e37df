"""Evidence: the declared checks of all stages, really run, over nothing but the stages' files.

Every run has a folder of its own, made from the artifacts and removed at the end: what an agent left in its workspace
beside its artifacts cannot make a check pass. The checks run one after another in the order of the stages, in one
folder, so that a page's check may start the backend of another stage; what one check writes, the next one sees. A run
that was cut off is run again from the beginning: there is nothing to go on from, and nothing outside has changed.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coatcheck.failpoints import failpoint
from coatcheck.workspace.files import Workspace
from coatcheck.workspace.folder import WorkspaceFolder
from coatcheck.workspace.sandbox import Sandbox
from schemas.evidence import Check, CheckResult, Evidence

RUN_SECONDS: Final = 1500.0
"""For all checks of one run: an attempt at a round has an hour, and may run them twice."""
LEAST_SECONDS: Final = 1.0
"""For a check whose time others have used up."""


@dataclass(frozen=True)
class StageFiles:
    """What one stage contributes."""

    stage: str
    files: Mapping[str, bytes]
    """Path below the stage's folder → content."""
    checks: Sequence[Check]


class CheckRunner:
    """Runs checks on this machine."""

    def __init__(self, sandbox: Sandbox, base: Path) -> None:
        """Keep what is needed for a run.

        Args:
            sandbox: Confines each check.
            base: The worker's folder of workspaces, where each run has a folder for as long as it takes.
        """
        self._sandbox = sandbox
        self._folder = WorkspaceFolder(base)

    async def run(self, stages: Sequence[StageFiles]) -> Evidence:
        """Run the checks of all stages, each in its stage's folder.

        Returns:
            One result per check, in order; none when no stage has a check.

        Raises:
            ArtifactInvalidError: files that cannot be put into a folder; no check was run.
            ChecksUnavailableError: the system refuses the isolation.
        """
        evidence = Evidence(isolation=self._sandbox.isolation)
        if not any(stage.checks for stage in stages):
            return evidence
        with self._folder.open("checks", stages[0].stage) as workspace:
            for stage in stages:
                await asyncio.to_thread(workspace.add_stage, stage.stage, stage.files)
            deadline = asyncio.get_running_loop().time() + RUN_SECONDS
            for stage in stages:
                for check in stage.checks:
                    await failpoint("checks.before_run")
                    left = max(deadline - asyncio.get_running_loop().time(), LEAST_SECONDS)
                    evidence.results.append(await self._run(stage.stage, check, workspace, left))
                    await failpoint("checks.after_run")
        return evidence

    async def _run(self, stage: str, check: Check, workspace: Workspace, left_seconds: float) -> CheckResult:
        finished = await self._sandbox.run(
            check.command,
            cwd=workspace.root / stage,
            root=workspace.root,
            timeout_seconds=min(check.timeout_seconds, left_seconds),
        )
        return CheckResult(
            stage=stage,
            name=check.name,
            command=check.command,
            outcome=finished.outcome,
            exit_code=finished.exit_code,
            seconds=round(finished.seconds, 3),
            output_tail=finished.output_tail,
        )
