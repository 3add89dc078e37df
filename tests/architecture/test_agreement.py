"""Things that are said in two places say the same."""

import re
import subprocess
from pathlib import Path

import pytest
from temporalio import activity

from activities.agents import stage_activity_for
from activities.state import StateActivities
from coatcheck.failpoints import POINTS
from schemas.activities import RECORD_STATE, stage_activity
from schemas.pipeline import DEFAULT_PIPELINE, Stage
from schemas.roles import DEFAULT_ROLES
from schemas.streams import STREAMS, stream_name
from schemas.subjects import deliverable_wildcard

ROOT = Path(__file__).parents[2]
PACKAGES = ("schemas", "workflows", "activities", "workers", "coatcheck")


def tracked(*patterns: str) -> list[Path]:
    """Files of the repository."""
    listing = subprocess.check_output(["git", "ls-files", "-z", *patterns], cwd=ROOT)
    return [ROOT / name for name in listing.decode().split("\0") if name]


@pytest.mark.parametrize("stage", DEFAULT_PIPELINE.stages, ids=lambda stage: stage.name)
def test_every_stage_has_its_role_stream_and_activity(stage: Stage) -> None:
    """The workflow schedules by name; role, stream and the worker's activity must go by the same one."""
    role = DEFAULT_ROLES[stage.agent]
    assert (role.task_type, role.reports) == (stage.task_type, stage.kind)
    [stream] = [spec for spec in STREAMS if spec.agent == stage.agent]
    assert stream.name == stream_name(stage.task_type)
    assert stream.subjects == (deliverable_wildcard(stage.agent),)
    registered = activity._Definition.must_from_callable(stage_activity_for(role, None))  # type: ignore[arg-type]
    assert registered.name == stage_activity(stage.agent, stage.task_type)


def test_the_state_activity_is_registered_under_the_name_that_workflows_call() -> None:
    """A local activity's name is in every history."""
    assert activity._Definition.must_from_callable(StateActivities.record).name == RECORD_STATE


def test_every_failpoint_is_reached_somewhere_and_every_one_reached_is_known() -> None:
    """A point that nobody reaches tests nothing."""
    sources = [path.read_text() for package in PACKAGES for path in tracked(f"{package}/*.py")]
    reached = {name for source in sources for name in re.findall(r'failpoint\("([^"]+)"\)', source)}
    assert reached == set(POINTS)


def test_every_decision_names_what_holds_it() -> None:
    """Each record points to tests that exist, and is in the index."""
    index = (ROOT / "docs/adr/README.md").read_text()
    for record in tracked("docs/adr/0*.md"):
        assert record.name in index
        for named in re.findall(r"`(tests/[\w/.]+)", record.read_text()):
            assert (ROOT / named).exists(), (record.name, named)


def test_nothing_in_the_tree_is_bound_to_one_machine() -> None:
    """No address of a package registry, no absolute path of a developer's."""
    hosts = re.compile(r"py" r"pi\.org|python" r"hosted|registry\.np" r"mjs|deb\.deb" r"ian")
    paths = re.compile(r"(^|[^a-z.])/(ro" r"ot|ho" r"me|wor" r"k)/[a-z.]")
    for path in tracked():
        if path.suffix in {".py", ".md", ".toml", ".txt", ".conf", ".sql", ".yml", ".json"} or path.name == "Makefile":
            text = path.read_text()
            assert not hosts.search(text), path
            assert not paths.search(text), path


def test_no_test_is_skipped() -> None:
    """A test that cannot run here says nothing; it is mended or removed."""
    for path in tracked("tests/*.py"):
        if path != Path(__file__):
            assert not re.search(r"pytest\.(mark\.)?(skip|xfail)", path.read_text()), path


def test_every_threat_names_a_control_and_tests_that_are_there() -> None:
    """A row of SECURITY.md without a test that shows it is a promise."""
    rows = [line.split("|")[1:-1] for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("|")][
        2:
    ]
    assert len(rows) > 10
    for threat, control, shown in rows:
        tests = re.findall(r"`(tests/[a-z_/]+\.py)`", shown)
        assert control.strip(), threat
        assert tests, threat
        assert all((ROOT / name).is_file() for name in tests), threat
