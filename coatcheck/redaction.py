"""Takes secrets out of texts that others wrote: providers and drivers repeat keys and addresses in their errors."""

import re
from collections.abc import Iterable
from typing import Any, Final

HIDDEN: Final = "***"
LEAST_SECRET: Final = 6
"""Characters: a shorter password would take half of a text with it."""
_SHAPES: Final = (
    (("://",), re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")),  # user and password in an address
    # Keys of providers and forges.
    (("k-", "k_", "gh", "xox"), re.compile(r"\b(?:sk|pk|rk|ghp|gho|xox[abp])[-_][A-Za-z0-9_*.-]{6,}")),
    (("AKIA",), re.compile(r"\bAKIA[A-Z0-9]{12,}\b")),
    (("S",), re.compile(r"S[A-Z][A-Z2-7]{54,}\b")),  # seeds of NATS keys
    (("eyJ",), re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_.-]+")),  # JSON web tokens
)
"""What a text must contain to be worth a look, and what is looked for: the look alone takes ten times as long."""
_NAMES: Final = ("bearer ", "key", "password", "secret")
_NAMED: Final = re.compile(r"(?i)(\bbearer |\b(?:api[-_ ]?key|password|secret)[\"']?\s*[=:]\s*[\"']?)[^\s\"',]+")
"""What follows such a name."""


def redacted(value: Any, secrets: Iterable[str] = ()) -> Any:
    """The same value without the given secrets, and without anything that looks like one.

    Args:
        value: Text, or JSON values with texts in them; keys of objects are left as they are.
        secrets: Known ones; those of fewer than six characters are not looked for.
    """
    known = sorted((text for text in secrets if len(text) >= LEAST_SECRET), key=len, reverse=True)
    return _redacted(value, known)


def _has_any(text: str, signs: tuple[str, ...]) -> bool:
    for sign in signs:  # noqa: SIM110  a generator would cost more than what it looks for
        if sign in text:
            return True
    return False


def _redacted(value: Any, known: list[str]) -> Any:
    if isinstance(value, str):
        for secret in known:
            value = value.replace(secret, HIDDEN)
        for signs, shape in _SHAPES:
            if _has_any(value, signs):
                value = shape.sub(HIDDEN, value)
        lower = value.lower()
        return _NAMED.sub(rf"\1{HIDDEN}", value) if _has_any(lower, _NAMES) else value
    if isinstance(value, dict):
        return {key: _redacted(item, known) for key, item in value.items()}
    return [_redacted(item, known) for item in value] if isinstance(value, list) else value
