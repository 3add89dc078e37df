"""Mistakes in a configuration, in words for the person who wrote it.

pydantic's texts speak of inputs and models; where a better word is likely, it is said (`did you mean`).
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from coatcheck.config.places import Key

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_EXPECTED: Final = re.compile(r"'([^']*)'")
_WORDS: Final = {
    "Input should be a valid array": 'should be an array, like ["…"]',
    "Input should be an object": "should be a table",
    "Input should be a valid string": "should be a text in quotes",
    "Input should be a valid boolean": "should be true or false",
    "Input should be a valid integer": "should be a whole number",
    "Input should be a valid number": "should be a number",
}
_PATTERNS: Final = {
    r"\.md$": "should be the name of a Markdown file, ending in .md",
    r"^(scripted|[a-z0-9_-]+:\S+)$": "should be provider:model, like openai:gpt-5-mini, or scripted",
    r"^openai:\S+$": "should be openai:model, like openai:gpt-5-mini; base_url names another endpoint",
    r"^[A-Za-z_][A-Za-z0-9_]*$": "should be the name of a variable, like OPENAI_API_KEY, and not its value",
}


class Mistake(NamedTuple):
    """One thing to be mended."""

    key: Key
    """Where; the place itself when it is there, else the table that lacks it."""
    message: str

    @property
    def path(self) -> str:
        """The key as TOML spells it, with indices: `prices."openai:gpt-5".input_usd`, `roles.sam.tools.0`."""
        return ".".join(str(part) if _is_bare(part) else f'"{part}"' for part in self.key)


def told(error: ValidationError, key: Key, known: type[BaseModel], *, besides: Iterable[str] = ()) -> list[Mistake]:
    """A model's errors as mistakes.

    Args:
        error: Of the table at `key`.
        key: Where the table is.
        known: The table's model, whose fields are what an unknown key may have been meant to be.
        besides: Fields that are not keys of the file.
    """
    hidden = frozenset(besides)
    return [
        Mistake(
            (*key, *item["loc"]), _words(item, [name for name in _known_at(known, item["loc"]) if name not in hidden])
        )
        for item in error.errors(include_url=False)
    ]


def unknown_key(key: Key, known: Sequence[str]) -> Mistake:
    """A key that the file's form does not have."""
    return Mistake(key, f"unknown key{nearest(str(key[-1]), known, others=True)}")


def nearest(name: str, known: Sequence[str], *, others: bool = False) -> str:
    """`; did you mean 'x'?`, or with `others` the list of what there is, or nothing."""
    if found := difflib.get_close_matches(name, known, n=1):
        return f"; did you mean {found[0]!r}?"
    return f"; there are {', '.join(known)}" if others and known else ""


def _words(item: ErrorDetails, fields: Sequence[str]) -> str:
    if item["type"] == "extra_forbidden":
        return f"unknown key{nearest(str(item['loc'][-1]), fields, others=True)}"
    if item["type"] == "missing":
        return "is missing"
    if item["type"] in ("literal_error", "enum"):
        allowed = _EXPECTED.findall(str(item["ctx"]["expected"]))
        return f"{item['input']!r} is none of {', '.join(allowed)}{nearest(str(item['input']), allowed)}"
    if item["type"] in ("too_short", "too_long"):
        few = item["type"] == "too_short"
        bound = f"at least {item['ctx']['min_length']}" if few else f"at most {item['ctx']['max_length']}"
        return f"should have {bound} items, not {item['ctx']['actual_length']}"
    if item["type"] == "string_pattern_mismatch" and (words := _PATTERNS.get(str(item["ctx"]["pattern"]))):
        return words
    message = item["msg"].removeprefix("Value error, ")
    return _WORDS.get(message, message.replace("Input should", "should", 1))


def _known_at(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """The keys of the table that holds the last part of `location`: the model's, or those of a model in its fields."""
    if len(location) > 1:
        field = model.model_fields.get(str(location[0]))
        kinds = _models_in(field.annotation) if field else []
        return list(kinds[0].model_fields) if kinds else []
    return list(model.model_fields)


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def _is_bare(part: str | int) -> bool:
    return isinstance(part, int) or _BARE.fullmatch(part) is not None
