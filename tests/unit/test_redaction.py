"""The redactor: nothing planted gets through, however it is spelled; what is harmless stays as it is."""

import contextlib
import json
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coatcheck.training import detectors
from coatcheck.training.columns import COLUMNS, DataType, Draft, redact
from coatcheck.training.ownsecrets import own_secrets, spellings
from coatcheck.training.redaction import MAX_TEXT_CHARACTERS, RedactionError, Redactor
from tests.unit.canaries import CANARIES, OWN_SECRET, Canary, escaped

REDACTOR = Redactor([OWN_SECRET])
HARMLESS = (
    "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
    "feature/customer-search/0199c2f0-1234-7000-8000-415555267112",
    "research:42:LCa0a2j_xo_5m0U8HTBBNBNCLXBkg7-g-YpeiGJm564:20000",
    "2026-11-21T10:20:54.123456Z",
    "1732184454 seconds, 4,294,967,296 bytes, 12:30:45, v1.2.3, 127.0.0.1, 10.1.2.3, ::1",
    "def search(name: str, *, limit: int = 20) -> list[Customer]:",
    "tokens_in=5000, tokens_out=700; the token is spent; basic understanding; see [[brief]] and [1](#a)",
    "SELECT id FROM customers WHERE name ILIKE '%' || $1 || '%' ORDER BY id LIMIT 20",
    "C:\\Users\\x\\new\\table and 100% of a & b &amp; c",
)


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name)
def test_what_was_planted_is_taken_out(canary: Canary) -> None:
    """As it is written, also in the middle of other text and beside another secret."""
    for text in (canary.text, f"Before.\n{canary.text}\nAfter.", f"{canary.text} bob@example.com"):
        found = REDACTOR.text(text)
        assert found.count
        assert not any(piece in found.value for piece in canary.pieces), found.value


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name)
def test_what_was_planted_is_taken_out_however_it_is_spelled(canary: Canary) -> None:
    """Escapes hide nothing: not in the text, and not for somebody who undoes them."""
    for spelling, spelled in escaped(canary).items():
        found = REDACTOR.text(f"before {spelled.text} after").value
        assert not any(piece in found for piece in (*canary.pieces, *spelled.pieces)), (spelling, found)
        read = _unescaped(found)
        assert not any(piece in read for piece in canary.pieces), (spelling, read)


def _unescaped(text: str) -> str:
    """As a reader would read it, by other means than the redactor's."""
    for _ in range(4):
        text = unquote(text).replace("\u200b", "")
        text = text.encode("latin-1", "backslashreplace").decode("unicode_escape", "replace")
    return text


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_harmless_stays_as_it_is(text: str) -> None:
    """Ids, hashes, tickets, times and code are what a model learns from."""
    assert REDACTOR.text(text).value == text


def test_our_own_documents_stay_as_they_are() -> None:
    """Ordinary prose and code: at most one word in a thousand is lost."""
    root = Path(__file__).parents[2]
    lost = total = 0
    for path in [*root.glob("docs/how-to/*.md"), *root.glob("coatcheck/agents/*.py"), *root.glob("docs/adr/*.md")]:
        text = path.read_text()
        lost += REDACTOR.text(text).count
        total += len(text.split())
    assert lost <= total / 1000, (lost, total)


def test_values_keep_their_form() -> None:
    """Numbers stay numbers, and only what is a secret is replaced."""
    value = {"n": 1, "share": 0.5, "ok": True, "none": None, "list": [1, "a"], "mail": "bob@example.com"}
    assert REDACTOR.json(value).value == {**value, "mail": "[redacted:email]"}


def test_a_value_under_a_secrets_name_is_hidden_whatever_it_is() -> None:
    """A password need not look like one."""
    value = {"password": "abc", "Api-Key": "abc", "session_token": "abc", "nested": [{"secret": "abc"}], "tokens_in": 5}
    shown = json.dumps(REDACTOR.json(value).value)
    assert "abc" not in shown
    assert '"tokens_in": 5' in shown


def test_names_of_fields_and_large_numbers_are_looked_at() -> None:
    """A model may put anything anywhere."""
    found = REDACTOR.json({"bob@example.com": 1, "card": 4111111111111111, "small": 411111})
    assert found.value == {"[redacted:email]": 1, "card": "[redacted:card]", "small": 411111}


@pytest.mark.parametrize(
    "value",
    [b"bytes", {1: "a"}, {"a": object()}, {"x": {1, 2}}, float("nan"), {"a@b.example": 1, "c@d.example": 2}],
    ids=["bytes", "number as a name", "an object", "a set", "not a number", "names that fall together"],
)
def test_what_was_not_declared_safe_is_refused(value: Any) -> None:
    """Rather nothing than something that nobody has looked at."""
    with pytest.raises(RedactionError):
        REDACTOR.json(value)


def test_a_text_that_is_too_long_is_refused() -> None:
    """And not cut: a secret may lie across the cut."""
    with pytest.raises(RedactionError, match="too long"):
        REDACTOR.text("a" * (MAX_TEXT_CHARACTERS + 1))


