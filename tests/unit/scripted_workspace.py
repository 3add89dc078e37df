"""A workspace in a folder for the scripted author's tests: files are really written and checks are really run.

It has none of the product's confinement, which has tests of its own; its answers have the product's form.
"""

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic_ai import ModelRetry

from coatcheck.agents.evidence import in_words
from schemas.evidence import Check, CheckOutcome, CheckResult, Evidence, Isolation


class FolderWorkspace:
    """One folder per stage; the declared checks of all stages."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.declared: dict[str, Sequence[Check]] = {}

    def write(self, stage: str, path: str, content: str) -> str:
        """Write a file of that stage."""
        if not path.startswith(f"{stage}/") or ".." in path:
            raise ModelRetry(f"{path} is not below {stage}/")
        (self.root / stage).mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(content.encode("utf-8"))
        return f"wrote {path}"

    def patch(self, stage: str, patch: str) -> str:
        """Apply a unified diff of one file; every line of its context has to be there."""
        header = re.match(r"--- a/(.+)\n\+\+\+ b/(.+)\n", patch)
        if header is None or header[1] != header[2] or not header[1].startswith(f"{stage}/"):
            raise ModelRetry("this is not a diff of a file of yours")
        lines = (self.root / header[1]).read_bytes().decode().split("\n")
        offset = 0
        hunks = re.findall(r"^@@ -(\d+),\d+ \+\d+,\d+ @@\n((?:[ +-].*\n)+)", patch, re.MULTILINE)
        for start, body in hunks:
            marked = body.removesuffix("\n").split("\n")
            old = [line[1:] for line in marked if line[0] in " -"]
            new = [line[1:] for line in marked if line[0] in " +"]
            first = int(start) - 1 + offset
            if lines[first : first + len(old)] != old:
                raise ModelRetry(f"the diff does not fit at line {start}")
            lines[first : first + len(old)] = new
            offset += len(new) - len(old)
        self.write(stage, header[1], "\n".join(lines))
        return f"changed {header[1]}"

    def search(self, pattern: str, folder: str) -> str:
        """Matching lines as `path:line: text`."""
        found = [
            f"{path.relative_to(self.root)}:{number}: {line}"
            for path in sorted((self.root / folder).rglob("*.*"))
            for number, line in enumerate(path.read_bytes().decode().split("\n"), 1)
            if re.search(pattern, line)
        ]
        return "\n".join(found) or "Nothing matches."

    def run_checks(self, stage: str, own: Sequence[Check]) -> str:
        """Run what the other stages have declared, and `own`."""
        checks = [(name, item) for name, items in self.declared.items() if name != stage for item in items]
        results = [self._run(name, item) for name, item in [*checks, *((stage, item) for item in own)]]
        return in_words(Evidence(isolation=Isolation.LIMITS, results=results))

    def _run(self, stage: str, check: Check) -> CheckResult:
        begin = time.monotonic()
        program, *arguments = check.command
        assert program == "python"
        done = subprocess.run(
            [sys.executable, "-B", *arguments],
            cwd=self.root / stage,
            env={"PATH": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=check.timeout_seconds,
        )
        return CheckResult(
            stage=stage,
            name=check.name,
            command=check.command,
            outcome=CheckOutcome.FAILED if done.returncode else CheckOutcome.PASSED,
            exit_code=done.returncode,
            seconds=time.monotonic() - begin,
            output_tail=done.stdout.decode()[-4000:],
        )
