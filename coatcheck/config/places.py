"""Where each key of a TOML document is, so that a mistake can be told with its line.

`tomllib` gives values without places, so the text is parsed a second time, by tree-sitter's TOML grammar, for the
places alone; a file that `tomllib` takes is sound. Keys are unquoted by `tomllib`, the one judge of what a text means.
"""

import tomllib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import tree_sitter_toml
from tree_sitter import Language, Node, Parser

Key = tuple[str | int, ...]
"""From the document's root down: names of tables, indices of arrays."""


class Places:
    """Key → line, of a document that `tomllib` has read."""

    def __init__(self, text: str) -> None:
        self._lines: dict[Key, int] = {}
        self._elements: Counter[Key] = Counter()
        table: Key = ()
        root = Parser(Language(tree_sitter_toml.language())).parse(text.encode()).root_node
        for node in root.named_children:
            if node.type == "pair":
                self._pair((), node)
            elif node.type in ("table", "table_array_element"):
                table = self._header(node)
                for pair in node.named_children:
                    if pair.type == "pair":
                        self._pair(table, pair)

    def line(self, key: Sequence[str | int]) -> int:
        """The line of `key`, counted from 1; where there is no such key, that of the nearest table around it."""
        path = tuple(key)
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def _header(self, node: Node) -> Key:
        """`[a.b]` or `[[a.b]]`: names on the way that are arrays of tables mean their latest element."""
        names = _names(node.named_children[0])
        path: Key = ()
        for name in names[:-1]:
            path = self._latest((*path, name))
            self._lines.setdefault(path, _line(node))
        path = (*path, names[-1])
        if node.type == "table_array_element":
            self._lines.setdefault(path, _line(node))
            self._elements[path] += 1
            path = self._latest(path)
        # Also when a table inside it was named before it: this is where its own keys are.
        self._lines[path] = _line(node)
        return path

    def _latest(self, path: Key) -> Key:
        return (*path, self._elements[path] - 1) if path in self._elements else path

    def _pair(self, table: Key, node: Node) -> None:
        key, value = node.named_children[0], node.named_children[-1]
        path = table
        for name in _names(key):
            path = (*path, name)
            self._lines.setdefault(path, _line(key))
        self._value(path, value)

    def _value(self, path: Key, node: Node) -> None:
        if node.type == "inline_table":
            for pair in node.named_children:
                if pair.type == "pair":
                    self._pair(path, pair)
        elif node.type == "array":
            elements = [child for child in node.named_children if child.type != "comment"]
            for index, element in enumerate(elements):
                self._lines[*path, index] = _line(element)
                self._value((*path, index), element)


def _line(node: Node) -> int:
    return node.start_point.row + 1


def _names(key: Node) -> list[str]:
    """The parts of a bare, quoted or dotted key."""
    assert key.text is not None
    table: Any = tomllib.loads(f"{key.text.decode()} = 0")
    names = []
    while isinstance(table, dict):
        [(name, table)] = table.items()
        names.append(name)
    return names
