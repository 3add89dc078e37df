"""`deploy/prometheus`: every alert fires when it should. That a good run rings no bell is in `test_metrics`."""

import re

import pytest
import yaml

from tests.deploy.alerts import ALERTS, FOLDER, RULES, UNIT_TESTS, run
from tests.deploy.programs import program


def test_every_alert_has_a_unit_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    """Under its own name, at two moments."""
    fires, quiet = set(), set()
    for case in yaml.safe_load(UNIT_TESTS.read_text())["tests"]:
        for moment in case["alert_rule_test"]:
            assert moment["alertname"] == case["name"]
            (fires if moment["exp_alerts"] else quiet).add(case["name"])
    assert fires == quiet == set(ALERTS)
    assert len(set(ALERTS)) == len(ALERTS)


def test_every_alert_says_what_to_do() -> None:
    """A summary, a description and how urgent it is."""
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in {"page", "ticket"}
            assert rule["annotations"].keys() == {"summary", "description"}


def test_the_runbook_has_a_section_for_every_alert_and_for_nothing_else() -> None:
    """In the rules' order, each with something to do."""
    sections = re.split(r"^## ", (FOLDER.parents[1] / "docs" / "runbook.md").read_text(), flags=re.MULTILINE)[1:]
    assert [section.partition("\n")[0] for section in sections] == ALERTS
    assert all(len(section.split()) > 12 for section in sections)


def test_the_files_are_prometheus_own_and_every_alert_fires(capsys: pytest.CaptureFixture[str]) -> None:
    """`promtool check config` and `promtool test rules`."""
    promtool = program("promtool", "alert rules", capsys)
    if promtool is not None:
        run(promtool, "check", "config", str(FOLDER / "prometheus.yml"))
        run(promtool, "test", "rules", str(UNIT_TESTS))
