"""What a judge that reads is shown: the brief and the deliverables, each in a fenced section."""

import hashlib
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import quoteattr

from coatcheck.bench.judges.questions import JudgingError, Question, read_content
from coatcheck.bench.judging import JudgeCase
from coatcheck.errors import CoatcheckError
from schemas.deliverable import DeliverableRef
from schemas.events import StageCompleted, StageStarted
from schemas.judging import Criterion

SECTION_CHARACTERS: Final = 100_000
"""Of one deliverable: 25,000 tokens, so that the six of a run fit a context of 200,000."""
FENCE_DIGITS: Final = 16
"""64 bits of the section's own sha256: a text that contains its own cannot be searched for in practice."""


@dataclass(frozen=True)
class Sections:
    """Part of a prompt."""

    text: str
    note: str
    """What was cut, for whoever reads the judge's opinion; empty when nothing was."""


async def build_sections(case: JudgeCase, question: Question, criterion: Criterion) -> Sections:
    """The brief, what the stage was given where the criterion wants it, and what is to be judged.

    Raises:
        JudgingError: the brief is not known, or a deliverable cannot be read.
    """
    if not case.brief.strip():
        raise JudgingError("the brief is not known here: events carry its sha256 alone")
    parts: list[tuple[str, dict[str, str], str]] = [("brief", {}, case.brief)]
    if question.stage is not None and criterion.inputs:
        parts += await _inputs(case, question.stage)
    for stage in [question.stage] if question.stage else case.last_rounds():
        about = {"stage": stage.payload.stage, "round": str(stage.payload.round), "agent": stage.payload.notice.agent}
        parts.append(("deliverable", about, await read_content(case, stage)))
    cut = [about.get("stage", tag) for tag, about, body in parts if len(body) > SECTION_CHARACTERS]
    note = f"(Judged on the first {SECTION_CHARACTERS:,} characters of {', '.join(cut)}.)" if cut else ""
    return Sections("\n\n".join(section(tag, about, body) for tag, about, body in parts), note)


def section(tag: str, attributes: dict[str, str], body: str) -> str:
    """One fenced section; a long body is cut, and the section says so."""
    body = body.encode("utf-8", "replace").decode()
    fence = hashlib.sha256(body.encode()).hexdigest()[:FENCE_DIGITS]
    written = "".join(f" {name}={quoteattr(value)}" for name, value in attributes.items())
    shown = body[:SECTION_CHARACTERS]
    if len(body) > len(shown):
        shown += f"\n[Cut: {len(body) - len(shown):,} of {len(body):,} characters are not shown.]"
    return f'<{tag} fence="{fence}"{written} untrusted="true">\n{shown}\n</{tag} fence="{fence}">'


async def _inputs(case: JudgeCase, stage: StageCompleted) -> list[tuple[str, dict[str, str], str]]:
    """The deliverables that the round was handed."""
    given: dict[str, str] = {}
    for event in case.events:
        if isinstance(event, StageStarted) and event.entity_id == stage.entity_id:
            given = event.payload.inputs
    parts = []
    for name, ticket in given.items():
        try:
            stored = await case.fetch(DeliverableRef.from_ticket(ticket))
        except (CoatcheckError, ValueError) as error:
            raise JudgingError(f"the input {name} of {stage.payload.stage}: {error}") from error
        parts.append(("input", {"stage": name}, stored.deliverable.content))
    return parts
