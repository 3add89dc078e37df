"""A run observed from outside while its workers die: the trace is whole, and with content off nothing of it leaves."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from opentelemetry.proto.trace.v1 import trace_pb2
from temporalio.client import Client
from temporalio.worker import Replayer

from coatcheck.events.monitoring import backbone_status
from coatcheck.localstack import LocalStack
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.storage.database import open_pool
from coatcheck.storage.spending import Dimension, spending
from schemas.notice import MAX_NOTICE_BYTES, Notice
from schemas.tracing import trace_id
from tests.acceptance.program import Outcome, coatcheck, environment
from tests.integration.nats_clients import client_as
from tests.telemetry.collector import Collector
from tests.telemetry.tree import attribute, check_exported
from workers.interceptors import CoatcheckInterceptor
from workers.temporal import DATA_CONVERTER, connect, sandbox_runner
from workflows.feature_pipeline import FeaturePipelineWorkflow

BRIEF = "Find customers by name. CANARY-OF-THE-BRIEF must not leave."
KEY = "sk-canary-0123456789abcdef"
DEATHS = "tracer.before_send=kill*1,tracer.after_send=kill*2,agent.after_turn=kill*1"
"""The core worker dies three times with spans in its hands, the agents once in the middle of a round."""
PHOENIX = "http://127.0.0.1:1"
"""Nobody is there; the links say so all the same."""
TEMPORAL = Path(sys.executable).parent / "temporal"
SHORTEST_TEXT = 20
"""Characters of a line that is looked for: a shorter one may be a name."""


@dataclass
class Observed:
    """A finished run, and all that was told of it."""

    stack: LocalStack
    collector: Collector
    run_key: str

    def cli(self, *arguments: str) -> Outcome:
        """A command against the stack."""
        return coatcheck(*arguments, data_dir=Path(self.stack.config.data_dir))

    @property
    def dsn(self) -> str:
        """The database."""
        status = self.stack.status().postgres
        assert status is not None
        return status.dsn

    async def temporal(self) -> Client:
        """A client."""
        status = self.stack.status().temporal
        assert status is not None
        return await connect(status.address, status.namespace)

    def spans(self) -> list[trace_pb2.Span]:
        """Of the run's trace, as often as they came."""
        return [span for span in self.collector.spans() if span.trace_id.hex() == trace_id(self.run_key)]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """One run of the scripted author, with content off and a span for each message."""
    folder = tmp_path_factory.mktemp("telemetry")
    with Collector() as collector:
        env = environment(
            COATCHECK_SCRIPTED_LATENCY_SECONDS="0.02",
            COATCHECK_MODEL="scripted",
            COATCHECK_CONTENT_CAPTURE="off",
            COATCHECK_TRACE_MESSAGES="true",
            COATCHECK_FAILPOINTS=DEATHS,
            COATCHECK_FAILPOINTS_DIR=str(folder),
            OPENAI_API_KEY=KEY,
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            PHOENIX_COLLECTOR_ENDPOINT=PHOENIX,
        )
        with LocalStack(folder / "stack", env=env) as stack:
            data_dir = Path(stack.config.data_dir)
            done = coatcheck("run", "customer-search", BRIEF, "--wait", data_dir=data_dir)
            assert done.code == 0, done.err
            run_key = coatcheck("progress", "customer-search", "--json", data_dir=data_dir).json["run_key"]
            seen = Observed(stack, collector, run_key)
            _wait(lambda: any(span.name == "pipeline" for span in seen.spans()))
            yield seen


