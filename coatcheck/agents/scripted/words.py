"""The request's own words: sentences, key terms and names, drawn deterministically from any text in any language."""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from keyword import iskeyword, issoftkeyword
from typing import Final

from slugify import slugify

MAX_TERMS: Final = 8
MAX_FIELDS: Final = 3
MAX_TERM_CHARACTERS: Final = 24
"""Scripts without spaces give whole clauses as one word; longer ones are no terms."""
MIN_LATIN_CHARACTERS: Final = 3
"""Shorter ASCII words carry little; one CJK character or emoji can be a word."""
MAX_QUOTE_CHARACTERS: Final = 160

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]+")
_SPACE: Final = re.compile(r"\s+")
_WORD: Final = re.compile(
    # Everything but white space and punctuation: `\w` would cut Indic words at their vowel signs and drop emoji.
    r"[^\s!-/:-@\[-`{-~\u00a1-\u00bf\u2000-\u200b\u2010-\u206f\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\u0964\u061f\u060c]+"
)
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f\u0964\u061f])\s*|[\n\r]+|;\s+")
_BULLET: Final = re.compile(r"^\s*(?:[-*+•>#]+|\d+[.)])\s+")
_ENUMERATION: Final = re.compile(
    r"(\w{3,20})((?:, \w{3,20}){0,6}),? (?:and|or|und|oder|et|ou|y|o|e|en|of|и|или) (\w{3,20})\b"
)
_STOP: Final = frozenset(
    """
    a about above add after again all also always an and any are as at available be because been before being below
    between both but by can cannot could did do does doing down during each either every few for form from further get
    gets give gives had has have having he her here him his how if in into is it its itself just keep let like made make
    makes many may me might more most must my need needs never no nor not now of off on once one only or other our out
    over own per please same see shall she should show shows since so some such than that the their them then there
    these they this those three through to too two under until up use used user users using very via want wants was we
    well were what when where which while who why will with within without work works would you your
    aber als auch auf aus bei das dem den der des die durch ein eine einem einen einer eines fur für hat haben ihre im
    ist kann können man mit muss nach nicht nur oder sein sich sie sind soll sollen über und unter von vor werden wenn
    wie wir wird zu zum zur
    alle aux avec ce ces cette dans de des doit du elle en est et être il ils je la le les leur leurs mais ne nous ou
    où par pas plus pour que qui sa sans se ses son sont sur un une vous
    al como con cuando del desde el ella ellos entre es esta este hay las lo los más para pero por puede se según ser
    si sin sobre su sus tiene todo una uno y
    """.split()  # noqa: SIM905  three hundred quoted words are no easier to read
)


@dataclass(frozen=True)
class Term:
    """A word that the request leans on."""

    text: str
    count: int


def clean(text: str) -> str:
    """One line of harmless markdown text: no control characters, line breaks, code fences, table bars or tags."""
    line = _SPACE.sub(" ", _CONTROL.sub(" ", text)).strip()
    return line.replace("`", "'").replace("|", "¦").replace("<", "\u2039").replace(">", "\u203a")


def quote(text: str, limit: int = MAX_QUOTE_CHARACTERS) -> str:
    """The cleaned text, cut after `limit` characters, in quotation marks."""
    return f"“{cut(clean(text), limit)}”"


def cut(text: str, limit: int) -> str:
    """The text, ended by an ellipsis where it is over `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def words(text: str) -> list[str]:
    """All words, in order; emoji and words of any script count."""
    return _WORD.findall(text)


@lru_cache(maxsize=256)
def sentences(text: str) -> tuple[str, ...]:
    """The sentences and list items of a text that have at least one word; a text without words is one sentence."""
    lines = (clean(_BULLET.sub("", piece)) for piece in _SENTENCE_END.split(text))
    found = tuple(line for line in lines if _WORD.search(line))
    return found or (clean(text) or "(no words)",)


@lru_cache(maxsize=256)
def key_terms(feature: str, brief: str) -> tuple[Term, ...]:
    """The words that the brief repeats most, first mentioned first among equals; the slug's when it has none.

    Returns:
        1 to 8 terms.
    """
    spelled = {word.casefold(): word for word in reversed(words(brief))}
    counts = Counter(word.casefold() for word in words(brief))
    # most_common keeps the order of first mention among equals.
    ranked = (Term(clean(spelled[word]), count) for word, count in counts.most_common() if _is_term(word))
    return tuple(islice(ranked, MAX_TERMS)) or tuple(Term(word, 1) for word in feature.split("-")[:MAX_TERMS])


def _is_term(folded: str) -> bool:
    if folded in _STOP or len(folded) > MAX_TERM_CHARACTERS or _CONTROL.search(folded) or folded[0].isdigit():
        return False
    return len(folded) >= MIN_LATIN_CHARACTERS or not folded.isascii()


def title(feature: str) -> str:
    """`customer-search` → `Customer search`."""
    return feature.replace("-", " ").capitalize()


def identifier(text: str) -> str:
    """A snake_case Python name for any text, or nothing when it has no letters that can be transcribed."""
    name = slugify(text, separator="_", max_length=30)
    return f"{name}_" if iskeyword(name) or issoftkeyword(name) else name if name[:1].isalpha() else ""


@lru_cache(maxsize=256)
def field_names(feature: str, brief: str) -> tuple[tuple[str, str], ...]:
    """Up to three fields of the feature's record, as (name, the brief's word): what it enumerates, else its terms."""
    own = {identifier(word) for word in feature.split("-")} | {"", "id", "title"}
    fields: dict[str, str] = {}
    for word in (*_enumerated(brief[:20_000]), *(term.text for term in key_terms(feature, brief))):
        name = identifier(word)
        if name not in own and name.rstrip("s") not in own and f"{name}s" not in own:
            fields.setdefault(name, word)
        if len(fields) == MAX_FIELDS:
            break
    return tuple(fields.items()) or (("details", "details"),)


def _enumerated(brief: str) -> list[str]:
    found: list[str] = []
    for first, middle, last in _ENUMERATION.findall(brief):
        if middle or not found:
            found += [first, *middle.removeprefix(", ").split(", "), last]
    return [word for word in dict.fromkeys(found) if word and _is_term(word.casefold())]


def folded(text: str) -> str:
    """What two texts have in common when they differ in case or composition; the generated module does the same."""
    return unicodedata.normalize("NFC", text).casefold()


def search_word(text: str) -> str:
    """The word of a requirement by which its record is searched for: the longest, else the whole text."""
    candidates = [word for word in words(text) if len(word) <= MAX_TERM_CHARACTERS and folded(word) in folded(text)]
    plain = [word for word in candidates if _is_term(word.casefold())]
    return max(plain or candidates or [text], key=len)
