"""Names on the wire: the encoder is reversible, and nothing illegal comes out."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.subjects import MAX_TOKEN_LENGTH, check_slug, decode_token, deliverable_subject, encode_token

LEGAL = re.compile(r"[a-z0-9_=A-F-]{1,200}")
NASTY = [
    ".",
    "..",
    "*",
    ">",
    "a.b",
    "a b",
    "\r\n",
    "\x00",
    "=",
    "=h",
    "../../etc",
    "ÄÖ",
    "e\u0301",
    "🧥",
    "\u200f",
    "A",
    "",
]


@given(st.text(max_size=60))
def test_tokens_round_trip(name: str) -> None:
    """Up to Unicode normalisation, for every name that is not too long for a subject."""
    token = encode_token(name)
    assert LEGAL.fullmatch(token)
    if not token.startswith("=h"):
        assert decode_token(token) == unicodedata.normalize("NFC", name)


@given(st.text(min_size=201, max_size=400))
def test_long_names_become_hashes(name: str) -> None:
    """They cannot be decoded, and say so."""
    token = encode_token(name)
    assert len(token) <= MAX_TOKEN_LENGTH
    with pytest.raises(ValueError, match="hash"):
        decode_token(token)


@given(st.text(max_size=30), st.text(max_size=30))
def test_different_names_have_different_tokens(one: str, other: str) -> None:
    """Also when one looks like the encoding of the other."""
    same = unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
    assert (encode_token(one) == encode_token(other)) == same


@pytest.mark.parametrize("name", NASTY)
def test_nasty_names_are_encoded_or_refused(name: str) -> None:
    """What the system meets is encoded; what people choose is refused."""
    assert decode_token(encode_token(name)) == unicodedata.normalize("NFC", name)
    with pytest.raises(ValueError, match="slug"):
        check_slug(name)
    with pytest.raises(ValueError, match="slug"):
        deliverable_subject("roy", "backend", name)


@pytest.mark.parametrize("token", ["=4", "=zz", "=41", "A", "a.b", "=61"])
def test_what_the_encoder_never_makes_is_refused(token: str) -> None:
    """A token has one spelling."""
    with pytest.raises((ValueError, UnicodeDecodeError)):
        decode_token(token + ("" if token != "=41" else "=61"))
