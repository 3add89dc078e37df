"""A program as a file becomes a valid request, or every mistake of it is told at once."""

import contextlib
import json
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.cli.program_file import MAX_REQUEST_BYTES, read_program
from coatcheck.cli.voice import MisuseError
from schemas.config import DEFAULT_CONFIG, Config, Tenant
from schemas.pipeline import DEFAULT_PIPELINE, Pipeline, Stage
from schemas.program import ProgramRequest

SHORT = Pipeline(name="short", stages=(Stage(name="research", agent="cynthia", task_type="research"),))
CONFIG = Config(
    pipelines={"default": DEFAULT_PIPELINE, "short": SHORT},
    tenants={"sales": Tenant(weight=9), "finance": Tenant(weight=4), "nobody": Tenant(weight=3)},
)

TOML = """
name = "spring"
max_concurrent = 3

[tenants.sales]
weight = 2

[[features]]
feature = "customer-search"
brief = "Find customers"
tenant = "sales"
priority = 1
gates = ["critique"]

[[features]]
feature = "invoice-export"
brief_file = "briefs/export.md"
pipeline = "short"
"""


def read(path: Path, *, name: str | None = None, max_concurrent: int | None = None) -> ProgramRequest:
    """The program in that file."""
    return read_program(str(path), name=name, max_concurrent=max_concurrent, config=CONFIG)


def write(folder: Path, name: str, text: str) -> Path:
    """A file of that name."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def mistakes(path: Path) -> list[str]:
    """What is wrong with the file, without its folder."""
    with pytest.raises(MisuseError) as caught:
        read(path)
    return [line.replace(f"{path.parent}/", "") for line in str(caught.value).splitlines()]


def test_a_program_in_toml(tmp_path: Path) -> None:
    """Briefs from files beside it, pipelines by name, and only what was given is set."""
    write(tmp_path, "briefs/export.md", "Export invoices")
    request = read(write(tmp_path, "x.toml", TOML))
    assert (request.name, request.max_concurrent, request.weight("sales")) == ("spring", 3, 2)
    search, export = request.features
    assert (search.tenant, search.priority, search.gates) == ("sales", 1, ("critique",))
    assert search.model_fields_set == {"feature", "brief", "tenant", "priority", "gates"}
    assert (export.brief, export.pipeline) == ("Export invoices", SHORT)


def test_the_example_of_the_documentation_is_valid() -> None:
    """As it is, with the defaults."""
    file = Path(__file__).parents[2] / "docs/examples/program.toml"
    request = read_program(str(file), name=None, max_concurrent=None, config=DEFAULT_CONFIG)
    assert (request.name, len(request.features)) == ("spring", 4)


def test_configured_shares_hold_where_the_file_says_nothing(tmp_path: Path) -> None:
    """Of the tenants that have a feature in it, and of no others."""
    write(tmp_path, "briefs/export.md", "Export invoices")
    text = TOML + 'tenant = "finance"\n'
    request = read(write(tmp_path, "x.toml", text))
    assert {name: tenant.weight for name, tenant in request.tenants.items()} == {"finance": 4, "sales": 2}


def test_json_and_json_lines_say_the_same_as_toml(tmp_path: Path) -> None:
    """A list, an object, and a line each; empty lines and a byte order mark do no harm."""
    features = [{"feature": "a", "brief": "b"}, {"feature": "c", "brief": "d", "pipeline": "default"}]
    lines = "\ufeff" + "\n\n".join(json.dumps(feature) for feature in features) + "\n"
    listed = read(write(tmp_path, "p.json", json.dumps(features)))
    whole = read(write(tmp_path, "q.json", json.dumps({"name": "p", "features": features})))
    assert listed == whole == read(write(tmp_path, "p.jsonl", lines))
    assert [feature.model_fields_set for feature in listed.features] == [{"feature", "brief"}] * 2


def test_the_command_line_beats_the_file_and_the_file_its_name(tmp_path: Path) -> None:
    """A file without a name gives its own, as a slug."""
    path = write(tmp_path, "Spring Release.json", '[{"feature": "a", "brief": "b"}]')
    assert read(path).name == "spring-release"
    request = read(path, name="other", max_concurrent=7)
    assert (request.name, request.max_concurrent) == ("other", 7)


def test_every_mistake_is_told_with_its_line_and_key(tmp_path: Path) -> None:
    """One pass finds all of them, and the lines are those of the file."""
    text = """name = "A B"
max_concurrent = 0
colour = "red"

[[features]]
feature = "Customer Search"
brief = "b"
priority = 9

[[features]]
feature = "x"

[[features]]
feature = "x"
brief = "b"
brief_file = "b.md"
gates = ["nowhere"]

