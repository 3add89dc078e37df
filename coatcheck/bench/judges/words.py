"""Which words of one text occur in another: all that a judge without a model can see of meaning."""

import re
from typing import Final

STEM: Final = 5
"""Characters: `forgives` and `forgiving` are one word, `customer` and `custom` too, which is the price."""
LEAST: Final = 4
_WORD: Final = re.compile(r"[^\W_]+")
_ITEM: Final = re.compile(r"^\s{0,8}(?:[-*+]|\d{1,3}[.)])\s+(?:\[[ xX]\]\s+)?(.+)$")
_COMMON_WORDS: Final = """
about after also been before being both cannot could does done each else even every from have into like made
make more most must need none only other ought over same shall should some such than that their them then there
these they this those very want were what when where which while will with within without would your
"""
_COMMON: Final = frozenset(_COMMON_WORDS.split())


def stems(text: str) -> set[str]:
    """The words that carry meaning, cut to `STEM` characters; numbers whole."""
    words = (word.casefold() for word in _WORD.findall(text))
    return {
        word if word.isdigit() else word[:STEM]
        for word in words
        if word.isdigit() or (len(word) >= LEAST and word not in _COMMON)
    }


def points(brief: str) -> list[str]:
    """What a brief asks for: the items of its lists, or its sentences when it has no list."""
    items = [match[1].strip() for line in brief.splitlines() if (match := _ITEM.match(line))]
    return items or [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n{2,}", brief) if part.strip()]
