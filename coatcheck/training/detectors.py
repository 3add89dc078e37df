"""Finds secrets and personal data in a text: where, and of which kind.

Rules for vendors' formats are those of detect-secrets, phone numbers are libphonenumber's; what they lack is here, with
the shape it must have. Expressions run in RE2 where it takes them, whose time grows with the text and no faster,
since models and users write these texts. Names, postal addresses and the like have no shape and are not found.
"""

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final, NamedTuple

import re2  # type: ignore[import-untyped]
from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.plugins.base import RegexBasedDetector
from detect_secrets.plugins.ip_public import IPPublicDetector
from phonenumbers import Leniency, PhoneNumberMatcher

REGIONS: Final = (None, "US", "GB", "DE", "FR")
"""Whose national ways of writing a phone number are known; `None` stands for `+` and the country's code."""
KEY_NAME: Final = re.compile(
    r"(?i)pass(?:word|wd|phrase|code)|\bpwd\b|secret|credential|authorization|cookie"
    r"|(?:api|access|account|auth|private|service|signing|encryption)[-_ ]?key"
    r"|(?:^|[-_ .]|auth|access|refresh|bearer|session|id)token$"
)
"""A name whose value is hidden whatever it looks like."""

_SECRETS: Final = {
    "address": r"[a-zA-Z][a-zA-Z0-9+.-]{1,20}://[^/\s:@\"'<>]*:[^/\s@\"'<>]+@",
    "key": r"\b(?:sk|pk|rk)[-_][A-Za-z0-9][A-Za-z0-9_*.-]{5,}",
    "token": r"\b(?:gh[oprsu]_|github_pat_|gl[a-z]{2,8}-|hf_|npm_|dop_v1_|shp(?:at|ss)_|lin_api_|dckr_pat_"
    r"|xox[abeoprs]-|xapp-)[A-Za-z0-9][A-Za-z0-9_.-]{9,}|\bpypi-[A-Za-z0-9_-]{40,}",
    "google": r"\bAIza[A-Za-z0-9_-]{30,}|\bya29\.[A-Za-z0-9_-]{20,}|\bGOCSPX-[A-Za-z0-9_-]{20,}",
    "aws": r"\b(?:AKIA|ASIA|ABIA|ACCA|A3T[A-Z0-9])[A-Z0-9]{12,}",
    "nats": r"\bS[NCOUAX][A-Z2-7]{54,}\b",
    "jwt": r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_.=-]+",
    "private_key": r"(?s)-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----.*?"
    r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\z)",
    "authorization": r"(?i)\bbearer[ :]+[A-Za-z0-9._~+/=-]{8,}"
    r"|\bauthorization[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?:[a-z]{4,10} +)?[A-Za-z0-9._~+/=-]{6,}",
    "named": r"(?i)(?:pass(?:word|wd|phrase)|pwd|secret|credentials?"
    r"|(?:api|access|account|auth|private|service|signing)[-_ ]?key"
    r"|(?:auth|access|refresh|bearer|session|id|api)[-_ ]?token)"
    r"[A-Za-z0-9_]{0,20}[\"'`\]]{0,2}\s{0,3}(?:=>|:=|[=:])\s{0,3}"
    r"(?:[rbf]?[\"'`][^\"'`\n]{3,}[\"'`]?|[^\s\"'`,;(){}\[\]<>]{4,})",
}
"""Those of `coatcheck.redaction`, wider: here a word too many costs nothing."""
_PERSONAL: Final = {
    "email": r"[\pL\pN.!#$%&'*+/=?^_{|}~-]+@[\pL\pN-]+(?:\.[\pL\pN-]+)*\.[\pL][\pL\pN-]+",
    "ssn": r"\b\d{3}-\d{2}-\d{4}\b",
}
_BASIC: Final = r"(?i)\bbasic +[A-Za-z0-9+/_-]{8,}={0,2}"
_CARD: Final = r"\b\d(?:[ -]?\d){11,18}\b"
_IBAN: Final = r"(?i)\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}\b"
_ADDRESS: Final = r"(?i)\b(?:\d{1,3}\.){3}\d{1,3}\b|[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}"
_NUMBER: Final = r"[+(]?\d[\d ().\-/\x{a0}]{4,24}\d"
_NOT_A_NUMBER: Final = (
    r"(?i)\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b[0-9a-f]{40,}\b"
    r"|\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?"
)
"""Ids, hashes and times, in which digits happen to look like somebody's."""
_LEAST_CARD, _MOST_CARD, _LEAST_IBAN, _MOST_IBAN = 13, 19, 15, 34
_LEAST_PHONE: Final = 7
"""Digits."""
_ENCODED: Final = r"[A-Za-z0-9+/_-]{16,}={0,2}"
_WORD: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+/=.")


class Span(NamedTuple):
    """A finding in a text."""

    start: int
    end: int
    kind: str


def secrets(text: str) -> Iterator[Span]:
    """Keys, tokens, passwords beside their names, and private keys."""
    for kind, expression in _own_rules():
        for match in expression.finditer(text):
            yield Span(match.start(), match.end(), kind)
    for expression in _vendor_rules():
        for match in expression.finditer(text):
            yield Span(match.start(), _word_end(text, match.end()), "secret")


