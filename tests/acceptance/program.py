"""Runs the installed program `coatcheck` as a person would, in a process of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COATCHECK = Path(sys.executable).parent / "coatcheck"
_OURS = ("COATCHECK_", "TEMPORAL_", "NATS_", "DATABASE_", "GATEWAY_DATABASE_", "OPENAI_", "ANTHROPIC_")


@dataclass(frozen=True)
class Outcome:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its stdout as JSON."""
        return json.loads(self.out)


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without anything that points to servers, plus `variables`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return clean | variables


def coatcheck(
    *arguments: str, data_dir: Path, stdin: bytes = b"", cwd: Path | None = None, **variables: str
) -> Outcome:
    """Run a command to its end, in the folder `cwd`."""
    done = subprocess.run(
        [COATCHECK, *arguments],
        input=stdin,
        capture_output=True,
        env=environment(COATCHECK_DATA_DIR=str(data_dir), **variables),
        timeout=120,
        cwd=cwd,
        check=False,
    )
    outcome = Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert "Traceback" not in outcome.err
    return outcome
