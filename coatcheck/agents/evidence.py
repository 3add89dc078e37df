"""What evidence means for a test's verdict, and how it is shown to people, agents and in a notice.

An agent's claim counts only as far as the checks bear it out: a pass with failed checks, or with none where some are
required, becomes a fail. The report keeps what was claimed. A check that failed in the round before is not settled by
not declaring it any more: it is run all the same, until it passes or its stage declares one of this name.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, Final

from coatcheck.messaging.notices import cut_to_bytes
from schemas.evidence import Check, CheckLine, CheckOutcome, CheckResult, Evidence, EvidenceSummary

NOTICE_BYTES: Final = 300
"""For evidence in a notice of 1 KB, whose other fields and summary take at most 700."""
TAIL_FIELD_BYTES: Final = 12
"""Name and quotes of a tail in JSON."""
_TAIL_LINES: Final = 40
_LEAST_SECONDS: Final = 120
"""For a withdrawn check, whose own limit the evidence does not keep: what a check has that names none."""
_MOST_SECONDS: Final = 1800
"""What a check may have."""


class WithdrawnResult(CheckResult):
    """A check that failed in the round before and is not declared any more; stored as any other result."""

    failed_in_round: int
    """Of the tester's stage."""


def evidence_in(metadata: Mapping[str, Any]) -> Evidence | None:
    """What a test's deliverable keeps of its evidence.

    Raises:
        pydantic.ValidationError: it has not the form of `Evidence`.
    """
    return Evidence.model_validate(metadata["evidence"]) if metadata.get("evidence") is not None else None


def withdrawn_checks(last: Evidence | None, declared: Mapping[str, Collection[Check]]) -> dict[str, list[Check]]:
    """The checks that failed the last time and that nobody declares now, by stage, in the order in which they ran.

    A stage that declares a check of the same name has not withdrawn it, whatever the command is now: commands may be
    wrong too, and what takes their place is there to be read.

    Args:
        last: Of the tester's round before, withdrawn checks included; `None` in the first.
        declared: Stage → what it declares now.
    """
    found: dict[str, list[Check]] = {}
    for item in last.failures if last is not None else ():
        if all(check.name != item.name for check in declared.get(item.stage, ())):
            seconds = min(max(_LEAST_SECONDS, math.ceil(2 * item.seconds)), _MOST_SECONDS)
            found.setdefault(item.stage, []).append(
                Check(name=item.name, command=item.command, timeout_seconds=seconds)
            )
    return found


def mark_withdrawn(evidence: Evidence, withdrawn: Mapping[str, Collection[Check]], *, failed_in_round: int) -> Evidence:
    """The evidence with the results of withdrawn checks known as such."""
    names = {(stage, check.name) for stage, checks in withdrawn.items() for check in checks}
    results = [
        WithdrawnResult(**item.model_dump(), failed_in_round=failed_in_round)
        if (item.stage, item.name) in names
        else item
        for item in evidence.results
    ]
    return evidence.model_copy(update={"results": results})


def objection(evidence: Evidence, *, own: str, required: bool) -> str | None:
    """Why a pass that the stage `own` claims cannot stand, or `None` when the evidence bears it out.

    A tester's own checks can only count against the work: nobody proves another's work with a check of his own choice.
    So can withdrawn ones: their stage does not say any more that they prove anything.
    """
    if failures := evidence.failures:
        names = ", ".join(f"{item.stage}/{item.name}{_withdrawal(item)}" for item in failures)
        return f"{len(failures)} of {len(evidence.results)} checks did not pass: {names}"
    if required and all(item.stage == own or isinstance(item, WithdrawnResult) for item in evidence.results):
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
            lines += [f"    {line}" for line in (*_advice(item), *_tail(item))]
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
        lines += ["", *_advice(item)]
        lines += [f"Output of {item.stage}/{item.name}:", "", *(f"    {line}" for line in _tail(item))]
    return "\n".join(lines) + "\n"


def _withdrawal(result: CheckResult) -> str:
    """For behind the name of a check."""
    if not isinstance(result, WithdrawnResult):
        return ""
    return f" (dropped; failed in round {result.failed_in_round})"


def _advice(result: CheckResult) -> list[str]:
    """A line for those who can do something about a withdrawn check."""
    if not isinstance(result, WithdrawnResult):
        return []
    how = "not declared any more, but run until it passes or its stage declares a check of this name"
    return [f"{result.stage}/{result.name}{_withdrawal(result)}: {how}."]


def _ending(result: CheckResult) -> str:
    code = "" if result.exit_code is None else f", exit code {result.exit_code}"
    return f"{result.outcome}{code}, {result.seconds:.2f} s"


def _tail(result: CheckResult) -> list[str]:
    return result.output_tail.splitlines()[-_TAIL_LINES:]


def _last_line(result: CheckResult) -> str:
    return next((line for line in reversed(_tail(result)) if line.strip()), "").strip()
