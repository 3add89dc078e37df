"""`LineSearch`: a regular expression over lines of text, in bounded time.

The expression comes from a model, so it may be one that takes for ever. RE2 has no backtracking: `(a+)+$` takes as long
as `a+$`. What remains is an expression with large counted repetitions (up to 0.1 ms per byte, measured), hence short
lines and a limit of time that is looked at between them. It is processor time, so that a busy machine does not change
the answer; an ordinary expression takes 2 s for a million lines. The `regex` package was tried: its time limit does
not cover compilation, and it holds the interpreter's lock while it backtracks.
"""

import time
from typing import Any, Final, NamedTuple

import re2  # type: ignore[import-untyped]

from coatcheck.errors import ArtifactInvalidError

MAX_PATTERN_CHARACTERS: Final = 1000
MAX_TEXT_BYTES: Final = 1024 * 1024
"""A larger file is data and not text that somebody wrote."""
MAX_LINE_BYTES: Final = 2000
"""The beginning of a line that is looked at; longer ones are minified or generated."""
MAX_MATCH_CHARACTERS: Final = 300
"""Of a line, as shown."""
SEARCH_SECONDS: Final = 10.0
"""Of processor time; five times what a million ordinary lines take."""

_UNCHECKED_BYTES: Final = 16 * 1024
"""Between looks at the clock: a look costs as much as a line, and the slowest expression takes 1.6 s for them."""
_MAX_MEMORY_BYTES: Final = 1024 * 1024
"""Of one compiled expression; RE2 keeps 128 of them, and its own 8 MiB for each would be a gigabyte."""


class Match(NamedTuple):
    """A line that matches."""

    path: str
    line: int
    """From 1."""
    text: str
    """The line, or 300 characters of it from shortly before the match."""


class LineSearch:
    """Collects the matching lines of the files that it is given.

    Args:
        pattern: In RE2's syntax: no lookaround, no backreferences.
        limit: At most so many lines are collected.
        seconds: Processor time of the calling thread; then `add` refuses to go on.

    Raises:
        ArtifactInvalidError: the pattern is none, or is too long.
    """

    def __init__(self, pattern: str, *, limit: int, seconds: float = SEARCH_SECONDS) -> None:
        self.matches: list[Match] = []
        self._expression = _compile(pattern)
        self._limit = limit
        self._seconds_left = seconds

    @property
    def is_full(self) -> bool:
        """Whether more files would not change the result."""
        return len(self.matches) >= self._limit

    def add(self, path: str, data: bytes) -> None:
        """Look through a file; nothing is found in one with NUL bytes.

        Raises:
            ArtifactInvalidError: the time is used up.
        """
        if not data or b"\0" in data:
            return
        unchecked, begun = 0, time.thread_time()
        for number, line in enumerate(data.removesuffix(b"\n").split(b"\n"), 1):
            if self.is_full:
                return
            text = line[:MAX_LINE_BYTES].removesuffix(b"\r")
            if (found := self._expression.search(text)) is not None:
                self.matches.append(Match(path, number, _excerpt(text, found.start())))
            unchecked += len(text)
            if unchecked > _UNCHECKED_BYTES:
                unchecked, begun = 0, self._spend(begun, f"line {number:,} of {path!r}")
        self._spend(begun, path)

    def _spend(self, begun: float, where: str) -> float:
        now = time.thread_time()
        self._seconds_left -= now - begun
        if self._seconds_left < 0:
            raise ArtifactInvalidError(
                f"the search took too long; it had come to {where}",
                hint="search in one folder, or with a simpler pattern, without large counts such as {1,100}",
            )
        return now


def _compile(pattern: str) -> Any:
    """The compiled expression; `re2` has no types."""
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise ArtifactInvalidError(
            f"the pattern has {len(pattern):,} characters; it may have {MAX_PATTERN_CHARACTERS:,}"
        )
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = _MAX_MEMORY_BYTES
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        raise ArtifactInvalidError(
            f"{pattern!r} is no pattern that can be searched for: {_reason(error)}",
            hint=r"RE2 syntax, without lookaround and backreferences; \Q…\E takes a text as it is",
        ) from error


def _reason(error: Exception) -> str:
    first = error.args[0] if error.args else ""
    return first.decode(errors="replace") if isinstance(first, bytes) else str(error)


def _excerpt(line: bytes, start: int) -> str:
    text, before = line.decode(errors="replace"), len(line[:start].decode(errors="replace"))
    if len(text) <= MAX_MATCH_CHARACTERS:
        return text
    begin = max(0, before - MAX_MATCH_CHARACTERS // 4)
    return text[begin : begin + MAX_MATCH_CHARACTERS]
