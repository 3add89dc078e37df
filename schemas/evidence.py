"""Evidence: what the commands that a deliverable declares did when they were really run.

A deliverable declares its `checks` in its metadata; the QA stage's activity runs them over the artifacts of all stages,
after the agent has given its verdict and whatever that verdict is.
"""

from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

MAX_CHECKS: Final = 20
"""Per deliverable."""
MAX_OUTPUT_TAIL_CHARACTERS: Final = 4000
"""Of one check, in the deliverable's evidence; the notice has a line of it."""

Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def _check_argument(value: str) -> str:
    value.encode()  # a lone surrogate, which no message can carry, is a ValueError
    if "\0" in value:
        raise ValueError("an argument has a NUL")
    return value


Argument = Annotated[str, AfterValidator(_check_argument)]


class Check(BaseModel):
    """A command that proves that a stage's files work."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[Line, Field(max_length=60, pattern=r"^[^\x00-\x1f\x7f]+$")]
    """What it proves, such as `unit tests`."""
    command: Annotated[tuple[Argument, ...], Field(min_length=1, max_length=50)]
    """Program and arguments, run in the stage's own folder without a shell; `python` is our own interpreter."""
    timeout_seconds: Annotated[int, Field(ge=1, le=1800)] = 120


class Isolation(StrEnum):
    """How far a check is kept from the machine that runs it."""

    BUBBLEWRAP = "bubblewrap"
    """No network, own processes, the system read-only, nothing of the home folder: by `bwrap`."""
    NAMESPACES = "namespaces"
    """The same by our own launcher, on Linux 5.12 and newer."""
    LIMITS = "limits"
    """Stripped environment and resource limits; with Landlock homes and keys are hidden. The network is open."""


class CheckOutcome(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    """Exit code 0."""
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    """Killed after its time, or at a resource limit."""
    NOT_STARTED = "not_started"
    """The program does not exist or may not be run."""


class CheckResult(BaseModel):
    """One check, run once."""

    stage: str
    name: str
    command: tuple[str, ...]
    outcome: CheckOutcome
    exit_code: int | None = None
    """Negative: ended by that signal; `None`: never started."""
    seconds: float
    output_tail: str = ""
    """Last characters of standard output and error, interleaved; at most `MAX_OUTPUT_TAIL_CHARACTERS`."""


class Evidence(BaseModel):
    """What all declared checks did, in order of the stages; in the QA deliverable's metadata as `evidence`."""

    isolation: Isolation
    results: list[CheckResult] = []

    @property
    def holds(self) -> bool:
        """Whether there is any evidence, and all of it is good."""
        return bool(self.results) and not self.failures

    @property
    def failures(self) -> list[CheckResult]:
        """The checks that did not pass."""
        return [result for result in self.results if result.outcome is not CheckOutcome.PASSED]


class CheckLine(BaseModel):
    """One check in a notice."""

    check: str
    """`<stage>/<name>`."""
    exit: int | None = None
    seconds: float
    tail: str | None = None
    """The end of its output, of a failed check only, as much as fits."""


class EvidenceSummary(BaseModel):
    """Evidence in a notice: the counts, and the checks that fit, failed ones first."""

    passed: int
    failed: int
    checks: list[CheckLine] = []


def declared_checks(metadata: dict[str, Any]) -> list[Check]:
    """The checks in a deliverable's custom metadata.

    Raises:
        pydantic.ValidationError: they do not have the form of `Check`.
    """
    return [Check.model_validate(item) for item in metadata.get("checks") or []]
