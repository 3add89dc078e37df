"""`why`: asks Temporal, PostgreSQL and NATS about one run, each with its own patience, and shows what they say.

One that is down costs a line that says so, not the answer: which of them is down may be the answer.
"""

import asyncio
import contextlib
import difflib
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote

from pydantic import ValidationError
from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.service import RPCError

from coatcheck.cli.diagnosis import CHECKS
from coatcheck.cli.explanation import Facts, Message, ProducedFile, Wait, compose, latest_notices, message_of
from coatcheck.cli.output import emit, emit_json
from coatcheck.cli.pending import look
from coatcheck.cli.progress import QUERY_TIMEOUT, from_rows
from coatcheck.cli.runs import FoundRun, RunNotFoundError, find, find_record
from coatcheck.cli.screen import screen
from coatcheck.cli.session import UP_HINT, load_settings, open_database, open_nats, open_temporal, temporal_errors
from coatcheck.cli.waits import waits_of
from coatcheck.errors import CoatcheckError, DependencyDownError
from coatcheck.localstack.status import MemberState, load_status
from coatcheck.messaging.accounts import TRACER
from coatcheck.messaging.consumer import consumer_lag
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.redaction import redacted
from coatcheck.settings import Settings
from coatcheck.storage import state
from coatcheck.storage.budgets import run_budget
from coatcheck.storage.database import Pool
from coatcheck.storage.spending import Dimension, spending
from schemas.notice import Notice
from schemas.pipeline import TaskNotice
from schemas.streams import AUDIT_LOG
from schemas.tracing import trace_page
from schemas.workflow_ids import activity_id
from workflows.feature_pipeline import FeaturePipelineWorkflow

NATS_SECONDS: Final = 6.0
"""To connect (3 s at most) and to read one deliverable of each stage, a few MB as a rule."""
_READS_AT_ONCE: Final = 4
_PIPELINE: Final = "FeaturePipeline"
_KNOWN_RUNS: Final = 500
_NEAREST: Final = 3


async def explain(run: str, *, as_json: bool, data_dir: Path) -> None:
    """Print where the run is and why.

    Raises:
        RunNotFoundError: no server that answers knows it; the hint has the nearest names.
        DependencyDownError: neither Temporal nor PostgreSQL answers.
    """
    settings = load_settings(data_dir)
    async with AsyncExitStack() as resources:
        facts = await Inquiry(run, settings, resources).facts()
    explanation = compose(facts, waits_of(facts))
    if as_json:
        emit_json(redacted(explanation.model_dump(mode="json"), settings.secrets))
    else:
        emit(redacted(screen(explanation, datetime.now(UTC)), settings.secrets))


