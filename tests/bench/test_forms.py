"""What comes of a recorded run besides violations: scenarios, reports, pictures; and the reference of the format."""

import json
from datetime import timedelta
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from junitparser import JUnitXml

from coatcheck.bench.catalogue import load_scenario, scenario_ids
from coatcheck.bench.findings import Violation
from coatcheck.bench.formats import to_junit, to_svg
from coatcheck.bench.generalising import generalise, to_json
from coatcheck.bench.matching import violations
from coatcheck.bench.recording import Recording
from coatcheck.bench.reports import report_of
from coatcheck.bench.results import BenchReport
from coatcheck.bench.running import request_of
from coatcheck.cli.benching import scenario_schema
from coatcheck.errors import ConfigError
from schemas.scenario import Scenario
from tests.bench.record import recorded

DOCS = Path(__file__).parents[2] / "docs"
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '</title><script>alert("x")</script> \x00 & '


def first(scenario: str) -> Recording:
    """The first recording of a scenario."""
    return recorded(scenario)[0][1]


def test_the_reference_of_the_format_is_current() -> None:
    """`coatcheck bench schema > docs/reference/scenario.schema.json` after a change."""
    assert json.loads((DOCS / "reference" / "scenario.schema.json").read_text()) == scenario_schema()


def test_the_how_tos_scenario_is_one() -> None:
    """What is read first has to be right."""
    example = (DOCS / "how-to" / "benchmark.md").read_text().partition("```json\n")[2].partition("```")[0]
    assert Scenario.model_validate_json(example).input.request.gates == ("statistics",)


@pytest.mark.parametrize("name", scenario_ids())
def test_a_scenario_of_a_good_run_holds_for_every_run_like_it(name: str) -> None:
    """Nothing in it is only of the run that it was made of."""
    request = request_of(load_scenario(name))
    made = generalise(first(name), request, scenario_id="made", title="Made of a run")
    again = Scenario.model_validate_json(to_json(made))
    assert again == made
    assert [found for _, run in recorded(name) for found in violations(run, made)] == []
    assert first(name).run_key not in to_json(made)
    assert made.input.request.feature == "customer-search"


def test_what_people_did_is_part_of_a_recorded_scenario() -> None:
    """So that it can be run again without them."""
    made = generalise(first("er_008"), request_of(load_scenario("er_008")), scenario_id="made", title="Made")
    assert [(action.do, action.comment, str(action.when)) for action in made.input.people] == [
        ("revise", "All of them.", "decision.requested(research, 1)")
    ]


def test_a_part_of_a_run_is_held_against_what_needs_no_beginning() -> None:
    """From a sequence or a time on; the beginning is not missed, a forged subject is."""
    run, scenario = first("er_001"), load_scenario("er_001")
    middle = run.messages[30]
    by_sequence, by_time = run.since(sequence=middle.sequence), run.since(moment=middle.stored_at)
    assert by_sequence.messages == by_time.messages == run.messages[30:]
    assert violations(by_sequence, scenario) == []
    assert [
        item.rule for item in violations(run.since(moment=run.messages[-1].stored_at + timedelta(1)), scenario)
    ] == ["end"]
    assert Recording.from_lines(run.to_lines().splitlines()) == run


def test_junit_has_a_case_per_run_and_a_failure_per_violation() -> None:
    """As another program reads it, whatever agents write."""
    good, wrong = first("er_001"), Violation(rule="sequence", message=HOSTILE, sequence=7)
    scenario = load_scenario("er_001")
    runs = [report_of(good, [], scenario=scenario), report_of(good, [wrong, wrong], scenario=scenario, repeat=2)]
    told = BenchReport(started_at=good.messages[0].stored_at, seconds=3, runs=runs)
    read = JUnitXml.fromstring(to_junit(told).encode())
    assert (read.tests, read.failures) == (2, 2)
    [suite] = list(read)
    assert [len(case.result) for case in suite] == [0, 2]
    assert "alert" in str([item.message for case in suite for item in case.result])
    assert BenchReport.model_validate_json(told.model_dump_json()) == told


def test_the_picture_has_a_lane_per_stage_and_is_only_a_picture() -> None:
    """Rounds are as long as they took; text cannot become markup."""
    run = first("er_001")
    report = report_of(run, [Violation(rule="sequence", message=HOSTILE)], scenario=load_scenario("er_001"))
    root = ET.fromstring(to_svg(report))
    texts = [text.text or "" for text in root.iter(f"{SVG}text")]
    bars = [title.text or "" for rect in root.iter(f"{SVG}rect") for title in rect.iter(f"{SVG}title")]
    assert {"research · cynthia", "qa · billy", "statistics · priya"} <= set(texts)
    assert sum(bar.startswith("backend: round") for bar in bars) == 2
    assert sum(", turn, " in bar for bar in bars) == report.calls == 17
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == {"svg", "title", "rect", "line", "text"}
    assert any("alert" in text for text in texts)


def test_a_picture_shows_waits_and_parkings() -> None:
    """What took time without a round."""
    assert {span.kind for span in report_of(first("er_010"), []).spans} >= {"parked", "completed"}
    assert {span.kind for span in report_of(first("er_013"), []).spans} >= {"waiting", "paused"}
    assert "cancelled" in {span.kind for span in report_of(first("er_005"), []).spans}


def test_a_file_with_mistakes_is_told_with_each_of_them(tmp_path: Path) -> None:
    """By the place in the document."""
    file = tmp_path / "mine.json"
    file.write_text('{"id": "X", "title": "", "input": {"request": {"feature": "a", "brief": "b"}}}')
    with pytest.raises(ConfigError) as raised:
        load_scenario(str(file))
    assert [line.rpartition("mine.json: ")[2].partition(":")[0] for line in str(raised.value).splitlines()] == [
        "id",
        "title",
        "expect",
    ]