def test_what_still_looks_like_a_secret_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replacement that does not help is noticed."""
    monkeypatch.setattr("coatcheck.training.redaction._replaced", lambda text, _: text)
    with pytest.raises(RedactionError, match="still"):
        Redactor().text("bob@example.com")


def test_a_row_lets_through_what_its_columns_declare_and_nothing_else() -> None:
    """A value of another kind is left out and named; a value without a column is a fault of ours."""
    values = {
        "sequence": "bob@example.com",
        "event_id": "bob@example.com",
        "occurred_at": "bob@example.com",
        "run": 5,
        "version": True,
        "payload": {"x": b"bob@example.com"},
        "agent": "bob@example.com",
    }
    row = redact(Draft(DataType.AGENT_EVENTS, values), REDACTOR)
    assert "bob" not in json.dumps(row)
    for name in ("sequence", "event_id", "occurred_at", "run", "version", "payload"):
        assert row[name] is None
        assert f"{name}: " in row["withheld"]
    assert (row["agent"], row["redactions"]) == ("[redacted:email]", 1)
    with pytest.raises(KeyError, match="surprise"):
        redact(Draft(DataType.AGENT_EVENTS, {"surprise": "bob@example.com"}), REDACTOR)


def test_safe_columns_hold_numbers_times_and_ids_as_they_are() -> None:
    """They are not looked at, so that no sequence is taken for a phone number."""
    when = datetime(2026, 11, 21, 10, tzinfo=UTC)
    identity = "5f3f4f52-9c55-5b7b-9d0c-1a4f7c0f6c1e"
    values = {"sequence": 4155552671, "event_id": identity, "occurred_at": when, "cost_usd": Decimal("0.10")}
    row = redact(Draft(DataType.AGENT_TASKS, values), REDACTOR)
    assert (row["sequence"], row["event_id"], row["cost_usd"]) == (4155552671, identity, "0.10")
    assert row["occurred_at"] == "2026-11-21T10:00:00.000000Z"
    assert row["withheld"] is None
    assert set(COLUMNS) == set(DataType)


@given(st.text(max_size=200), st.sampled_from(CANARIES), st.text(max_size=200))
@settings(deadline=None, max_examples=300)
def test_nothing_around_a_secret_hides_it(before: str, canary: Canary, after: str) -> None:
    """Whatever characters come before and after."""
    text = f"{before} {canary.text} {after}"
    try:
        found = REDACTOR.text(text).value
    except RedactionError:
        return
    assert not any(piece in found for piece in canary.pieces)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=400))
@settings(deadline=None, max_examples=300)
def test_redacting_again_changes_nothing(text: str) -> None:
    """What was let through once is let through again, so bytes do not depend on how often somebody looked."""
    once = REDACTOR.text(text)
    assert REDACTOR.text(once.value) == type(once)(once.value, 0)


def test_time_grows_with_the_text_and_no_faster() -> None:
    """Texts are written by others, also to make somebody wait."""
    for block in (
        "a" * 50,
        "@" * 50,
        "1 2-3.4(5)" * 5,
        "\\u0041" * 8,
        "AB12 CD34 " * 5,
        "key=" * 12,
        "://a:b" * 9,
        "%41" * 16,
    ):
        times = []
        for size in (20_000, 80_000):
            text = (block * (size // len(block) + 1))[:size]
            begun = time.process_time()
            with contextlib.suppress(RedactionError):
                REDACTOR.text(text)
            times.append(time.process_time() - begun)
        assert times[1] < 10 * times[0] + 1, (block, times)


def test_the_vendors_rules_are_there() -> None:
    """A release of the library that loads none must not go unnoticed."""
    assert len(detectors._vendor_rules()) >= 40


def test_own_secrets_are_those_of_the_environment_the_keys_and_the_addresses(tmp_path: Path) -> None:
    """Names tell, and passwords in addresses; places are none."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "roy.nk").write_text("SUAKEYOFROY\n")
    environment = {
        "OPENAI_API_KEY": "value-of-key",
        "GITHUB_TOKEN": "value-of-token",
        "DATABASE_URL": "postgres://coat:p%40ss-word@db/x",
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "SHORT_KEY": "abc",
        "KEYS_DIR": str(tmp_path),
    }
    found = own_secrets(environment, folders=[tmp_path / "keys"], urls=["nats://u:nats-password@h:1"])
    assert found == {"value-of-key", "value-of-token", "p%40ss-word", "p@ss-word", "SUAKEYOFROY", "nats-password"}


def test_a_secret_is_known_in_every_spelling() -> None:
    """In JSON, in CSV, in an address, in base64 at any offset."""
    secret = 'a"b\\c/ü-quokka'
    spelled = list(spellings(secret))
    for text in (json.dumps(secret), secret.replace('"', '""'), json.dumps(secret, ensure_ascii=False)):
        assert any(part in text.encode() for part in spelled)
    import base64  # noqa: PLC0415

    for offset in range(3):
        coded = base64.b64encode(b"x" * offset + secret.encode() + b"yz")
        assert any(part in coded for part in spelled), offset
