"""Runs one command confined: a check, or a coding agent's command line. `isolation` says what holds at which level.

Whatever happens, nothing of the command is left when `Sandbox.run` returns or raises, nor when the worker is killed:
that is the launcher's work (`coatcheck.workspace.launcher`). Standard input is a file without a name and not a pipe, so
that a program which does not read its 256 KB prompt blocks nobody. A command that fails is a result, not an exception.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final

from coatcheck.economy.grants import PLAIN, Grant
from coatcheck.errors import ChecksUnavailableError
from coatcheck.workspace.isolation import (
    ISOLATION_HINT,
    confinement_of,
    detect_isolation,
    launcher_command,
    refusal,
    visible_files,
)
from coatcheck.workspace.launcher import Launch, Report
from coatcheck.workspace.running import Running, harmless
from schemas.config import CheckLimits
from schemas.evidence import MAX_OUTPUT_TAIL_CHARACTERS, CheckOutcome, Isolation

__all__ = ["Finished", "Sandbox", "detect_isolation"]

MAX_FILE_BYTES: Final = 512 * 1024**2
"""Of one file that a command writes: 8 times what an artifact may have, for a database or a build's archive."""
MAX_OPEN_FILES: Final = 4096
"""Of one process; test runners and build tools need some hundreds."""
_LAUNCHER_SECONDS: Final = 20.0
"""How much longer than its command a launcher may take: it starts in 0.1 s, and gives a stuck process up after 10 s."""
_AUTOGROUP_TRIES: Final = 3
_AUTOGROUP_PAUSE_SECONDS: Final = 0.1
_LIMIT_SIGNALS: Final = {-signal.SIGXCPU: "CPU time", -signal.SIGXFSZ: "file size"}


@dataclass
class Finished:
    """How a command ended."""

    outcome: CheckOutcome
    exit_code: int | None
    """Negative: ended by that signal; `None`: never started."""
    seconds: float
    output_tail: str
    """Standard output and error, interleaved; a last line in brackets says why it was killed or not started."""


class Sandbox:
    """Runs commands at one level of isolation."""

    def __init__(self, limits: CheckLimits, *, isolation: Isolation | None = None, hidden: Sequence[Path] = ()) -> None:
        """Choose the level.

        Args:
            limits: Bounds on each process of a command, and on the output of all.
            isolation: The level; the best one that works here when absent.
            hidden: Folders that no command may see: the data folder, the NATS keys. Homes are hidden anyway.

        Raises:
            ChecksUnavailableError: `isolation` does not work here, or the limits require more than there is.
        """
        self.isolation = isolation or detect_isolation()
        if (reason := refusal(self.isolation)) is not None:
            raise ChecksUnavailableError(f"no isolation by {self.isolation}: {reason}", hint=ISOLATION_HINT)
        if limits.require_isolation and self.isolation is Isolation.LIMITS:
            raise ChecksUnavailableError(
                "checks must be isolated (checks.require_isolation), but this system cannot take the network from them",
                hint=ISOLATION_HINT,
            )
        self._limits = limits
        self._hidden = tuple(hidden)

    async def run(  # noqa: PLR0913  what, where, with what, for how long
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        root: Path,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        network: bool = False,
        timeout_seconds: float,
        on_output: Callable[[bytes], None] | None = None,
        grant: Grant = PLAIN,
    ) -> Finished:
        """Run a command until it ends or is killed; on cancellation it gets SIGTERM and 2 s first.

        Args:
            argv: Program and arguments; `python` is our own interpreter.
            cwd: Working directory, in `root`.
            root: The folder that it may write, and its HOME.
            stdin: Standard input, of any size.
            env: Variables besides PATH, HOME, LANG and TMPDIR, or in their place. A HOME of its own (a coding agent's
                login is there) is visible and writable.
            network: Leave it the network, where the level could take it.
            timeout_seconds: Wall time until it is killed.
            on_output: Called with each piece of the output as it comes.
            grant: What it has of the machine beside other commands.

        Raises:
            ChecksUnavailableError: the system refuses the isolation now.
        """
        root, cwd = map(Path.resolve, (root, cwd))  # links to them may be hidden
        scratch = Path(tempfile.mkdtemp(prefix=".tmp-", dir=root))  # below the root: swept with it after a kill -9
        launch = self._launch(
            argv, cwd, root, scratch, env or {}, network=network, timeout_seconds=timeout_seconds, grant=grant
        )
        try:
            running = self._start(launch, stdin, on_output, niceness=grant.niceness)
            report = await running.until_end(timeout_seconds + _LAUNCHER_SECONDS)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if report.ending == "unavailable":
            raise ChecksUnavailableError(
                f"no isolation by {self.isolation}: {report.reason}", hint="`coatcheck doctor` shows the level"
            )
        return _finished(report, running, self._limits)

    def _launch(
        self,
        argv: Sequence[str],
        cwd: Path,
        root: Path,
        scratch: Path,
        env: Mapping[str, str],
        *,
        network: bool,
        timeout_seconds: float,
        grant: Grant,
    ) -> Launch:
        home = Path(env["HOME"]) if "HOME" in env else None
        program = sys.executable if argv[0] in {"python", "python3"} else argv[0]
        ours = _folder_of_python(scratch)
        own = {"HOME": str(root), "LANG": "C.UTF-8", "TMPDIR": str(scratch), "PATH": os.environ.get("PATH", os.defpath)}
        environment = {**own, **env}
        environment["PATH"] = f"{ours}{os.pathsep}{environment['PATH']}"
        return Launch(
            argv=[program, *argv[1:]],
            cwd=str(cwd),
            environment=environment,
            timeout_seconds=timeout_seconds,
            limits={
                "RLIMIT_CPU": self._limits.cpu_seconds,
                "RLIMIT_AS": int(self._limits.memory_mb * grant.memory) * 1024**2,
                "RLIMIT_FSIZE": MAX_FILE_BYTES,
                "RLIMIT_NOFILE": MAX_OPEN_FILES,
                "RLIMIT_CORE": 0,
            },
            same_session=bool(grant.niceness),
            confinement=confinement_of(self.isolation),
            network=network,
            view=list(visible_files(root, home=home, hidden=self._hidden, network=network)),
        )

    def _start(
        self, launch: Launch, stdin: bytes, on_output: Callable[[bytes], None] | None, *, niceness: int
    ) -> Running:
        """Not by asyncio: a start that can be cancelled half-way is one more state to clean up."""
        ours, theirs = socket.socketpair()
        try:
            with theirs, _nameless(stdin) as source:
                process = subprocess.Popen(  # noqa: S603  our own launcher
                    launcher_command(self.isolation, launch, theirs.fileno()),
                    stdin=source,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env={},
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C is the worker's to answer
                )
                _be_nice(process.pid, niceness)
        except BaseException:
            ours.close()
            raise
        running = Running(process, ours, self._limits.output_mb * 1024**2, on_output)
        running.say(json.dumps(asdict(launch)).encode() + b"\n")
        return running


