"""What an agent hands in: the structured output of one round, one model per kind of stage.

The descriptions become the JSON schema of the output tool and the validation texts are what a model is re-asked
with, so both are written for a reader who has nothing else.
"""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from schemas.evidence import MAX_CHECKS, Check
from schemas.notice import Verdict
from schemas.pipeline import StageKind
from schemas.review import MAX_FINDINGS, FindingMark
from schemas.subjects import Slug

MIN_REPORT_CHARACTERS: Final = 200
"""Shorter is a refusal or an excuse, not a deliverable; the seed's reports are 5k to 15k tokens."""
MAX_SUMMARY_CHARACTERS: Final = 280
MAX_BLOCKERS_CHARACTERS: Final = 200
NO_BLOCKERS: Final = "None"
"""The one spelling of nothing."""

Complexity = Literal["Low", "Medium", "High"]
Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class WorkReport(BaseModel):
    """Submit the finished work of this round. Call it exactly once, when the report is complete."""

    model_config = ConfigDict(extra="forbid")

    report: str = Field(
        description="The whole deliverable as markdown: everything that the next stages need, since they see nothing "
        "else of your work but the files that you wrote with write_file, which are delivered beside it. Without that "
        "tool, code goes into fenced blocks, each with its file name on the first line as a comment.",
        min_length=MIN_REPORT_CHARACTERS,
    )
    summary: Line = Field(
        description="One or two plain sentences on the outcome, at most 280 characters; shown to people and to the "
        "orchestrator in place of the report.",
        max_length=MAX_SUMMARY_CHARACTERS,
    )
    complexity: Complexity = Field(description="How hard it is to build this feature, judged from what you know now.")
    blockers: str = Field(
        "None",
        description="What keeps the next stage from starting, in one sentence. Exactly 'None' when nothing does: "
        "anything else stops the pipeline and asks a person.",
        max_length=MAX_BLOCKERS_CHARACTERS,
    )
    checks: list[Check] = Field(
        default_factory=list,
        description="Commands that prove that your files work, run without network in your stage's folder, such as "
        "{name: 'unit tests', command: ['python', '-m', 'unittest']}. The quality check runs them and believes only "
        "them. Empty when you deliver no files.",
        max_length=MAX_CHECKS,
    )
    files_analyzed: int = Field(0, ge=0, description="How many files or deliverables you read.")
    files_modified: int = Field(0, ge=0, description="How many files your report adds or changes.")

    @field_validator("blockers", mode="after")
    @classmethod
    def _no_blocker_has_one_spelling(cls, value: str) -> str:
        text = value.strip()
        return NO_BLOCKERS if text.rstrip(".").lower() in {"", "none", "no", "n/a", "-"} else text

    def custom_fields(self) -> dict[str, Any]:
        """What goes into the deliverable's metadata besides the seed's fields; JSON values, empty lists left out."""
        fields = self.model_dump(mode="json", exclude={"report", "files_analyzed"})
        return {name: value for name, value in fields.items() if value != []}


class Finding(BaseModel):
    """One thing that the reviewed work has to change."""

    model_config = ConfigDict(extra="forbid")

    id: Line = Field(
        description="F1, F2, …; keep the id of a finding that is still open from an earlier round, and never use one "
        "again for something else.",
        pattern=r"^[A-Za-z0-9._-]{1,20}$",
    )
    severity: Literal["major", "minor"] = Field(
        description="major: the feature would be wrong, unsafe or unbuildable without the change; minor: it would be "
        "worse."
    )
    where: Line = Field(
        description="The place in the reviewed text: a requirement number, a heading or a file name.",
        max_length=200,
    )
    claim: Line = Field(description="What is wrong there, with the words of the reviewed text as evidence.")
    wanted_change: Line = Field(description="The change that settles this finding, concrete enough to be checked.")

    @property
    def mark(self) -> FindingMark:
        """What the workflow sees of it."""
        return FindingMark.of(self.id, is_major=self.severity == "major", where=self.where, claim=self.claim)


class ReviewReport(WorkReport):
    """Submit the review of this round: a verdict, and the findings that it rests on. Call it exactly once."""

    verdict: Literal[Verdict.APPROVE, Verdict.REVISE, Verdict.REJECT] = Field(
        description="approve: good enough to build on; revise: the author must settle the findings first; reject: the "
        "request itself should not be built, a person has to decide."
    )
    findings: list[Finding] = Field(
        default_factory=list,
        description="Everything that must change, most important first. Empty only when there is nothing to change.",
        max_length=MAX_FINDINGS,
    )
    fixed: list[Line] = Field(
        default_factory=list,
        description="Ids of the findings of earlier rounds that this round's text settles. Each earlier finding is "
        "either here or, with its id, still in findings.",
        max_length=MAX_FINDINGS,
    )

    @model_validator(mode="after")
    def _revise_says_what(self) -> Self:
        majors = [finding.id for finding in self.findings if finding.severity == "major"]
        if self.verdict is Verdict.APPROVE and majors:
            raise ValueError(
                f"verdict 'approve' with major findings open ({', '.join(majors)}): say 'revise', or call them minor"
            )
        if both := sorted({finding.id for finding in self.findings} & set(self.fixed)):
            raise ValueError(f"{', '.join(both)} is in fixed and in findings: a finding is settled or it is open")
        if self.verdict is Verdict.REVISE and not self.findings:
            raise ValueError(
                "verdict 'revise' needs at least one entry in findings (id, severity, where, claim, wanted_change); "
                "if nothing has to change, the verdict is 'approve'"
            )
        ids = [finding.id for finding in self.findings]
        if repeated := sorted({name for name in ids if ids.count(name) > 1}):
            raise ValueError(f"each finding needs its own id, but {', '.join(repeated)} is used more than once")
        return self


class TestReport(WorkReport):
    """Submit the test result of this round: a verdict, and what has to be reworked. Call it exactly once."""

    __test__ = False  # pytest collects classes that are named Test…

    verdict: Literal[Verdict.PASS, Verdict.FAIL] = Field(
        description="pass: every requirement holds, with the evidence in the report; fail: at least one does not."
    )
    rework: list[Slug] = Field(
        default_factory=list,
        description="Names of the stages that must do their work again, as in the stage attribute of their "
        "deliverables, such as backend or frontend. Empty for pass.",
        max_length=10,
    )

    @model_validator(mode="after")
    def _fail_says_who(self) -> Self:
        if self.verdict is Verdict.FAIL and not self.rework:
            raise ValueError(
                "verdict 'fail' needs at least one stage name in rework, for example ['backend']: the stage whose work "
                "has to change"
            )
        if self.verdict is Verdict.PASS and self.rework:
            raise ValueError(
                f"verdict 'pass' sends nothing back, but rework names {', '.join(self.rework)}: empty it or say 'fail'"
            )
        return self


Report = WorkReport
"""Any of them; the others are its subclasses."""

_MODELS: Final[dict[StageKind, type[WorkReport]]] = {
    StageKind.WORK: WorkReport,
    StageKind.REVIEW: ReviewReport,
    StageKind.TEST: TestReport,
}


def report_model(kind: StageKind) -> type[WorkReport]:
    """The output type for a stage of that kind."""
    return _MODELS[kind]
