"""Takes secrets out of texts that others wrote: providers and drivers repeat keys and addresses in their errors."""

import re
from collections.abc import Iterable
from typing import Any, Final

HIDDEN: Final = "***"
LEAST_SECRET: Final = 6
"""Characters: a shorter password would take half of a text with it."""
_SHAPES: Final = (
    re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"),  # user and password in an address
    re.compile(r"\b(?:sk|pk|rk|ghp|gho|xox[abp])[-_][A-Za-z0-9_*.-]{6,}"),  # keys of providers and forges
    re.compile(r"\bAKIA[A-Z0-9]{12,}\b"),
    re.compile(r"\bS[A-Z][A-Z2-7]{54,}\b"),  # seeds of NATS keys
    re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_.-]+"),  # JSON web tokens
)
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


def _redacted(value: Any, known: list[str]) -> Any:
    if isinstance(value, str):
        for secret in known:
            value = value.replace(secret, HIDDEN)
        for shape in _SHAPES:
            value = shape.sub(HIDDEN, value)
        return _NAMED.sub(rf"\1{HIDDEN}", value)
    if isinstance(value, dict):
        return {key: _redacted(item, known) for key, item in value.items()}
    return [_redacted(item, known) for item in value] if isinstance(value, list) else value