def personal(text: str) -> Iterator[Span]:
    """E-mail addresses, phone and social security numbers, cards, IBANs, and addresses of the public internet."""
    for kind, expression in _personal_rules():
        for match in expression.finditer(text):
            yield Span(match.start(), match.end(), kind)
    masked = _masked(text)
    for kind, expression, is_one in _checked_rules():
        for match in expression.finditer(masked):
            if is_one(match.group()):
                yield Span(match.start(), match.end(), kind)
    for match in _compiled(_NUMBER).finditer(masked):
        yield from _phones(masked, match.start(), match.end())


def encoded(text: str) -> Iterator[tuple[int, int, str]]:
    """Runs that are base64 or hexadecimal of a readable text: start, end, that text."""
    for match in _compiled(_ENCODED).finditer(text):
        for plain in _decodings(match.group()):
            yield match.start(), match.end(), plain


def _phones(text: str, start: int, end: int) -> Iterator[Span]:
    """With a character on either side, by which the matcher tells a number from a part of a word."""
    if sum(map(str.isdigit, text[start:end])) < _LEAST_PHONE:
        return
    first = max(0, start - 1)
    around = text[first : end + 1]
    for region in REGIONS:
        for found in PhoneNumberMatcher(around, region, leniency=Leniency.VALID):
            yield Span(first + found.start, first + found.end, "phone")


def _is_card(text: str) -> bool:
    """By Luhn's check digit, whatever numbers stand beside it."""
    return any(_LEAST_CARD <= len(run) <= _MOST_CARD and _passes_luhn(run) for run in _runs(text))


def _passes_luhn(number: str) -> bool:
    digits = [int(character) for character in reversed(number)]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return len(set(digits)) > 1 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    """By ISO 7064, mod 97; what follows it in a sentence may look like more of it."""
    return any(
        int("".join(str(int(character, 36)) for character in run[4:] + run[:4])) % 97 == 1
        for run in _runs(text)
        if _LEAST_IBAN <= len(run) <= _MOST_IBAN and run[:2].isalpha() and run[2:4].isdigit()
    )


def _runs(text: str) -> Iterator[str]:
    """Every run of neighbouring groups, written together."""
    groups = re.split("[ -]", text)
    for first in range(len(groups)):
        for last in range(first + 1, len(groups) + 1):
            yield "".join(groups[first:last])


def _is_login(text: str) -> bool:
    return any(":" in plain for plain in _decodings(text.rsplit(maxsplit=1)[-1]))


def _is_public_address(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _masked(text: str) -> str:
    return "".join(_mask(text))


def _mask(text: str) -> Iterator[str]:
    done = 0
    for match in _compiled(_NOT_A_NUMBER).finditer(text):
        yield text[done : match.start()]
        yield "x" * (match.end() - match.start())
        done = match.end()
    yield text[done:]


def _decodings(run: str) -> Iterator[str]:
    body = run.rstrip("=")
    padded = body.replace("-", "+").replace("_", "/") + "=" * (-len(body) % 4)
    for decode in (_unbase64, _unhex):
        try:
            plain = decode(padded if decode is _unbase64 else body).decode()
        except ValueError:
            continue
        if plain.isprintable() or not any(ord(character) < ord("\t") for character in plain):
            yield plain


def _unbase64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _unhex(text: str) -> bytes:
    return binascii.unhexlify(text)


def _word_end(text: str, end: int) -> int:
    """Where the token ends that a rule has found the beginning of."""
    while end < len(text) and text[end] in _WORD:
        end += 1
    return end


@cache
def _compiled(pattern: str) -> Any:
    return re2.compile(pattern)


@cache
def _own_rules() -> tuple[tuple[str, Any], ...]:
    return tuple((kind, re2.compile(pattern)) for kind, pattern in _SECRETS.items())


@cache
def _personal_rules() -> tuple[tuple[str, Any], ...]:
    return tuple((kind, re2.compile(pattern)) for kind, pattern in _PERSONAL.items())


@cache
def _checked_rules() -> tuple[tuple[str, Any, Callable[[str], bool]], ...]:
    return (
        ("authorization", re2.compile(_BASIC), _is_login),
        ("card", re2.compile(_CARD), _is_card),
        ("iban", re2.compile(_IBAN), _is_iban),
        ("ip", re2.compile(_ADDRESS), _is_public_address),
    )


@cache
def _vendor_rules() -> tuple[Any, ...]:
    """The expressions of every vendor that detect-secrets knows, without its guesses by entropy and by name."""
    # One automaton for all of them was three times slower: together they have too many states to be kept.
    return tuple(_fastest(rule) for rule in sorted(_denylists(), key=lambda rule: (rule.pattern, rule.flags)))


def _denylists() -> Iterator["re.Pattern[str]"]:
    plugin: Any
    for plugin in get_mapping_from_secret_type_to_class().values():
        if issubclass(plugin, RegexBasedDetector) and plugin is not IPPublicDetector:
            yield from plugin().denylist


def _fastest(expression: "re.Pattern[str]") -> Any:
    """The same in RE2, or as it is when it looks around, which RE2 cannot; those are bounded in what they repeat."""
    options = re2.Options()
    options.log_errors = False
    options.case_sensitive = not expression.flags & re.IGNORECASE
    try:
        return re2.compile(expression.pattern, options)
    except re2.error:
        return expression
