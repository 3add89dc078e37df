"""What may leave the process: content by the setting, secrets never, and only text that every backend can store.

Content is whatever a person or a model wrote: prompts, answers, tool arguments and results, summaries, reasons, error
messages, comments, paths. Names and numbers are not: agents, stages, models, tickets, sha256, tokens, the feature's
name, which is in every subject and workflow id anyway.
"""

import functools
import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from coatcheck.redaction import redacted

PREVIEW_BYTES: Final = 2048
"""Of each text; a run of six stages stays below 300 KB with it."""
MAX_FULL_BYTES: Final = 256 * 1024
"""Of each text, even with `full`: four times a long deliverable. Looking for secrets takes 1 to 2 s per MB."""
NAME_CHARACTERS: Final = 200
"""At most, of what is looked over once and not again: each span of a run repeats the same names."""
REDACTED_BEYOND: Final = 1024
"""Bytes behind a cut that are looked at too, so that a key which begins before the cut is known for one."""


class ContentCapture(StrEnum):
    """How much content telemetry may hold."""

    OFF = "off"
    """None."""
    PREVIEW = "preview"
    """The first 2 KB of each text, with the size and the sha256 of the whole."""
    FULL = "full"
    """All, up to 256 KB of each text."""


@dataclass(frozen=True)
class Privacy:
    """The rule of one process."""

    capture: ContentCapture = ContentCapture.PREVIEW
    secrets: tuple[str, ...] = ()
    """Known ones, such as the passwords of the servers: taken out wherever they occur."""

    @property
    def has_content(self) -> bool:
        """Whether any content may leave."""
        return self.capture is not ContentCapture.OFF

    def content(self, text: str) -> str | None:
        """As much of a text as may be exported, redacted; `None`: nothing of it.

        What is cut says so, with the size and the sha256 of the whole, by which it is found where it is stored.
        """
        if not self.has_content or not text:
            return None
        limit = PREVIEW_BYTES if self.capture is ContentCapture.PREVIEW else MAX_FULL_BYTES
        data = text.encode("utf-8", "replace")
        if len(data) <= limit:
            return self.safe(text)
        shown = self.safe(data[: limit + REDACTED_BEYOND].decode("utf-8", "ignore"))
        kept = shown.encode()[:limit].decode("utf-8", "ignore")
        return f"{kept}… [cut: {len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()}]"

    def safe(self, text: str) -> str:
        """A text without secrets, and without NUL and lone surrogates, which make a backend drop its span."""
        return _safe_name(text, self.secrets) if len(text) <= NAME_CHARACTERS else _safe(text, self.secrets)


def _safe(text: str, secrets: tuple[str, ...]) -> str:
    storable = text.replace("\0", "\u2400").encode("utf-8", "replace").decode()
    return str(redacted(storable, secrets))


_safe_name = functools.lru_cache(maxsize=4096)(_safe)