def _wait(is_so: Callable[[], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def test_the_trace_is_whole_though_workers_died(observed: Observed) -> None:
    """One root, no orphan, what came twice is the same; agents, turns and tools as the rows have them."""
    assert observed.stack.status().member("core").restarts == 3
    assert observed.stack.status().member("agents").restarts == 1
    spans = observed.spans()
    check_exported(spans)
    kinds = [attribute(span, "openinference.span.kind") for span in {span.span_id: span for span in spans}.values()]
    assert kinds.count("AGENT") == 10
    async with open_pool(observed.dsn) as pool:
        spent = (await spending(pool, Dimension.CALL, run_key=observed.run_key)).total
    llm = {span.span_id: span for span in spans if attribute(span, "openinference.span.kind") == "LLM"}.values()
    assert len(llm) == spent.turns
    assert sum(int(attribute(span, "llm.token_count.prompt") or 0) for span in llm) == spent.tokens_in
    assert sum(int(attribute(span, "llm.token_count.completion") or 0) for span in llm) == spent.tokens_out


async def test_what_was_read_is_a_document(observed: Observed) -> None:
    """Of each RETRIEVER span: subject, sequence and sha256 of what a round has handed in."""
    async with open_pool(observed.dsn) as pool:
        rows = await pool.fetch("SELECT output_data FROM task_executions")
    notices = [Notice.model_validate(row["output_data"]) for row in rows]
    stored = {f"{item.nats_channel}/{item.ref.sequence}/{item.ref.sha256}" for item in notices}
    read = [span for span in observed.spans() if attribute(span, "openinference.span.kind") == "RETRIEVER"]
    assert len({span.span_id for span in read}) == 3
    assert {attribute(span, "retrieval.documents.0.document.id") for span in read} <= stored


async def test_the_notice_and_temporal_lead_to_the_trace(observed: Observed) -> None:
    """Where the workers know Phoenix; with the link a notice is no longer than any."""
    link = f"{PHOENIX}/redirects/traces/{trace_id(observed.run_key)}"
    async with open_pool(observed.dsn) as pool:
        rows = await pool.fetch("SELECT output_data FROM task_executions WHERE status = 'completed'")
    notices = [Notice.model_validate(row["output_data"]) for row in rows]
    assert {notice.metadata.trace_url for notice in notices} == {link}
    assert max(len(notice.to_wire()) for notice in notices) <= MAX_NOTICE_BYTES
    handle = (await observed.temporal()).get_workflow_handle("feature/customer-search")
    details = (await handle.query("__temporal_workflow_metadata")).current_details
    assert f"[Trace]({link})" in details


async def test_a_replay_tells_nothing(observed: Observed) -> None:
    """Neither events nor spans: what has happened is told where it happens, and the workflow is not asked again."""
    nats = observed.stack.status().nats
    assert nats is not None
    history = await (await observed.temporal()).get_workflow_handle("feature/customer-search").fetch_history()
    async with client_as(nats, "observer") as client:
        before, began = await backbone_status(client), time.time_ns()
        replayer = Replayer(
            workflows=[FeaturePipelineWorkflow],
            data_converter=DATA_CONVERTER,
            interceptors=[CoatcheckInterceptor()],
            workflow_runner=sandbox_runner(),
        )
        assert (await replayer.replay_workflow(history)).replay_failure is None
        assert await backbone_status(client) == before
    assert [span.name for span in observed.spans() if span.start_time_unix_nano >= began] == []


def test_how_far_traces_are_behind_is_said(observed: Observed) -> None:
    """They have arrived, so not at all."""
    assert observed.cli("events", "status", "--json").json["tracer_lag"] == 0
    lines = [line.split("  ") for line in observed.cli("events", "status").out.splitlines()]
    assert ["not in traces yet", "0"] in [[line[0], line[-1].strip()] for line in lines]
    assert "0 not in traces yet" in observed.cli("doctor").out


def test_a_run_that_is_terminated_has_a_closed_trace(observed: Observed) -> None:
    """Terminated behind our back while it waits for a person, by Temporal's own program."""
    assert observed.cli("run", "left-alone", "Wait for me.", "--gate", "research").code == 0
    _wait(lambda: bool(observed.cli("progress", "left-alone", "--json").json["waiting"]))
    run_key = observed.cli("progress", "left-alone", "--json").json["run_key"]
    temporal = observed.stack.status().temporal
    assert temporal is not None
    command = [TEMPORAL, "workflow", "terminate", "--workflow-id", "feature/left-alone", "--address", temporal.address]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    assert observed.cli("reconcile").code == 0
    left = Observed(observed.stack, observed.collector, run_key)
    _wait(lambda: any(span.name == "pipeline" for span in left.spans()))
    check_exported(left.spans())
    [pipeline] = {span.span_id: span for span in left.spans() if span.name == "pipeline"}.values()
    assert attribute(pipeline, "coatcheck.status") == "cancelled"


def test_messages_are_siblings_of_the_work_that_sends_them(observed: Observed) -> None:
    """A request and its processing hang below the round in whose name the agent asks."""
    spans = observed.spans()
    rounds = {span.span_id for span in spans if attribute(span, "openinference.span.kind") == "AGENT"}
    asked = [span for span in spans if attribute(span, "messaging.destination.template") == "agog.svc.llm.>"]
    assert {span.kind for span in asked} == {trace_pb2.Span.SPAN_KIND_PRODUCER, trace_pb2.Span.SPAN_KIND_CONSUMER}
    assert {span.parent_span_id for span in asked} <= rounds
    batches = [span for span in observed.collector.spans() if span.name == "process audit_log"]
    assert any(link.trace_id.hex() == trace_id(observed.run_key) for span in batches for link in span.links)


async def test_with_content_off_none_of_it_leaves(observed: Observed) -> None:
    """Neither prompts, answers, keys nor paths are in any byte of any request, in traces or logs."""
    told = b"\n".join(body for _, body in observed.collector.bodies)
    assert b"customer-search" in told  # names leave
    assert [text for text in await _texts(observed) if text.encode() in told] == []


async def _texts(observed: Observed) -> set[str]:
    """Everything that somebody wrote in this run, line by line, and the secrets of the stack."""
    found = [BRIEF, "CANARY-OF-THE-BRIEF", KEY, urlsplit(observed.dsn).password or ""]
    nats = observed.stack.status().nats
    assert nats is not None
    async with open_pool(observed.dsn) as pool, client_as(nats, "observer") as client:
        for row in await pool.fetch("SELECT content FROM agent_playground_messages"):
            parts = json.loads(row["content"]).get("parts", [])
            found += [text for part in parts for name in ("content", "args") for text in _strings(part.get(name))]
        for row in await pool.fetch("SELECT output_data FROM task_executions"):
            notice = Notice.model_validate(row["output_data"])
            stored = await DeliverableService(client).fetch(notice.ref)
            files = [artifact.path for artifact in stored.deliverable.artifacts]
            found += [notice.summary, stored.deliverable.content, *files]
    lines = {line.strip() for text in found for line in text.splitlines()}
    return {line for line in lines if len(line) >= SHORTEST_TEXT or "/" in line or ".py" in line}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def test_logs_name_their_run(observed: Observed) -> None:
    """In the files, on the command line, and at the endpoint, where they have the run's trace."""
    shown = observed.cli("logs", "customer-search")
    assert shown.code == 0
    assert "agents INFO backend-2: attempt 1 begins" in shown.out
    assert "gateway INFO backend-2: turn 1: answer" in shown.out
    lines = [json.loads(line) for line in observed.cli("logs", observed.run_key, "--json").out.splitlines()]
    assert {line["run"] for line in lines} == {observed.run_key}
    assert {line["trace_id"] for line in lines} == {trace_id(observed.run_key)}
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    _wait(lambda: any(record.trace_id.hex() == trace_id(observed.run_key) for record in observed.collector.logs()))
    unknown = observed.cli("logs", "nothing-of-that-name")
    assert (unknown.code, "no log line" in unknown.err) == (1, True)


def test_why_names_the_trace(observed: Observed) -> None:
    """Also without Phoenix, and with a link to it where its address is known."""
    assert f"Trace: {trace_id(observed.run_key)}" in observed.cli("why", "customer-search").out
    linked = coatcheck(
        *("why", "customer-search", "--json"),
        data_dir=Path(observed.stack.config.data_dir),
        PHOENIX_COLLECTOR_ENDPOINT="http://phoenix:6006/",
    )
    assert linked.json["trace_url"] == f"http://phoenix:6006/redirects/traces/{trace_id(observed.run_key)}"
