"""What is handed in when nothing more may be spent: the model's own last report, or what it had said until then.

Either way the stage is blocked, so that a person sees the partial work and decides: more money, or as it is.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart

from coatcheck.agents.reports import MAX_BLOCKERS_CHARACTERS, Report, report_model
from schemas.budget import BLOCKED_BY_BUDGET
from schemas.notice import Verdict
from schemas.pipeline import StageKind
from schemas.roles import SUBMIT_REPORT

_ENDED: Final = (
    "# Partial work\n\nThis round ended before its report was written, since nothing more may be spent on it: {reason}."
    " The files that are delivered beside it are as they were then. What the agent had said follows; a further round "
    "begins with this text and these files.\n"
)
_SUMMARY: Final = "Ended before its report was written, since nothing more may be spent."


def blocked(report: Report, reason: str) -> Report:
    """The report, blocked by the budget whatever its author says."""
    return report.model_copy(update={"blockers": f"{BLOCKED_BY_BUDGET}{reason}"[:MAX_BLOCKERS_CHARACTERS]})


def partial_report(kind: StageKind, messages: Sequence[ModelMessage], reason: str, stage: str) -> Report:
    """A report in the author's place, with everything that it had said."""
    fields: dict[str, Any] = {
        "report": "\n\n".join([_ENDED.format(reason=reason), *_said(messages)]),
        "summary": _SUMMARY,
        "complexity": "Medium",
    }
    if kind is StageKind.REVIEW:
        finding = {
            "id": "budget",
            "severity": "major",
            "where": stage,
            "claim": "The review was not finished.",
            "wanted_change": "Nothing in the reviewed work; the review has to be done again.",
        }
        fields |= {"verdict": Verdict.REVISE, "findings": [finding]}
    elif kind is StageKind.TEST:
        fields |= {"verdict": Verdict.FAIL, "rework": [stage]}
    return blocked(report_model(kind).model_validate(fields), reason)


def _said(messages: Sequence[ModelMessage]) -> list[str]:
    """Texts of the model, and reports that it tried to submit, in order."""
    found = []
    for message in messages:
        for part in message.parts if isinstance(message, ModelResponse) else ():
            if isinstance(part, TextPart) and part.content.strip():
                found.append(part.content.strip())
            elif isinstance(part, ToolCallPart) and part.tool_name == SUBMIT_REPORT:
                found.append(_submitted(part))
    return [text for text in found if text]


def _submitted(part: ToolCallPart) -> str:
    try:
        fields = part.args_as_dict()
    except (ValueError, AssertionError):  # cut off in the middle, or no object
        return str(part.args or "")
    report = fields.get("report")
    return report if isinstance(report, str) else json.dumps(fields)
