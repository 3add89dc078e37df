"""One round of one stage: from a tiny input to a published deliverable and a notice, in one activity.

Order and idempotency: the turns are journalled by the proxy under (task key, turn); files are stored by their content;
the deliverable is published with the task key as its message id, last, so that it never names a file that is not there;
the notice is made from what is stored. A second attempt replays the turns for nothing, finds its files and its message
and returns the same ticket, wherever the first one died. What the round did is told last, under ids that a second
attempt tells again (`RoundEvents`).
"""

import asyncio
import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from coatcheck.agents.author import Author, Spent, Written
from coatcheck.agents.desk import MADE_FROM, Desk, Stores
from coatcheck.agents.events import MAX_ARTIFACTS, RoundEvents, SendEvents
from coatcheck.agents.evidence import as_markdown, objection, summarise
from coatcheck.agents.prompt import build_prompt
from coatcheck.agents.proxy_model import TaskFinishedError
from coatcheck.agents.reports import NO_BLOCKERS, Finding
from coatcheck.errors import AgentOutputError
from coatcheck.failpoints import failpoint
from coatcheck.workspace.folder import WorkspaceFolder
from schemas.activities import StageOrder
from schemas.deliverable import Deliverable, DeliverableMetadata, DeliverableRef, StoredDeliverable
from schemas.event_payloads import DeliverablePublished
from schemas.evidence import Evidence
from schemas.notice import Notice, Verdict
from schemas.pipeline import StageKind
from schemas.roles import Role
from schemas.streams import stream_name
from schemas.subjects import deliverable_subject
from schemas.tracing import trace_page

FINDINGS_BYTES: Final = 300
"""For the marks of a review in a notice of 1 KB: 18 findings with short ids."""


@dataclass(frozen=True)
class Task:
    """One attempt at one round of one stage."""

    order: StageOrder
    task_key: str
    attempt: int


