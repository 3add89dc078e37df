"""Notices that fit: whatever an agent writes into a summary, a notice stays within its kilobyte."""

import json
from datetime import datetime
from typing import Any, Final, Literal

from schemas.deliverable import DeliverableRef
from schemas.notice import MAX_NOTICE_BYTES, MAX_SUMMARY_CHARACTERS, Notice, NoticeMetadata

_ELLIPSIS: Final = "…"
_NOT_LAST: Final = " \n\t\u200d"
"""Not left at the end of a text that was cut: white space, and the joiner inside an emoji."""
_MAX_MODEL_CHARACTERS: Final = 80
LEAST_TEXT_BYTES: Final = 60
"""For summary and blockers."""
_BLOCKERS_SHARE: Final = 3
"""Blockers may take a third of the room when both texts are too long."""


def create_notice(  # noqa: PLR0913  the seed's fields, by keyword
    *,
    agent: str,
    feature: str,
    subject: str,
    ref: DeliverableRef,
    summary: str,
    completion_time: datetime,
    status: Literal["complete", "blocked"] = "complete",
    complexity: Literal["Low", "Medium", "High"] = "Medium",
    blockers: str = "None",
    ready_for_next_stage: bool = True,
    files_modified: int = 0,
    **metadata: Any,
) -> Notice:
    """The notice for a published deliverable, at most 1 KB of UTF-8 on the wire.

    `summary` and `blockers` are cut at a character, with an ellipsis, at 120 characters or when they would not fit.

    Args:
        agent: Who did the work.
        feature: The slug.
        subject: Where the deliverable was published.
        ref: Its ticket.
        summary: What was done.
        completion_time: When.
        status: Whether a person is needed.
        complexity: The agent's judgement.
        blockers: What keeps the next stage from starting, or `None`.
        ready_for_next_stage: Whether the pipeline can go on.
        files_modified: By the deliverable.
        metadata: Further fields of `NoticeMetadata`, such as `round`, `tokens_in`, `verdict`.

    Raises:
        ValueError: the other fields alone are over 1 KB.
    """
    if isinstance(model := metadata.get("model"), str):
        metadata["model"] = cut_to_bytes(model, _MAX_MODEL_CHARACTERS)
    notice = Notice(
        status=status,
        agent=agent,
        task=feature,
        nats_channel=subject,
        summary="",
        complexity=complexity,
        blockers="",
        ready_for_next_stage=ready_for_next_stage,
        completion_time=completion_time,
        files_modified=files_modified,
        metadata=NoticeMetadata(
            stream=ref.stream, sequence=ref.sequence, sha256=ref.sha256, bytes=ref.bytes, **metadata
        ),
    )
    notice = _without_extras(notice)
    room = MAX_NOTICE_BYTES - len(notice.to_wire())
    if room < len(_ELLIPSIS.encode()):
        raise ValueError(f"the notice of {agent} for {feature} takes {-room:,} bytes too many without any text")
    summary, blockers = _line(_clean(summary)), _line(_clean(blockers))
    blockers = cut_to_bytes(blockers, max(room // _BLOCKERS_SHARE, room - _size(summary)))
    return notice.model_copy(update={"blockers": blockers, "summary": cut_to_bytes(summary, room - _size(blockers))})


def _without_extras(notice: Notice) -> Notice:
    """Drop what the deliverable has in full, one after the other, until a line of summary fits."""
    metadata = notice.metadata
    evidence = metadata.evidence.model_copy(update={"checks": []}) if metadata.evidence else None
    for update in (
        {"trace_url": None},
        {"evidence": evidence},
        {"findings": None},
        {"rework": (metadata.rework or [])[:1] or None},
    ):
        if len(notice.to_wire()) + LEAST_TEXT_BYTES <= MAX_NOTICE_BYTES:
            break
        notice = notice.model_copy(update={"metadata": notice.metadata.model_copy(update=update)})
    return notice


def _line(text: str) -> str:
    if len(text) <= MAX_SUMMARY_CHARACTERS:
        return text
    return text[: MAX_SUMMARY_CHARACTERS - 1].rstrip(_NOT_LAST) + _ELLIPSIS


def _clean(text: str) -> str:
    """Lone surrogates, which UTF-8 cannot carry, become question marks."""
    return text.encode("utf-8", "replace").decode()


def _size(text: str) -> int:
    """Bytes of `text` inside a JSON string."""
    return len(json.dumps(text, ensure_ascii=False).encode()) - 2


def cut_to_bytes(text: str, room: int) -> str:
    """The longest prefix that fits into `room` bytes of JSON, with an ellipsis when something is missing."""
    if _size(text) <= room:
        return text
    left = room - len(_ELLIPSIS.encode())
    if left < 0:
        return ""
    end = 0
    for character in text:
        left -= _size(character)
        if left < 0:
            break
        end += 1
    return text[:end].rstrip(_NOT_LAST) + _ELLIPSIS