class Inquiry:
    """Asks every source about one run."""

    def __init__(self, run: str, settings: Settings, resources: AsyncExitStack) -> None:
        self._run = run
        self._settings = settings
        self._resources = resources
        self._missing: list[str] = []
        self._troubles: dict[str, Wait] = {}
        """By server or worker; the first one to notice says it."""

    async def facts(self) -> Facts:
        """Everything that could be learnt; raises as `explain` does."""
        self._ask_stack()
        client, found = await self._temporal()
        pool = await self._database()
        facts = await self._identified(client, found, pool)
        if client and facts.found:
            await self._ask_temporal(client, facts)
        if pool:
            await self._ask_database(pool, facts)
        await asyncio.gather(self._ask_nats(facts), self._ask_gateway())
        facts.missing, facts.troubles = self._missing, list(self._troubles.values())
        facts.ui_url = ui_url(self._settings, facts.found) if facts.found else None
        if self._settings.phoenix_url:
            facts.trace_url = trace_page(self._settings.phoenix_url, facts.run_key)
        facts.has_traces = facts.has_traces or self._settings.has_otlp("traces") or facts.trace_url is not None
        return facts

    # --- which run ----------------------------------------------------------------------------------------------

    async def _temporal(self) -> tuple[Client | None, FoundRun | None]:
        try:
            client = await open_temporal(self._settings)
        except CoatcheckError as error:
            self._lost("temporal", f"{error}: nothing moves until it does", str(error))
            return None, None
        try:
            return client, await find(client, self._run)
        except RunNotFoundError:
            return client, None
        except DependencyDownError as error:
            self._lost("temporal", f"{error}: nothing moves until it does", str(error))
            return None, None

    async def _database(self) -> "Pool | None":
        try:
            return await self._resources.enter_async_context(open_database(self._settings))
        except CoatcheckError as error:
            self._lost("postgres", f"{error}: no step is taken that cannot be recorded there", str(error))
            return None

    async def _identified(self, client: Client | None, found: FoundRun | None, pool: "Pool | None") -> Facts:
        if client is None and pool is None:
            raise DependencyDownError("; ".join(self._missing), hint=UP_HINT)
        record = None
        if pool:
            # Its first step may not be recorded yet, or it was refused before that.
            with contextlib.suppress(RunNotFoundError):
                record = await find_record(pool, found.run_key if found else self._run)
        if found:
            return Facts(found.workflow_id, found.run_key, found=found, record=record)
        if record is None:
            raise await self._unknown(client, pool)
        if client:
            self._missing.append("Temporal does not know this run any more: these are the recorded rows")
        return Facts(record.temporal_workflow_id, record.run_key, record=record)

    async def _unknown(self, client: Client | None, pool: "Pool | None") -> RunNotFoundError:
        names: set[str] = set()
        if pool:
            for record in await state.list_runs(pool, _KNOWN_RUNS):
                names |= {record.feature, record.temporal_workflow_id}
        elif client:
            with temporal_errors():
                names = {item.id async for item in client.list_workflows(limit=_KNOWN_RUNS)}
        nearest = difflib.get_close_matches(self._run, sorted(names), n=_NEAREST)
        meant = f"did you mean {' or '.join(map(repr, nearest))}? " if nearest else ""
        unsaid = f" ({'; '.join(self._missing)})" if self._missing else ""
        return RunNotFoundError(
            f"no run is called {self._run!r}{unsaid}", hint=f"{meant}`coatcheck runs` lists what there is"
        )

    # --- what is known of it ------------------------------------------------------------------------------------

    async def _ask_temporal(self, client: Client, facts: Facts) -> None:
        assert facts.found is not None
        try:
            facts.view = await look(client, facts.found)
        except RPCError as error:
            self._lost("temporal", f"Temporal does not answer: {error.message}", f"Temporal: {error.message}")
            return
        if facts.view.workflow_type != _PIPELINE:
            raise CoatcheckError(
                f"{facts.workflow_id} is a {facts.view.workflow_type}, not the run of one feature",
                hint="`coatcheck program status NAME` shows a program, and its features by name",
            )
        handle = facts.found.handle(client)
        try:
            facts.progress, facts.notices = await asyncio.gather(
                handle.query(FeaturePipelineWorkflow.progress, rpc_timeout=QUERY_TIMEOUT),
                handle.query(FeaturePipelineWorkflow.notices, rpc_timeout=QUERY_TIMEOUT),
            )
            facts.has_answered = True
        except RPCError:
            self._missing.append("no core worker answers: the stages are as they were last recorded")
        except WorkflowQueryFailedError:
            self._missing.append("the run has not got to its first stage")

    async def _ask_database(self, pool: Pool, facts: Facts) -> None:
        try:
            facts.tasks = await state.tasks(pool, facts.run_key)
            facts.events = await state.events(pool, facts.run_key)
            facts.stages = await spending(pool, Dimension.STAGE, run_key=facts.run_key)
            facts.calls = await spending(pool, Dimension.CALL, run_key=facts.run_key)
            facts.budget = await run_budget(pool, facts.run_key)
        except DependencyDownError as error:
            self._lost("postgres", f"{error}: no step is taken that cannot be recorded there", str(error))
        if facts.has_answered or facts.record is None:
            return
        facts.progress = from_rows(facts.record, facts.tasks)
        facts.notices = [
            TaskNotice(stage=task.stage, round=task.round, notice=Notice.model_validate(task.output_data))
            for task in facts.tasks
            if task.output_data
        ]

    async def _ask_nats(self, facts: Facts) -> None:
        """Which files the latest message of each stage has, and whether traces are made."""
        latest = latest_notices(facts.notices).values()
        facts.messages = [_message(item) for item in latest]
        try:
            async with asyncio.timeout(NATS_SECONDS), open_nats(self._settings) as client:
                facts.has_traces = await consumer_lag(client, stream=AUDIT_LOG.name, name=TRACER) is not None
                service, gate = DeliverableService(client), asyncio.Semaphore(_READS_AT_ONCE)
                reads = (_with_files(service, item, gate) for item in latest)
                facts.messages = list(await asyncio.gather(*reads))
        except TimeoutError:
            self._missing.append(f"NATS gave no answer within {NATS_SECONDS:g} s: no files are told")
        except DependencyDownError as error:
            self._lost("nats", f"{error}: agents can neither ask models nor publish", f"{error}: no files are told")
        except CoatcheckError as error:
            self._missing.append(f"NATS: {error}: no files are told")

    async def _ask_gateway(self) -> None:
        try:
            with temporal_errors():
                await CHECKS["gateway worker"](self._settings)
        except DependencyDownError as error:
            if "nats" not in self._troubles:
                self._troubles.setdefault("gateway", _trouble(f"a gateway worker: {error}"))
        except CoatcheckError:
            pass  # this machine has no key to ask with; that says nothing about the gateway

    def _ask_stack(self) -> None:
        """The local stack knows at once who has died; servers that only answer need a while to be missed."""
        try:
            status = load_status(self._settings.data_dir)
        except (OSError, ValidationError):
            return
        for member in (*status.servers, *status.workers):
            if member.state is not MemberState.RUNNING:
                ended = f" ({member.last_exit})" if member.last_exit else ""
                what = f"{member.name} of the local stack, which is {member.state.replace('_', ' ')}{ended}"
                self._troubles[member.name] = _trouble(f"{what}; its log is {member.log}")

    def _lost(self, name: str, trouble: str, note: str) -> None:
        self._troubles.setdefault(name, _trouble(trouble))
        self._missing.append(note)


def _trouble(what: str) -> Wait:
    return Wait(what=what, remedies=["coatcheck up", "coatcheck doctor"])


def _message(item: TaskNotice, **found: object) -> Message:
    return Message(
        stage=item.stage,
        task=activity_id(item.stage, item.round),
        message=message_of(item.notice),
        bytes=item.notice.metadata.bytes,
    ).model_copy(update=found)


async def _with_files(service: DeliverableService, item: TaskNotice, gate: asyncio.Semaphore) -> Message:
    async with gate:
        try:
            stored = await service.fetch(item.notice.ref)
        except DependencyDownError:
            raise
        except CoatcheckError as error:
            return _message(item, problem=str(error))
    files = [ProducedFile(path=found.path, bytes=found.bytes) for found in stored.deliverable.artifacts]
    return _message(item, files=files)


def ui_url(settings: Settings, found: FoundRun) -> str | None:
    """The run's page in the Web UI of the local stack; `None` when Temporal is not the stack's own."""
    status = load_status(settings.data_dir).temporal
    if status is None or status.ui_url is None or status.address != settings.temporal_address:
        return None
    return f"{status.ui_url}/namespaces/{status.namespace}/workflows/{quote(found.workflow_id, safe='')}/{found.run_id}"
