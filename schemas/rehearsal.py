"""Cues for the scripted author, in the brief: so a run without a model can be led down any branch on purpose.

A cue is JSON in a fenced block named `rehearsal`. Only the scripted author obeys it; a language model reads a block of
JSON that asks it for nothing, and no other part of the system looks for one.
"""

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from schemas.subjects import Slug

_BLOCK: Final = re.compile(r"\n*^```rehearsal\n(.*?)\n```[ \t]*$\n?", re.MULTILINE | re.DOTALL)


class Cue(BaseModel):
    """What the author does in certain rounds of a stage instead of what it would do by itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    stage: Slug
    rounds: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """All when empty."""
    do: Literal["report", "refuse", "busy"] = "report"
    """`report`: hand in the report with `fields` changed. `refuse`: as a provider that rejects the request for good.
    `busy`: as one that is over its limit and says when to come back; all runs on that model wait."""
    fields: dict[str, Any] = {}
    """For `report`: fields of the output tool, such as `{"verdict": "revise", "findings": […]}`."""
    times: Annotated[int, Field(ge=1, le=100)] = 1
    """For `busy`: how often the round's first turn is put off; then it is answered."""
    seconds: Annotated[float, Field(gt=0, le=60)] = 1
    """For `busy`: when to come back; over 2 s the stage is parked, below that the turn waits."""

    def is_for(self, stage: str, round_number: int) -> bool:
        """Whether it is about that round."""
        return self.stage == stage and (not self.rounds or round_number in self.rounds)


_CUES: Final = TypeAdapter(tuple[Cue, ...])


def with_cues(brief: str, cues: Sequence[Cue]) -> str:
    """The brief with its cues at the end."""
    if not cues:
        return brief
    listed = json.dumps([cue.model_dump(mode="json", exclude_defaults=True) for cue in cues], ensure_ascii=False)
    return f"{brief.rstrip()}\n\n```rehearsal\n{listed}\n```\n"


def split_cues(brief: str) -> tuple[str, tuple[Cue, ...]]:
    """The brief without its cues, and the cues; a block that does not hold any is left where it is."""
    found = _BLOCK.search(brief)
    if found is None:
        return brief, ()
    try:
        cues = _CUES.validate_json(found[1])
    except ValueError:
        return brief, ()
    return brief[: found.start()] + brief[found.end() :], cues
