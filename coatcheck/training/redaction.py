"""`Redactor`: takes secrets and personal data out of whatever leaves the system as training data. Fail-closed.

A text is looked at as it is written and as it would be read: with the escapes of JSON, of addresses and of HTML
undone, without characters that nobody sees, and with base64 and hexadecimal decoded. The result is looked at again,
and text in which something can still be found is not let through. `coatcheck.redaction` is the small sister of this
one: it has no libraries to load, for errors on their way to a person.
"""

import html
import math
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from coatcheck.training import detectors
from coatcheck.training.detectors import KEY_NAME, Span

MAX_TEXT_CHARACTERS: Final = 2_000_000
"""Of one text: half a million tokens, more than any model is trained on at once; 2 s of work."""
SHORT_TEXT_CHARACTERS: Final = 300
KEPT_TEXTS: Final = 20_000
"""Names, keys and fields come again and again: remembering them is 5 times as fast. 10 MB at most."""
MAX_ROUNDS: Final = 4
MAX_DEPTH: Final = 5
"""Escapes within escapes: JSON in a tool's argument in a message is three."""
LEAST_SECRET: Final = 6
"""Characters: a shorter known value would take half of a text with it."""
_BIG_NUMBER: Final = 7
"""Digits from which a number may be somebody's."""

_ESCAPES: Final = re.compile(
    r"\\u(?P<unicode>[0-9a-fA-F]{4})|\\(?:u\{0{0,4}|U0{4})(?P<wide>[0-9a-fA-F]{1,6})\}?|\\x(?P<byte>[0-9a-fA-F]{2})|\\(?P<single>[\\/\"'`nrtbf\n])"
    r"|%(?P<percent>[0-9a-fA-F]{2})|&(?P<entity>#?\w{2,8});"
    r"|(?P<unseen>[\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff])"
)
_SINGLE: Final = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "\n": ""}
_SURROGATES: Final = re.compile("[\ud800-\udfff]")
_MARKER: Final = re.compile(r"\[redacted:[a-z_]+\]")


class RedactionError(ValueError):
    """This cannot be let through; the message says why and shows nothing of it."""


@dataclass(frozen=True)
class Redacted:
    """What may be shown."""

    value: Any
    """Text, or JSON values with texts in them."""
    count: int
    """How much was taken out."""


class Redactor:
    """Redacts texts and JSON values; the same input gives the same output.

    Args:
        known: Secrets whose values are known, such as our own keys.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._known = sorted({text for text in known if len(text) >= LEAST_SECRET}, key=lambda text: (-len(text), text))
        self._short = lru_cache(KEPT_TEXTS)(self._look_through)

    def text(self, text: str) -> Redacted:
        """Redact one text.

        Raises:
            RedactionError: it is too long, or what is left still looks like a secret.
        """
        if len(text) <= SHORT_TEXT_CHARACTERS:
            return self._short(text)
        return self._look_through(text)

    def _look_through(self, text: str) -> Redacted:
        if len(text) > MAX_TEXT_CHARACTERS:
            raise RedactionError(f"a text of {len(text):,} characters is too long to be looked through")
        clean, count = _SURROGATES.sub("\ufffd", text), 0
        for _ in range(MAX_ROUNDS):
            spans = _merged(self._spans(clean), clean)
            if not spans:
                return Redacted(clean, count)
            count += len(spans)
            clean = _replaced(clean, spans)
        raise RedactionError("a text still looks like a secret after redaction")

    def json(self, value: Any) -> Redacted:
        """Redact every text in a JSON value, names of fields too; a value under a secret's name is hidden whole.

        Raises:
            RedactionError: as `text`; or it holds what is not JSON, and so nothing that was declared safe.
        """
        if value is None or isinstance(value, bool):
            return Redacted(value, 0)
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, int | float):
            return self._number(value)
        if isinstance(value, Mapping):
            return self._object(value)
        if isinstance(value, list | tuple):
            items = [self.json(item) for item in value]
            return Redacted([item.value for item in items], sum(item.count for item in items))
        raise RedactionError(f"a value of type {type(value).__name__} is not declared safe")

    def _number(self, value: float) -> Redacted:
        """A number may be a card's or a phone's, and its neighbours do not tell."""
        if isinstance(value, float) and not math.isfinite(value):
            raise RedactionError("a number is not finite")
        digits = str(value)
        if len(digits) < _BIG_NUMBER or isinstance(value, float):
            return Redacted(value, 0)
        found = self.text(digits)
        return found if found.count else Redacted(value, 0)

    def _object(self, value: Mapping[Any, Any]) -> Redacted:
        fields: dict[str, Any] = {}
        count = 0
        for name, item in value.items():
            if not isinstance(name, str):
                raise RedactionError("a field's name is no text")
            hidden = KEY_NAME.search(name) is not None and isinstance(item, str) and bool(item)
            key, found = self.text(name), Redacted("[redacted:named]", 1) if hidden else self.json(item)
            if key.value in fields:
                raise RedactionError("two fields have the same name after redaction")
            fields[key.value] = found.value
            count += key.count + found.count
        return Redacted(fields, count)

    def _spans(self, text: str) -> Iterator[Span]:
        """Findings in the text as it is written, and in every way of reading it, in the text's own positions."""
        yield from self._found(text)
        reading = _Reading.of(text)
        for _ in range(MAX_DEPTH):
            if (deeper := reading.unescaped()) is None:
                return
            reading = deeper
            for span in self._found(reading.text):
                yield reading.origin(span)

    def _found(self, text: str) -> Iterator[Span]:
        yield from self._plain(text)
        for start, end, decoded in detectors.encoded(text):
            if any(True for _ in self._plain(decoded)):
                yield Span(start, end, "encoded")

    def _plain(self, text: str) -> Iterator[Span]:
        for secret in self._known:
            at = text.find(secret)
            while at >= 0:
                yield Span(at, at + len(secret), "known")
                at = text.find(secret, at + 1)
        yield from detectors.secrets(text)
        yield from detectors.personal(text)