class StageRunner:
    """Runs rounds for one agent identity."""

    def __init__(
        self,
        role: Role,
        *,
        author: Author,
        stores: Stores,
        workspaces: WorkspaceFolder,
        send_events: SendEvents,
        phoenix_url: str | None = None,
    ) -> None:
        self._role = role
        self._author = author
        self._stores = stores
        self._workspaces = workspaces
        self._send_events = send_events
        self._phoenix_url = phoenix_url
        """Where notices say that the trace is, if anywhere."""

    async def run(self, task: Task) -> Notice:
        """Do the round and return its notice; raises as `_run` does.

        Raises:
            AgentOutputError: something in a report or a deliverable cannot be stored or read; not retried, since it
                would be the same the next time.
        """
        try:
            return await self._run(task)
        except ValueError as error:
            raise AgentOutputError(f"{self._role.agent}: {error}") from error

    async def _run(self, task: Task) -> Notice:
        """Do the round.

        Raises:
            CoatcheckError: what the author raises (`ModelAuthor.write`, `CommandAuthor.write`), besides:
            ArtifactInvalidError: too many files or bytes, or a path that none may have; not retried.
            DeliverableTooLargeError: the report does not fit into a message; not retried.
            MessagingUnavailableError: the publish is indeterminate; a retry finds out.
        """
        started = time.monotonic()
        prompt, claims = build_prompt(self._role, task.order)
        with ExitStack() as stack:
            async with RoundEvents(self._role.agent, task.order, self._send_events) as events:
                events.attempt(task.attempt)
                desk = Desk(
                    order=task.order,
                    claims=claims,
                    stores=self._stores,
                    events=events,
                    open_workspace=lambda: stack.enter_context(self._workspaces.open(task.task_key, task.order.stage)),
                )
                try:
                    stored, spent = await self._deliver(task, desk, prompt, started)
                except TaskFinishedError as finished:
                    return finished.notice
                events.published(self._told(stored, task.order))
                if (evidence := _evidence(stored.deliverable)) is not None:
                    events.evidence(str(evidence.isolation), summarise(evidence))
            await asyncio.to_thread(stack.close)  # many files take seconds to remove
        return self._notice(stored.deliverable, spent, ref=stored.ref, task=task)

    async def _deliver(self, task: Task, desk: Desk, prompt: str, started: float) -> tuple[StoredDeliverable, Spent]:
        """Have the report written and publish it, or find what an earlier attempt has published."""
        written = await self._author.write(task.task_key, prompt, desk)
        if isinstance(written, StoredDeliverable):
            return written, Spent()
        return await self._publish(await self._wrap(written, desk, started), task), written.spent

    async def _wrap(self, written: Written, desk: Desk, started: float) -> Deliverable:
        """Put the report, its files and, for a test, its evidence together."""
        report, order = written.report, desk.order
        custom, content = report.custom_fields(), report.report
        if self._role.reports is StageKind.TEST:
            ran = desk.evidence if not report.checks else None
            evidence = ran or await desk.run_checks(report.checks)
            custom, content = self._judged(custom, content, evidence, order.stage)
        files = await desk.own_files()
        artifacts = await self._stores.artifacts.put(self._role.agent, files) if files else []
        metadata = DeliverableMetadata(
            agent=self._role.agent,
            taskType=self._role.task_type,
            feature=order.feature,
            timestamp=datetime.now(UTC),
            files_analyzed=report.files_analyzed,
            duration_minutes=round((time.monotonic() - started) / 60, 3),
            model=", ".join(sorted(written.spent.models)),
            **custom,
            **({MADE_FROM: desk.made_from()} if order.inputs else {}),
        )
        return Deliverable(content=content, metadata=metadata, artifacts=artifacts)

    def _judged(self, custom: dict[str, Any], content: str, evidence: Evidence, own: str) -> tuple[dict[str, Any], str]:
        """Bind the verdict to the evidence: a pass that it does not bear out becomes a fail, and the text says so."""
        doubt = None
        if custom["verdict"] == Verdict.PASS:
            doubt = objection(evidence, own=own, required=self._role.evidence == "required")
        fields = custom | {"evidence": evidence.model_dump(mode="json")}
        if doubt is not None:
            rework = list(dict.fromkeys(item.stage for item in evidence.failures))
            fields |= {"verdict": Verdict.FAIL, "claimed_verdict": Verdict.PASS, "rework": rework}
            fields |= {"summary": f"The claim of a pass was not accepted: {doubt}"}
        return fields, content.rstrip() + as_markdown(evidence, doubt)

    async def _publish(self, deliverable: Deliverable, task: Task) -> StoredDeliverable:
        """Publish, or find what an earlier attempt has published; the notice is about what is stored."""
        await failpoint("agent.before_publish")
        published = await self._stores.deliverables.publish_report(
            deliverable,
            task_key=task.task_key,
            stream=stream_name(self._role.task_type),
            subject=self._subject(task.order),
        )
        await failpoint("agent.after_publish")
        return StoredDeliverable(
            subject=self._subject(task.order),
            ref=published.ref,
            task_key=task.task_key,
            deliverable=published.earlier or deliverable,
        )

    def _told(self, stored: StoredDeliverable, order: StageOrder) -> DeliverablePublished:
        artifacts = stored.deliverable.artifacts
        return DeliverablePublished(
            stage=order.stage,
            round=order.round,
            subject=stored.subject,
            stream=stored.ref.stream,
            sequence=stored.ref.sequence,
            sha256=stored.ref.sha256,
            bytes=stored.ref.bytes,
            files=len(artifacts),
            artifacts=artifacts[:MAX_ARTIFACTS],
        )

    def _subject(self, order: StageOrder) -> str:
        return deliverable_subject(self._role.agent, self._role.task_type, order.feature)

    def _notice(self, stored: Deliverable, spent: Spent, *, ref: DeliverableRef, task: Task) -> Notice:
        said = stored.metadata.model_extra or {}
        optional = {
            "cost_usd": spent.cost_usd,
            "tokens_cached": spent.tokens_cached or None,
            "attempt": task.attempt if task.attempt > 1 else None,
            "verdict": said.get("verdict"),
            "rework": said.get("rework") or None,
            "findings": _marks([Finding.model_validate(item) for item in said.get("findings") or []]) or None,
            "evidence": summarise(evidence) if (evidence := _evidence(stored)) is not None else None,
            "trace_url": trace_page(self._phoenix_url, task.order.run_key) if self._phoenix_url else None,
        }
        is_blocked = said["blockers"] != NO_BLOCKERS
        return self._stores.deliverables.create_notice(
            agent=self._role.agent,
            feature=task.order.feature,
            subject=self._subject(task.order),
            ref=ref,
            summary=said["summary"],
            status="blocked" if is_blocked else "complete",
            complexity=said["complexity"],
            blockers=said["blockers"],
            ready_for_next_stage=not is_blocked,
            files_modified=len(stored.artifacts) or said["files_modified"],
            completion_time=datetime.now(UTC),
            round=task.order.round,
            tokens_in=spent.tokens_in,
            tokens_out=spent.tokens_out,
            **{name: value for name, value in optional.items() if value is not None},
        )


def _evidence(deliverable: Deliverable) -> Evidence | None:
    said = deliverable.metadata.model_extra or {}
    return Evidence.model_validate(said["evidence"]) if "evidence" in said else None


def _marks(findings: list[Finding]) -> list[str]:
    """What the workflow sees of a review: major findings first, as many as a notice has room for."""
    marks: list[str] = []
    for finding in sorted(findings, key=lambda item: item.severity != "major"):
        marks.append(str(finding.mark))
        if len(json.dumps(marks)) > FINDINGS_BYTES:
            return marks[:-1]
    return marks
