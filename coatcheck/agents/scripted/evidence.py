"""Reads what `run_checks` answered: which checks ran, how each ended, and which test failed with what message.

Lines of a check's own output are indented, so whatever a program prints, it cannot look like a result. A text that
contradicts itself counts as a failure.
"""

import re
from dataclasses import dataclass, field
from typing import Final

from coatcheck.agents.scripted.reading import Assignment
from coatcheck.agents.scripted.words import clean, cut
from schemas.evidence import CheckOutcome
from schemas.roles import RUN_CHECKS

MAX_TESTS: Final = 5
"""Failed tests that are told of one check."""

_COUNT: Final = re.compile(r"(\d+) of (\d+) checks passed")
_RESULT: Final = re.compile(
    rf"^([a-z0-9-]+)/(.+): ({'|'.join(CheckOutcome)})(?:, exit code (-?\d+))?, (\d+\.\d+) s$", re.MULTILINE
)
_TEST: Final = re.compile(r"^ {4}(?:FAIL|ERROR): (\S+)(.*?)(?=^ {4}(?:FAIL|ERROR): |\Z)", re.MULTILINE | re.DOTALL)
_MESSAGE: Final = re.compile(r"^ {4}([A-Za-z_.]*(?:Error|Exception|Exit)\b.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Failure:
    """One test that failed, or a check that says no more than its end."""

    test: str
    """Name of the test; empty when the output names none."""
    message: str


@dataclass(frozen=True)
class Result:
    """One check that was run."""

    stage: str
    name: str
    outcome: str
    exit_code: str
    seconds: str
    failures: tuple[Failure, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether it ended with exit code 0."""
        return self.outcome == CheckOutcome.PASSED


@dataclass(frozen=True)
class CheckRun:
    """One answer of `run_checks`."""

    results: tuple[Result, ...] = field(default=())
    contradiction: str = ""
    """What does not fit together in it, or why it was refused."""

    @property
    def passed(self) -> bool:
        """Whether at least one check ran and all passed."""
        return bool(self.results) and not self.contradiction and all(item.passed for item in self.results)

    @property
    def failed(self) -> bool:
        """Whether anything is wrong; a run of no checks is neither passed nor failed."""
        return bool(self.contradiction) or any(not item.passed for item in self.results)


def check_run(task: Assignment) -> CheckRun | None:
    """The newest answer of `run_checks` in this conversation, or `None` without one."""
    calls = task.calls(RUN_CHECKS)
    if not calls:
        return None
    if calls[-1].refused:
        return CheckRun(contradiction=f"the checks could not be run: {cut(clean(calls[-1].answer), 200)}")
    return parse(calls[-1].answer)


def parse(text: str) -> CheckRun:
    """Understand the answer; its first line has to agree with the lines of the checks."""
    count = _COUNT.match(text)
    found = list(_RESULT.finditer(text))
    ends = [*(match.start() for match in found), len(text)][1:]
    results = tuple(_result(match, text[match.end() : end]) for match, end in zip(found, ends, strict=True))
    counted = (sum(item.passed for item in results), len(results))
    told = (int(count[1]), int(count[2])) if count else None
    return CheckRun(results, "" if told == counted else "the answer of the checks contradicts itself")


def _result(match: re.Match[str], output: str) -> Result:
    stage, name, outcome, code, seconds = match.groups()
    failures = () if outcome == CheckOutcome.PASSED else tuple(_failures(output))
    return Result(stage, clean(name), outcome, code or "none", seconds, failures)


def _failures(output: str) -> list[Failure]:
    tests = [Failure(clean(name), _message(rest)) for name, rest in _TEST.findall(output)[:MAX_TESTS]]
    return tests or [Failure("", _message(output))]


def _message(output: str) -> str:
    """The line that names the error, else the last one that says anything."""
    lines = _MESSAGE.findall(output) or [line for line in output.split("\n") if line.strip()] or ["no output"]
    return cut(clean(lines[-1]), 160)
