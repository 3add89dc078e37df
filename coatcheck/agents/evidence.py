"""What evidence means for a test's verdict, and how it is shown to people, agents and in a notice.

An agent's claim counts only as far as the checks bear it out: a pass with failed checks, or with none where some are
required, becomes a fail. The report keeps what was claimed.
"""

from typing import Final

from coatcheck.messaging.notices import cut_to_bytes
from schemas.evidence import CheckLine, CheckOutcome, CheckResult, Evidence, EvidenceSummary

NOTICE_BYTES: Final = 300
"""For evidence in a notice of 1 KB, whose other fields and summary take at most 700."""
TAIL_FIELD_BYTES: Final = 12
"""Name and quotes of a tail in JSON."""
_TAIL_LINES: Final = 40


def objection(evidence: Evidence, *, own: str, required: bool) -> str | None:
    """Why a pass that the stage `own` claims cannot stand, or `None` when the evidence bears it out.

    A tester's own checks can only count against the work: nobody proves another's work with a check of his own choice.
    """
    if failures := evidence.failures:
        names = ", ".join(f"{item.stage}/{item.name}" for item in failures)
        return f"{len(failures)} of {len(evidence.results)} checks did not pass: {names}"
    if required and all(result.stage == own for result in evidence.results):
        return "no other stage has declared a check, so there is no evidence"
    return None


def summarise(evidence: Evidence) -> EvidenceSummary:
    """The counts, and as many checks as fit into a notice: failed ones first, each with the end of its output."""
    failed = evidence.failures
    summary = EvidenceSummary(passed=len(evidence.results) - len(failed), failed=len(failed))
    for result in (*failed, *(item for item in evidence.results if item not in failed)):
        line = CheckLine(check=f"{result.stage}/{result.name}", exit=result.exit_code, seconds=round(result.seconds, 2))
        longer = summary.model_copy(update={"checks": [*summary.checks, line]})
        if (room := NOTICE_BYTES - len(longer.model_dump_json(exclude_none=True).encode())) < 0:
            break
        if result in failed:
            line.tail = cut_to_bytes(_last_line(result), room - TAIL_FIELD_BYTES) or None
        summary = longer
    return summary


def in_words(evidence: Evidence) -> str:
    """The answer of the tool `run_checks`."""
    passed = len(evidence.results) - len(evidence.failures)
    if not evidence.results:
        return "0 of 0 checks passed: no stage has declared a check"
    lines = [f"{passed} of {len(evidence.results)} checks passed"]
    for item in evidence.results:
        lines.append(f"{item.stage}/{item.name}: {_ending(item)}")
        if item.outcome is not CheckOutcome.PASSED:
            lines += [f"    {line}" for line in item.output_tail.splitlines()[-_TAIL_LINES:]]
    return "\n".join(lines)


def as_markdown(evidence: Evidence, objection_text: str | None) -> str:
    """The section that is added to a test's deliverable, by the pipeline and not by the agent."""
    lines = ["", "", "## Evidence", "", f"Run by the pipeline after the report, isolation: {evidence.isolation}.", ""]
    if objection_text is not None:
        lines += [f"**The verdict “pass” was not accepted: {objection_text}.**", ""]
    if evidence.results:
        lines += ["| check | command | result |", "| --- | --- | --- |"]
    for item in evidence.results:
        command = " ".join(item.command).replace("|", "\\|").replace("`", "'")
        lines.append(f"| {item.stage}/{item.name} | `{command}` | {_ending(item)} |")
    for item in evidence.failures:
        lines += ["", f"Output of {item.stage}/{item.name}:", "", *(f"    {line}" for line in _tail(item))]
    return "\n".join(lines) + "\n"


def _ending(result: CheckResult) -> str:
    code = "" if result.exit_code is None else f", exit code {result.exit_code}"
    return f"{result.outcome}{code}, {result.seconds:.2f} s"


def _tail(result: CheckResult) -> list[str]:
    return result.output_tail.splitlines()[-_TAIL_LINES:]


def _last_line(result: CheckResult) -> str:
    return next((line for line in reversed(_tail(result)) if line.strip()), "").strip()
