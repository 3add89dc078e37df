"""The alert rules, and what `promtool` says about them."""

import subprocess
from pathlib import Path

import yaml

from tests.deploy.scrape import Scrape, Series

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
RULES = FOLDER / "rules" / "coatcheck.yml"
UNIT_TESTS = FOLDER / "tests" / "coatcheck_test.yml"
MINUTES = 60
"""Longer than any rule looks back or waits."""
ALERTS = [
    rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule
]


def run(*command: str) -> None:
    """Run a program that must say that all is well."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def quiet_for_an_hour(scrape: Scrape) -> str:
    """A unit test for `promtool`: what was seen, as if it were so for an hour, and no alert at any moment of it.

    Counters grow in the first ten minutes.
    """
    moments = [{"eval_time": f"{minute}m", "alertname": name} for name in ALERTS for minute in range(5, MINUTES, 5)]
    series = [
        {"series": _written(series), "values": _values(series, value, scrape.counts)}
        for series, value in scrape.values.items()
    ]
    case = {"name": "a good run", "interval": "1m", "input_series": series, "alert_rule_test": moments}
    return yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [case]})


def _values(series: Series, value: float, counts: set[str]) -> str:
    if series[0] in counts:
        return f"0+{value / 10:.6f}x10 {value:.6f}x{MINUTES}"
    return f"{value:.6f}x{MINUTES}"


def _written(series: Series) -> str:
    name, labels = series
    chosen = ",".join(f'{key}="{value}"' for key, value in labels)
    return f"{name}{{{chosen}}}"
