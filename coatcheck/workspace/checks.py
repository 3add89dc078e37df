"""Evidence: the declared checks of all stages, really run, over nothing but the stages' files.

The checks of each stage have a folder of their own, made from the artifacts and removed at the end: what an agent left
in its workspace beside its artifacts cannot make a check pass, and neither can another stage's check. In it are the
files of all stages, so that a page's check may start the backend; what one check writes, the next one of its stage
sees. Checks that a stage has withdrawn run last: they cannot take the time of the others, and find the files as they
were delivered. A run that was cut off is run again from the beginning: there is nothing to go on from, and nothing
outside has changed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coatcheck.economy.grants import PLAIN, Grant
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
    withdrawn: Sequence[Check] = ()
    """Not declared any more, and run all the same."""


class CheckRunner:
    """Runs checks on this machine."""

    def __init__(self, sandbox: Sandbox, base: Path, *, grant: Callable[[], Awaitable[Grant]] | None = None) -> None:
        """Keep what is needed for a run.

        Args:
            sandbox: Confines each check.
            base: The worker's folder of workspaces, where each run has a folder for as long as it takes.
            grant: Asked before each check what it has of the machine; `None` where nothing is shared out.
        """
        self._sandbox = sandbox
        self._grant = grant
        self._folder = WorkspaceFolder(base)

    async def run(self, stages: Sequence[StageFiles]) -> Evidence:
        """Run the checks of all stages, each in its stage's folder.

        Returns:
            One result per check, in the order of the stages, the withdrawn ones after all others; none when no stage
            has a check.

        Raises:
            ArtifactInvalidError: files that cannot be put into a folder; no check was run.
            ChecksUnavailableError: the system refuses the isolation.
        """
        evidence = Evidence(isolation=self._sandbox.isolation)
        deadline = asyncio.get_running_loop().time() + RUN_SECONDS
        declared = [(item.stage, item.checks) for item in stages]
        withdrawn = [(item.stage, item.withdrawn) for item in stages]
        for stage, checks in (*declared, *withdrawn):
            if checks:
                evidence.results += await self._run_all(stage, checks, stages, deadline)
        return evidence

    async def _run_all(
        self, stage: str, checks: Sequence[Check], stages: Sequence[StageFiles], deadline: float
    ) -> list[CheckResult]:
        """Run the checks of one stage over files that nobody has touched; `deadline` is by the loop's clock."""
        results = []
        with ExitStack() as stack:
            workspace = stack.enter_context(self._folder.open("checks", stage))
            for item in stages:
                await asyncio.to_thread(workspace.add_stage, item.stage, item.files)
            for check in checks:
                await failpoint("checks.before_run")
                left = max(deadline - asyncio.get_running_loop().time(), LEAST_SECONDS)
                results.append(await self._run(stage, check, workspace, left))
                await failpoint("checks.after_run")
            await asyncio.to_thread(stack.close)  # many files take seconds to remove
        return results

    async def _run(self, stage: str, check: Check, workspace: Workspace, left_seconds: float) -> CheckResult:
        grant = PLAIN if self._grant is None else await self._grant()
        finished = await self._sandbox.run(
            check.command,
            grant=grant,
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
