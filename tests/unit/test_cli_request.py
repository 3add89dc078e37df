"""What people type becomes a valid request or one exact complaint."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.cli.request import build_request, nearest_slug, parse_request
from coatcheck.cli.starting import request_from, summary
from coatcheck.cli.voice import MisuseError
from schemas.subjects import check_slug


@given(st.text(max_size=200))
def test_the_nearest_slug_is_a_valid_one(name: str) -> None:
    """Whatever was typed, the hint can be used as it is."""
    slug = nearest_slug(name)
    assert slug is None or check_slug(slug) == slug


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("Customer Search", "customer-search"),
        ("customer.search", "customer-search"),
        ("customer_search", "customer-search"),
        ("größe", "grosse"),
        ("a*b>c", "a-b-c"),
        ("-x--y-", "x-y"),
        ("a" * 65, "a" * 64),
    ],
)
def test_a_wrong_slug_is_answered_with_the_nearest_one(typed: str, hint: str) -> None:
    """The complaint names the field, the hint the slug."""
    with pytest.raises(MisuseError, match=r"^feature: ") as caught:
        build_request({"feature": typed, "brief": "b"})
    assert caught.value.hint == f"try {hint!r}"


def test_no_hint_when_nothing_can_be_kept() -> None:
    """An empty suggestion would help nobody."""
    with pytest.raises(MisuseError) as caught:
        build_request({"feature": "***", "brief": "b"})
    assert caught.value.hint is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the request: Invalid JSON"),
        ("{", "the request: Invalid JSON"),
        ("null", "the request: "),
        ("[]", "the request: "),
        ('{"feature": "x"}', "brief: Field required"),
        ('{"feature": "x", "brief": "b", "foo": 1}', "foo: Extra inputs"),
        ('{"feature": 3, "brief": "b"}', "feature: Input should be a valid string"),
        ('{"feature": "x", "brief": ["b"]}', "brief: Input should be a valid string"),
        ('{"feature": "x", "brief": " "}', "brief: the brief is empty"),
        ('{"feature": "x", "brief": "b", "decision_timeout_seconds": "9"}', "decision_timeout_seconds: "),
        ('{"feature": "x", "brief": "b", "pipeline": {"stages": []}}', "pipeline.stages: "),
    ],
)
def test_a_bad_document_is_refused_by_field_in_one_line(text: str, complaint: str) -> None:
    """The field's path comes first, and it stays one line."""
    with pytest.raises(MisuseError) as caught:
        parse_request(text)
    assert str(caught.value).startswith(complaint)
    assert "\n" not in str(caught.value)


def test_a_long_list_of_problems_is_cut() -> None:
    """Three are enough to begin with."""
    with pytest.raises(MisuseError, match=r"; and 5 more$"):
        parse_request(json.dumps({"feature": "x", "brief": "b"} | {f"field{number}": 1 for number in range(8)}))


def test_options_that_were_not_given_stay_unset() -> None:
    """Unset fields are left out of the workflow's input, and of every history."""
    request = build_request({"feature": "x", "brief": "b", "gates": None, "tenant": None})
    assert request.model_fields_set == {"feature", "brief"}


@pytest.mark.parametrize(
    ("request_file", "brief", "file", "feature"),
    [("r.json", None, None, "x"), ("r.json", "b", None, None), (None, "b", "f", "x"), (None, None, None, "x")],
)
def test_too_much_or_too_little_is_misuse(
    request_file: str | None, brief: str | None, file: str | None, feature: str | None
) -> None:
    """One source of the brief, and a whole request alone."""
    with pytest.raises(MisuseError):
        request_from(request=request_file, brief=brief, file=file, options={"feature": feature})


def test_a_wrong_name_is_said_before_a_missing_brief() -> None:
    """Both are wrong; the name is what the person has typed."""
    with pytest.raises(MisuseError, match=r"^feature"):
        request_from(request=None, brief=None, file=None, options={"feature": "A B"})


def test_the_summary_fits_into_temporals_limit() -> None:
    """200 bytes, cut between characters."""
    text = summary(build_request({"feature": "x", "brief": "ü" * 500}))
    assert len(text.encode()) <= 200
    assert text.startswith("x: üü")
