"""What an agent hands in: the structured output of one round, one model per kind of stage.

The descriptions become the JSON schema of the output tool and the validation texts are what a model is re-asked
with, so both are written for a reader who has nothing else.
"""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from schemas.notice import Verdict
from schemas.pipeline import StageKind
from schemas.subjects import Slug

MIN_REPORT_CHARACTERS: Final = 200
"""Shorter is a refusal or an excuse, not a deliverable; the seed's reports are 5k to 15k tokens."""
MAX_SUMMARY_CHARACTERS: Final = 280
MAX_BLOCKERS_CHARACTERS: Final = 200

Complexity = Literal["Low", "Medium", "High"]
Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class WorkReport(BaseModel):
    """Submit the finished work of this round. Call it exactly once, when the report is complete."""

    model_config = ConfigDict(extra="forbid")

    report: str = Field(
        description="The whole deliverable as markdown: everything that the next stages need, since they see nothing "
        "else of your work. Code goes into fenced blocks, each with its file name on the first line as a comment.",
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
    files_analyzed: int = Field(0, ge=0, description="How many files or deliverables you read.")
    files_modified: int = Field(0, ge=0, description="How many files your report adds or changes.")

    @field_validator("blockers", mode="after")
    @classmethod
    def _no_blocker_has_one_spelling(cls, value: str) -> str:
        text = value.strip()
        return "None" if text.rstrip(".").lower() in {"", "none", "no", "n/a", "-"} else text

    @property
    def blocked(self) -> bool:
        """Whether a person has to clear something before the pipeline can go on."""
        return self.blockers != "None"

    def custom_fields(self) -> dict[str, Any]:
        """What goes into the deliverable's metadata besides the seed's fields; JSON values."""
        return self.model_dump(mode="json", exclude={"report", "files_analyzed"})

    def notice_fields(self) -> dict[str, Any]:
        """What goes into the notice's metadata: the verdict and what it asks for, if the kind has one."""
        return {}


class Finding(BaseModel):
    """One thing that the reviewed work has to change."""

    model_config = ConfigDict(extra="forbid")

    id: Line = Field(
        description="F1, F2, …; keep the id of a finding that is still open from an earlier round.",
        max_length=20,
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


class ReviewReport(WorkReport):
    """Submit the review of this round: a verdict, and the findings that it rests on. Call it exactly once."""

    verdict: Literal[Verdict.APPROVE, Verdict.REVISE, Verdict.REJECT] = Field(
        description="approve: good enough to build on; revise: the author must settle the findings first; reject: the "
        "request itself should not be built, a person has to decide."
    )
    findings: list[Finding] = Field(
        default_factory=list,
        description="Everything that must change, most important first. Empty only when there is nothing to change.",
        max_length=50,
    )

    def notice_fields(self) -> dict[str, Any]:
        """The verdict."""
        return {"verdict": self.verdict}

    @model_validator(mode="after")
    def _revise_says_what(self) -> Self:
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

    def notice_fields(self) -> dict[str, Any]:
        """The verdict and the stages to be reworked."""
        return {"verdict": self.verdict, "rework": self.rework or None}

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
