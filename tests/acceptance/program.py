"""Runs the program `coatcheck` as a person would, in a process of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

from tests.acceptance.forked import run
from tests.forks import FORKS

COATCHECK = Path(sys.executable).parent / "coatcheck"
_OURS = ("COATCHECK_", "TEMPORAL_", "NATS_", "DATABASE_", "GATEWAY_DATABASE_", "OPENAI_", "ANTHROPIC_")
LONGEST_SECONDS = 120
_ONE_AT_A_TIME = Lock()
"""`multiprocessing` reads exit codes also when it starts a process; two threads that read one get it once."""


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
    """Run a command to its end, in the folder `cwd`, without waiting each time for the imports of what others wrote."""
    variables = environment(COATCHECK_DATA_DIR=str(data_dir), **variables)
    with TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("stdin", "stdout", "stderr")]
        for path, content in zip(streams, (stdin, b"", b""), strict=True):
            path.write_bytes(content)
        process = FORKS.Process(target=run, args=(arguments, variables, cwd or Path.cwd(), streams))
        with _ONE_AT_A_TIME:
            process.start()
        wait([process.sentinel], LONGEST_SECONDS)
        with _ONE_AT_A_TIME:
            process.join(0)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"{arguments} after {LONGEST_SECONDS} s: {streams[2].read_text()}")
        return _checked(Outcome(process.exitcode, streams[1].read_bytes().decode(), streams[2].read_bytes().decode()))


def installed(
    *arguments: str, data_dir: Path, stdin: bytes = b"", cwd: Path | None = None, **variables: str
) -> Outcome:
    """Run the installed program, from its first import on."""
    done = subprocess.run(
        [COATCHECK, *arguments],
        input=stdin,
        capture_output=True,
        env=environment(COATCHECK_DATA_DIR=str(data_dir), **variables),
        timeout=LONGEST_SECONDS,
        cwd=cwd,
        check=False,
    )
    return _checked(Outcome(done.returncode, done.stdout.decode(), done.stderr.decode()))


def _checked(outcome: Outcome) -> Outcome:
    assert "Traceback" not in outcome.err
    return outcome
