"""The line of every key of a TOML document, whatever its form."""

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coatcheck.config.places import Key, Places

DOCUMENT = '''\
# comment
plain = 1
dotted.key . "q k" = 'x'  # [no.table]
text = """
[no.table]
no = "key"
"""
array = [1, # one
  [2,
   3], { y = [
   4] },
]

[roles.sam]
tools = [
  "a",
  "b",
]
[[pipelines.secure.stages]]
name = "a"
[[pipelines.secure.stages]]
name = "b"
[pipelines.secure.stages.sub]
deep = { a.b = 1 }
[pipelines]
late = true
'''


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (("plain",), 2),
        (("dotted",), 3),
        (("dotted", "key", "q k"), 3),
        (("text",), 4),
        (("array", 0), 8),
        (("array", 1), 9),
        (("array", 1, 1), 10),
        (("array", 2), 10),
        (("array", 2, "y", 0), 11),
        (("roles",), 14),
        (("roles", "sam"), 14),
        (("roles", "sam", "tools"), 15),
        (("roles", "sam", "tools", 1), 17),
        (("pipelines", "secure", "stages"), 19),
        (("pipelines", "secure", "stages", 0), 19),
        (("pipelines", "secure", "stages", 0, "name"), 20),
        (("pipelines", "secure", "stages", 1), 21),
        (("pipelines", "secure", "stages", 1, "name"), 22),
        (("pipelines", "secure", "stages", 1, "sub"), 23),
        (("pipelines", "secure", "stages", 1, "sub", "deep", "a", "b"), 24),
        (("pipelines",), 25),
        (("pipelines", "late"), 26),
        # What is not there has the place of what is around it.
        (("roles", "sam", "task_type"), 14),
        (("roles", "sam", "tools", 7), 15),
        (("pipelines", "secure", "stages", 1, "agent"), 21),
        (("nowhere", "at", "all"), 1),
        ((), 1),
    ],
    ids=str,
)
def test_every_form_of_a_key_has_its_line(key: Key, line: int) -> None:
    """Tables, arrays of tables, dotted and quoted keys, inline tables, texts of many lines."""
    assert tomllib.loads(DOCUMENT)
    assert Places(DOCUMENT).line(key) == line


NAMES = ["a", "b-1", "c_2", "3", "with space", "dotted.name", "é", 'quo"te', "back\\slash", "", "#", "[x]", "=", "'"]
SCALARS = ["1", "-0.5e3", "true", "2026-11-01T07:32:00Z", '"a # \\" ] }"', "'[x] = \\'", '"""one """', "inf"]
TEXTS = ['"""\n[no.table]\nno = 1\n"""', "'''\n]\n# no\n'''", '"""\\\n  x\\\n"""']


class Writer:
    """Writes a document and notes the line of each key."""

    def __init__(self, draw: st.DrawFn, newline: str) -> None:
        self._draw = draw
        self._newline = newline
        self.parts: list[str] = []
        self.line = 1
        self.expected: dict[Key, int] = {}

    def write(self, text: str) -> None:
        """Append."""
        self.parts.append(text.replace("\n", self._newline))
        self.line += text.count("\n")

    def note(self, key: Key) -> None:
        """The key is mentioned here; the first mention counts."""
        self.expected.setdefault(key, self.line)

    def table(self, name: str) -> None:
        """A table, or an array of tables, with one inside it that may come first."""
        if self._draw(st.booleans()):
            for index in range(self._draw(st.integers(1, 3))):
                self.note((name,))
                self.header((name, index), f"[[{self.key(name)}]]")
                if self._draw(st.booleans()):
                    self.header((name, index, "sub"), f"[{self.key(name)}.sub]")
            return
        outer, inner = ((name,), f"[{self.key(name)}]"), ((name, "sub"), f"[ {self.key(name)} . sub ]")
        for key, text in self._draw(st.permutations([outer, inner])):
            self.note((name,))
            self.header(key, text)

    def header(self, key: Key, text: str) -> None:
        """The header of a table and some pairs."""
        self.expected[key] = self.line
        self.write(f"{text}  # comment\n")
        self.pairs(key)

    def pairs(self, table: Key) -> None:
        """Some pairs, one a line, with empty lines and comments between them."""
        for name in self._draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3)):
            self.write(self._draw(st.sampled_from(["", "\n", "# a = 1\n", "\t"])))
            self.pair((*table, name), depth=2)
            self.write("\n")

    def pair(self, key: Key, depth: int) -> None:
        """One pair, its key dotted or not."""
        self.note(key)
        self.write(self.key(str(key[-1])))
        if self._draw(st.booleans()):
            key = (*key, "in")
            self.note(key)
            self.write(".in")
        self.write(" = ")
        self.value(key, depth)

    def value(self, key: Key, depth: int) -> None:
        """A scalar, a text of many lines, an array or an inline table."""
        kind = self._draw(st.sampled_from(["scalar", "text", "array", "table"] if depth else ["scalar", "text"]))
        if kind == "array":
            self.write("[")
            for index in range(self._draw(st.integers(0, 3))):
                self.write(self._draw(st.sampled_from(["", "\n", " # ]\n\n"])))
                self.note((*key, index))
                self.value((*key, index), depth - 1)
                self.write(" ,")
            self.write("]")
        elif kind == "table":
            names = self._draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3))
            self.write("{")
            for index, name in enumerate(names):
                self.write(", " if index else " ")
                self.pair((*key, name), depth - 1)
            self.write("}")
        else:
            self.write(self._draw(st.sampled_from(SCALARS if kind == "scalar" else TEXTS)))

    def key(self, name: str) -> str:
        """Bare where that is possible, else in quotes of one kind or the other."""
        forms = [json.dumps(name)]
        if re.fullmatch(r"[A-Za-z0-9_-]+", name):
            forms.append(name)
        if "'" not in name:
            forms.append(f"'{name}'")
        return self._draw(st.sampled_from(forms))


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[Key, int]]:
    """A document and the line of each of its keys."""
    writer = Writer(draw, draw(st.sampled_from(["\n", "\r\n"])))
    writer.pairs(())
    for index in range(draw(st.integers(0, 3))):
        writer.table(f"table {index}" if draw(st.booleans()) else f"table-{index}")
    return "".join(writer.parts), writer.expected


def keys(value: Any, key: Key = ()) -> Iterator[Key]:
    """Every key of a document."""
    inside: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value))
    for name, part in inside:
        yield (*key, name)
        yield from keys(part, (*key, name))


@settings(max_examples=300, deadline=None)
@given(documents())
def test_every_key_of_any_document_has_its_line(document: tuple[str, dict[Key, int]]) -> None:
    """What `tomllib` understands is what has places, with the names that it has there."""
    text, expected = document
    found = Places(text)
    assert {key: found.line(key) for key in keys(tomllib.loads(text))} == expected
