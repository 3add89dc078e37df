"""A notice stays within its kilobyte, whatever an agent writes."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.messaging.notices import create_notice
from schemas.deliverable import DeliverableRef
from schemas.evidence import CheckLine, EvidenceSummary
from schemas.notice import MAX_NOTICE_BYTES, MAX_SUMMARY_CHARACTERS, Notice, Verdict

REF = DeliverableRef(stream="agog_features_backend", sequence=10_000_000, sha256="ab" * 32, bytes=9_999_999)
SEED_FIELDS = [
    "status",
    "agent",
    "task",
    "nats_channel",
    "summary",
    "complexity",
    "blockers",
    "ready_for_next_stage",
    "completion_time",
    "files_modified",
    "metadata",
]


def make(summary: str, blockers: str = "None", **fields: Any) -> Notice:
    """A notice with long names, as an agent would make it."""
    given_fields: dict[str, Any] = {
        "agent": "roy",
        "feature": "customer-search",
        "subject": "agog.deliverables.roy.backend.customer-search",
        "completion_time": datetime(2026, 11, 20, 10, 30, 0, 123456, tzinfo=UTC),
        "round": 3,
        "tokens_in": 1_000_000,
        "tokens_out": 1_000_000,
        "cost_usd": "12.345678",
        "model": "anthropic:claude-sonnet-4-5",
        "verdict": Verdict.FAIL,
        "rework": ["backend", "frontend"],
    }
    return create_notice(ref=REF, summary=summary, blockers=blockers, **{**given_fields, **fields})


@given(summary=st.text(st.characters(codec=None), max_size=3000), blockers=st.text(max_size=1500))
def test_a_notice_fits_whatever_the_text(summary: str, blockers: str) -> None:
    """In UTF-8, after JSON escaping, still readable as a notice."""
    notice = make(summary, blockers)
    wire = notice.to_wire()
    assert len(wire) <= MAX_NOTICE_BYTES
    assert Notice.model_validate_json(wire).ref == REF


@pytest.mark.parametrize(
    "text",
    [
        '"' * 2000,
        "\\" * 2000,
        "\x00" * 2000,
        "a\n" * 2000,
        "é" * 2000,
        "語" * 2000,
        "🧥" * 2000,
        "x👩‍👩‍👧‍👦" * 500,
        "\ud800" * 2000,
    ],
    ids=["quotes", "backslashes", "nul", "newlines", "2-byte", "3-byte", "4-byte", "joined emoji", "lone surrogates"],
)
def test_nasty_text_is_cut_at_a_character(text: str) -> None:
    """Cutting says that it cut, and leaves neither half a character nor half an emoji's joiner."""
    wire = make(text, text).to_wire()
    assert len(wire) <= MAX_NOTICE_BYTES
    notice = Notice.model_validate_json(wire)
    for kept in (notice.summary, notice.blockers):
        assert kept.endswith("…")
        assert not kept.endswith("\u200d…")
        assert text.encode("utf-8", "replace").decode().startswith(kept[:-1])


def test_the_room_is_used() -> None:
    """Text of the costliest kind (6 bytes per character in JSON) fills the kilobyte nearly to the byte."""
    assert MAX_NOTICE_BYTES - 12 <= len(make("\x00" * 200, "\x00" * 200).to_wire()) <= MAX_NOTICE_BYTES


def test_text_that_fits_is_left_alone() -> None:
    """To the character: one more and the ellipsis appears."""
    fits = "x" * MAX_SUMMARY_CHARACTERS
    assert make(fits).summary == fits
    assert make(fits + "x").summary == fits[:-1] + "…"


def test_a_long_summary_leaves_room_for_blockers() -> None:
    """What stops the pipeline is shown, however much was done."""
    notice = make("x" * 5000, "The search index does not exist")
    assert notice.blockers == "The search index does not exist"


def test_the_field_names_are_the_seeds() -> None:
    """And `metadata` names the message; absent values are left out."""
    wire = json.loads(make("done").to_wire())
    assert list(wire) == SEED_FIELDS
    assert wire["metadata"]["sequence"] == REF.sequence
    assert "trace_url" not in wire["metadata"]


def test_the_link_to_the_trace_gives_way_first() -> None:
    """It follows from the run's name anyway; a verdict and findings do not."""
    link = "https://phoenix.example.com/redirects/traces/" + 32 * "a"
    short = make("done", trace_url=link)
    assert short.metadata.trace_url == link
    evidence = EvidenceSummary(passed=3, failed=1, checks=[CheckLine(check="backend/unit", exit=1, seconds=0.1)])
    long = make("done", trace_url=link, evidence=evidence, findings=["F1!3fa9c2"] * 18)
    assert len(long.to_wire()) <= MAX_NOTICE_BYTES
    assert long.metadata.trace_url is None
    assert long.metadata.evidence == evidence


def test_what_the_deliverable_has_in_full_makes_room() -> None:
    """Lines of evidence go first, then marks, then all but the first stage to rework; the counts stay."""
    rework = [f"stage-{number}-{'x' * 50}" for number in range(10)]
    checks = [CheckLine(check="backend/tests", exit=1, seconds=0.5, tail="\U0001f600" * 60)]
    evidence = EvidenceSummary(passed=0, failed=1, checks=checks)
    notice = make("done", rework=rework, evidence=evidence, findings=["F1!abcdef"])
    assert len(notice.to_wire()) <= MAX_NOTICE_BYTES
    assert notice.metadata.rework == rework[:1]
    assert notice.metadata.evidence is not None
    assert (notice.metadata.evidence.failed, notice.metadata.evidence.checks) == (1, [])
    assert notice.summary == "done"


def test_fields_that_cannot_be_cut_are_refused() -> None:
    """Rather than dropped in silence."""
    with pytest.raises(ValueError, match="bytes too many"):
        make("done", custom="x" * 1000)
