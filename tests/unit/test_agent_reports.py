"""The structured outputs: what they accept, and what a model is told when it is wrong."""

from typing import Any

import pytest
from pydantic import ValidationError

from coatcheck.agents.reports import NO_BLOCKERS, ReviewReport, TestReport, WorkReport, report_model
from schemas.pipeline import StageKind

BODY = {"report": "# Report\n" + "text " * 50, "summary": "Done.", "complexity": "Low"}
FINDING = {"id": "F1", "severity": "major", "where": "R1", "claim": "vague", "wanted_change": "a number"}


def error_of(model: type[WorkReport], **fields: Any) -> str:
    """The text with which a model is re-asked."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(BODY | fields)
    return str(caught.value)


def test_each_kind_has_its_model() -> None:
    """Work, review and test."""
    assert [report_model(kind) for kind in StageKind] == [WorkReport, ReviewReport, TestReport]


def test_a_revise_without_a_finding_is_refused_with_the_way_out() -> None:
    """The text names the fields and the alternative."""
    text = error_of(ReviewReport, verdict="revise")
    assert "at least one entry in findings (id, severity, where, claim, wanted_change)" in text
    assert "'approve'" in text
    assert ReviewReport.model_validate(BODY | {"verdict": "revise", "findings": [FINDING]}).findings[0].where == "R1"


def test_findings_need_ids_of_their_own() -> None:
    """Later rounds answer by id."""
    assert "F1 is used more than once" in error_of(ReviewReport, verdict="revise", findings=[FINDING, FINDING])


def test_a_fail_names_who_works_again_and_a_pass_nobody() -> None:
    """The two halves of a test report agree."""
    assert "at least one stage name in rework, for example ['backend']" in error_of(TestReport, verdict="fail")
    assert "rework names backend" in error_of(TestReport, verdict="pass", rework=["backend"])
    fields = TestReport.model_validate(BODY | {"verdict": "fail", "rework": ["backend"]}).custom_fields()
    assert (fields["verdict"], fields["rework"]) == ("fail", ["backend"])


@pytest.mark.parametrize(
    "fields",
    [
        {"report": "too short"},
        {"summary": "x" * 281},
        {"summary": "  "},
        {"complexity": "Huge"},
        {"files_modified": -1},
        {"extra": 1},
    ],
)
def test_what_no_report_may_be(fields: dict[str, Any]) -> None:
    """Bounds hold for every kind; the error names the field."""
    assert next(iter(fields)) in error_of(WorkReport, **fields)


@pytest.mark.parametrize("said", ["none", "None.", "", " N/A ", "no", "-"])
def test_no_blocker_has_one_spelling(said: str) -> None:
    """The pipeline stops for anything else, so a model's way of saying no must not stop it."""
    report = WorkReport.model_validate(BODY | {"blockers": said})
    assert report.blockers == NO_BLOCKERS
    assert WorkReport.model_validate(BODY | {"blockers": "no key"}).blockers == "no key"


def test_every_field_explains_itself_in_the_schema() -> None:
    """The JSON schema is all that a model sees of the output tool."""
    for kind in StageKind:
        properties = report_model(kind).model_json_schema()["properties"]
        assert all(len(part["description"]) > 30 for part in properties.values())


def test_custom_fields_are_the_metadata_without_the_body() -> None:
    """JSON values only, since they go into the deliverable's metadata."""
    report = ReviewReport.model_validate(BODY | {"verdict": "revise", "findings": [FINDING]})
    fields = report.custom_fields()
    assert "report" not in fields
    assert fields["verdict"] == "revise"
    assert fields["findings"] == [FINDING]