def _be_nice(pid: int, niceness: int) -> None:
    """Let the launcher, and the command that it starts, have less of the CPU than others that want it, too.

    Where Linux groups processes by session (autogroup), a session's niceness counts and that of its processes does not.
    Best effort: where neither is there, or the command begins sessions of its own, it runs as any other.
    """
    if not niceness:
        return
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, niceness)
    for _ in range(_AUTOGROUP_TRIES):
        try:
            Path(f"/proc/{pid}/autogroup").write_text(str(niceness), encoding="ascii")
        except BlockingIOError:  # one such change in 0.1 s for all that are not root
            time.sleep(_AUTOGROUP_PAUSE_SECONDS)
        except OSError:
            return
        else:
            return


def _folder_of_python(scratch: Path) -> Path:
    """Where our interpreter is called `python`, for programs that call it: some systems have only a `python3`."""
    folder = Path(sys.executable).parent
    if not (folder / "python").exists():
        folder = scratch / "bin"
        folder.mkdir()
        (folder / "python").symlink_to(sys.executable)
    return folder


def _nameless(data: bytes) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115  the caller closes it
    file.write(data)
    file.seek(0)
    return file


def _finished(report: Report, running: Running, limits: CheckLimits) -> Finished:
    outcome, note = _judge(report, running, limits)
    tail = running.tail[-MAX_OUTPUT_TAIL_CHARACTERS:]
    if note:
        note = "[" + harmless(note)[: MAX_OUTPUT_TAIL_CHARACTERS // 2] + "]\n"
        tail = f"{tail.rstrip()}\n"[-(MAX_OUTPUT_TAIL_CHARACTERS - len(note)) :].lstrip("\n") + note
    return Finished(outcome, report.exit_code, report.seconds, tail)


def _judge(report: Report, running: Running, limits: CheckLimits) -> tuple[CheckOutcome, str]:
    """The outcome, and the reason where the output does not say it."""
    if report.ending == "not_started":
        return CheckOutcome.NOT_STARTED, f"not started: {report.reason}"
    if running.printed_too_much:
        return CheckOutcome.TIMED_OUT, f"killed: more than {limits.output_mb} MB of output"
    if report.ending == "time":
        return CheckOutcome.TIMED_OUT, f"killed after {report.seconds:.0f} s"
    if report.exit_code in _LIMIT_SIGNALS:
        return CheckOutcome.TIMED_OUT, f"killed: limit of {_LIMIT_SIGNALS[report.exit_code]}"
    if report.ending == "exited" and report.exit_code == 0:
        return CheckOutcome.PASSED, ""
    return CheckOutcome.FAILED, f"killed: {report.reason}" if report.reason else ""