@dataclass(frozen=True)
class _Reading:
    """A text with escapes undone, and where in the original each of its characters begins and ends."""

    text: str
    begins: "array[int]"
    ends: "array[int]"

    @classmethod
    def of(cls, text: str) -> "_Reading":
        return cls(text, array("L", range(len(text))), array("L", range(1, len(text) + 1)))

    def unescaped(self) -> "_Reading | None":
        """One level deeper; `None` when there is nothing to undo."""
        pieces: list[str] = []
        begins, ends = array("L"), array("L")
        done = 0
        for match in _ESCAPES.finditer(self.text):
            if (meaning := _meaning(match)) is None:
                continue
            start, end = match.span()
            pieces += [self.text[done:start], meaning]
            begins += self.begins[done:start] + array("L", [self.begins[start]] * len(meaning))
            ends += self.ends[done:start] + array("L", [self.ends[end - 1]] * len(meaning))
            done = end
        if not done:
            return None
        pieces.append(self.text[done:])
        return _Reading("".join(pieces), begins + self.begins[done:], ends + self.ends[done:])

    def origin(self, span: Span) -> Span:
        """Where a finding is in the original."""
        return Span(self.begins[span.start], self.ends[span.end - 1], span.kind)


def _meaning(match: "re.Match[str]") -> str | None:
    """What an escape stands for; `None` when it is none."""
    kind, body = match.lastgroup, match[match.lastgroup or 0]
    if kind in {"unicode", "wide"}:
        code = int(body, 16)
        return chr(code) if code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF else None  # noqa: PLR2004  Unicode's
    if kind in {"byte", "percent"}:
        return chr(int(body, 16))
    if kind == "single":
        return _SINGLE.get(body, body)
    if kind == "entity":
        plain = html.unescape(match[0])
        return plain if plain != match[0] else None
    return ""


def _merged(spans: Iterable[Span], text: str) -> list[Span]:
    """In order, overlapping ones as one, and none that only repeats an earlier redaction's mark."""
    marks = [match.span() for match in _MARKER.finditer(text)]
    merged: list[Span] = []
    for span in sorted(spans):
        if any(begin <= span.start and span.end <= end for begin, end in marks) or span.start == span.end:
            continue
        if merged and span.start < merged[-1].end:
            last = merged[-1]
            merged[-1] = Span(last.start, max(last.end, span.end), last.kind)
        else:
            merged.append(span)
    return merged


def _replaced(text: str, spans: list[Span]) -> str:
    parts: list[str] = []
    done = 0
    for start, end, kind in spans:
        parts += [text[done:start], f"[redacted:{kind}]"]
        done = end
    return "".join([*parts, text[done:]])


def plain(value: Any) -> Any:
    """A model's Python values as JSON: times and decimals as text. Others stay, for the redactor to refuse."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return format(value, "f")
    return value