[[features]]
feature = "y"
brief_file = "missing.md"
pipeline = "shrot"
priorty = 1
"""
    said = mistakes(write(tmp_path, "x.toml", text))
    expected = [
        "x.toml:3: colour: unknown key",
        "x.toml:6: features.0.feature: a slug is",
        "x.toml:8: features.0.priority: should be less than or equal to 5",
        "x.toml:10: features.1.brief: is missing",
        "x.toml:16: features.2.brief_file: the brief is given twice",
        "x.toml:13: features.2: ",
        "x.toml:14: features.2.feature: 'x' is feature 2 already, and this is 3",
        "x.toml:21: features.3.brief_file: there is no file",
        "x.toml:22: features.3.pipeline: there is no pipeline 'shrot'; did you mean 'short'?",
        "x.toml:23: features.3.priorty: unknown key; did you mean 'priority'?",
        "x.toml:1: name: a slug is",
        "x.toml:2: max_concurrent: should be greater than or equal to 1",
    ]
    assert len(said) == len(expected), "\n".join(said)
    for line in expected:
        assert any(found.startswith(line) for found in said), (line, said)
    assert any(found.endswith("; try 'customer-search'") for found in said)


def test_mistakes_in_json_lines_have_the_number_of_their_line(tmp_path: Path) -> None:
    """Also of a line that is no JSON, and of one that is something else."""
    text = (
        '{"feature": "a", "brief": "b"}\n\n{"feature": "c"}\n{"feature": \n"text"\n[]\n{"feature": "a", "brief": 3}\n'
    )
    said = mistakes(write(tmp_path, "x.jsonl", text))
    expected = [
        "x.jsonl:3: brief: is missing",
        "x.jsonl:4: is not JSON: EOF while parsing",
        "x.jsonl:5: should be an object with feature and brief",
        "x.jsonl:6: should be an object with feature and brief",
        "x.jsonl:7: brief: should be a text in quotes",
        "x.jsonl:7: feature: 'a' is feature 1 already",
    ]
    assert len(said) == len(expected), "\n".join(said)
    for line in expected:
        assert any(found.startswith(line) for found in said), (line, said)


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("x.toml", "name = ", "x.toml: Invalid value (at end of document)"),
        ("x.toml", "", "x.toml:1: features: should be a list of features, and not empty"),
        ("x.json", "{", "x.json: EOF while parsing an object at line 1 column 1"),
        ("x.json", "3", "x.json: a program is a list of features or an object that has one"),
        ("x.json", "[]", "x.json: features: should be a list of features, and not empty"),
        ("x.json", '{"features": {}}', "x.json: features: should be a list of features, and not empty"),
        ("x.json", '[{"feature": "a", "brief": "\\ud800"}]', "x.json: "),
        ("x.jsonl", "\n", "x.jsonl: should be a list of features, and not empty"),
        ("x.yaml", "a: b", "x.yaml is none of .toml, .json, .jsonl"),
        ("x.json", "[" * 100_000, "x.json: recursion limit exceeded"),
        ("x.toml", "a = " + "[" * 100_000, "x.toml: "),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    """In one line, without a stack trace."""
    [said] = mistakes(write(tmp_path, name, text))
    assert said.replace(f"{tmp_path}/", "").startswith(complaint), said


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    """As with every other command."""
    with pytest.raises(MisuseError, match=r"cannot read .*/none.toml: No such file"):
        read(tmp_path / "none.toml")


def test_too_many_and_too_large_are_refused_with_a_hint(tmp_path: Path) -> None:
    """501 features; and 2 MiB, which Temporal would refuse with a text that helps nobody."""
    many = [{"feature": f"f{number}", "brief": "b"} for number in range(501)]
    assert mistakes(write(tmp_path, "x.json", json.dumps(many))) == [
        "x.json: features: has 501 features, at most 500 are taken"
    ]
    large = [{"feature": f"f{number}", "brief": "b" * 200_000} for number in range(11)]
    with pytest.raises(MisuseError, match=rf"at most {MAX_REQUEST_BYTES:,} can be started at once") as caught:
        read(write(tmp_path, "x.json", json.dumps(large)))
    assert caught.value.hint is not None
    assert "the longest brief is that of f0, 200,000 characters" in caught.value.hint
    assert len(read(write(tmp_path, "x.json", json.dumps(large[:10]))).features) == 10


def test_a_brief_called_like_stdin_is_a_file(tmp_path: Path) -> None:
    """`-` means stdin on the command line only."""
    write(tmp_path, "-", "from the file")
    request = read(write(tmp_path, "x.json", '[{"feature": "a", "brief_file": "-"}]'))
    assert request.features[0].brief == "from the file"


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "p", "features": [{"feature": "a", "brief": "b"}]}',
        'name = "p"\n[[features]]\nfeature = "a"\nbrief = "b"\n',
    ],
)
def test_stdin_is_read_by_what_it_holds(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """There is no ending to go by."""
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=BytesIO(text.encode())))
    request = read_program("-", name=None, max_concurrent=None, config=CONFIG)
    assert (request.name, request.features[0].brief) == ("p", "b")


@pytest.mark.parametrize("count", [1, 2])
def test_lines_on_stdin_need_a_name(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Nothing else says what the program is called; one line alone is a line too."""
    text = "".join(f'{{"feature": "a{number}", "brief": "b"}}\n' for number in range(count))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=BytesIO(text.encode())))
    with pytest.raises(MisuseError, match=r"^stdin: name: is missing$") as caught:
        read_program("-", name=None, max_concurrent=None, config=CONFIG)
    assert caught.value.hint is not None
    assert "--name NAME" in caught.value.hint
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=BytesIO(text.encode())))
    assert len(read_program("-", name="p", max_concurrent=None, config=CONFIG).features) == count


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["feature", "brief", "brief_file", "tenant", "pipeline", "features", "name", "x"]), inner
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_whatever_a_document_holds_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    """Never anything else."""
    path = write(tmp_path_factory.getbasetemp(), "any.json", json.dumps(value))
    with contextlib.suppress(MisuseError):
        read(path)
