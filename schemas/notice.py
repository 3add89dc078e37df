"""The notice: what an agent hands to the orchestrator instead of its work. About 200 tokens, at most 1 KB."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from schemas.deliverable import DeliverableRef, Sha256
from schemas.evidence import EvidenceSummary

MAX_NOTICE_BYTES: Final = 1024
MAX_SUMMARY_CHARACTERS: Final = 120
"""One line of a terminal. Every notice is in its run's history, which has to stay below 20 KB."""


class Verdict(StrEnum):
    """What a reviewing or testing stage says of the work before it."""

    APPROVE = "approve"
    REVISE = "revise"
    REJECT = "reject"
    PASS = "pass"  # noqa: S105  a verdict
    FAIL = "fail"


class NoticeMetadata(BaseModel):
    """Our fields; the seed leaves `metadata` open. Absent values are left out on the wire."""

    model_config = ConfigDict(extra="allow")

    stream: str
    sequence: int
    sha256: Sha256
    bytes: int
    round: int
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int | None = None
    """Of `tokens_in`, those that the provider had cached; left out when none."""
    cost_usd: Decimal | None = None
    """Decimal as a string; left out when the price is unknown, which is not the same as free."""
    attempt: int | None = None
    """Left out for the first attempt."""
    verdict: Verdict | None = None
    rework: list[str] | None = None
    """Stages that a failed test sends back."""
    findings: list[str] | None = None
    """Of a review: one `FindingMark` per open finding."""
    evidence: EvidenceSummary | None = None
    """Of a test: what the declared checks did."""
    trace_url: str | None = None
    """The run's trace in Phoenix; left out where no Phoenix is known to the agent's worker."""


class Notice(BaseModel):
    """Field names exactly as in the seed (003, Completion Notice Structure)."""

    status: Literal["complete", "blocked"]
    agent: str
    task: str
    """The feature's slug."""
    nats_channel: str
    """Subject of the deliverable."""
    summary: str
    complexity: Literal["Low", "Medium", "High"] = "Medium"
    blockers: str = "None"
    ready_for_next_stage: bool = True
    completion_time: datetime
    files_modified: int = 0
    metadata: NoticeMetadata

    @property
    def ref(self) -> DeliverableRef:
        """The ticket for the deliverable that this notice announces."""
        meta = self.metadata
        return DeliverableRef(stream=meta.stream, sequence=meta.sequence, sha256=meta.sha256, bytes=meta.bytes)

    def to_wire(self) -> bytes:
        """Compact JSON without absent values."""
        return self.model_dump_json(exclude_none=True).encode()
