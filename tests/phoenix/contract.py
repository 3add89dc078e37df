"""The contract with Phoenix: what a run's trace is once Phoenix has stored it.

`make test-phoenix` runs this; `make test` does not, since Phoenix takes 850 MB. One run of the scripted author, with a
revision, a rework and a person's decision.
"""

import json
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest

from coatcheck.localstack import LocalStack
from coatcheck.localstack.config import ALL_SERVERS
from coatcheck.messaging.accounts import TRACER
from coatcheck.messaging.client import NatsClient
from coatcheck.storage.database import open_pool
from coatcheck.storage.spending import Dimension, spending
from schemas.streams import AUDIT_LOG
from schemas.tracing import round_span_id, trace_id
from tests.acceptance.program import Outcome, coatcheck, environment
from tests.integration.nats_clients import identity

PATIENCE_SECONDS = 240
"""For a first start of Phoenix on a busy machine: 10 s on a quiet one, 95 s were seen."""


@dataclass
class Lab:
    """A stack with Phoenix, and its run."""

    stack: LocalStack
    url: str
    run_key: str = ""

    def cli(self, *arguments: str) -> Outcome:
        """A command that succeeds."""
        outcome = coatcheck(*arguments, data_dir=Path(self.stack.config.data_dir))
        assert outcome.code == 0, outcome.err
        return outcome

    def get(self, path: str, **query: str) -> Any:
        """An answer of Phoenix."""
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
            return json.load(answer)

    def spans(self) -> list[dict[str, Any]]:
        """The run's, as Phoenix has them."""
        found = self.get("/v1/projects/coatcheck/spans", limit="1000", trace_id=trace_id(self.run_key))["data"]
        assert isinstance(found, list)
        return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A finished run that a person has decided in and judges have looked at."""
    env = environment(COATCHECK_SCRIPTED_LATENCY_SECONDS="0.02")
    folder = tmp_path_factory.mktemp("phoenix") / "stack"
    with LocalStack(folder, servers=ALL_SERVERS, env=env) as stack:
        stack.wait_running("phoenix", timeout_seconds=PATIENCE_SECONDS)
        status = stack.status().phoenix
        assert status is not None
        lab = Lab(stack, status.url)
        lab.cli("run", "customer-search", "Find customers by name or city.", "--gate", "statistics")
        wait(lambda: bool(lab.cli("progress", "customer-search", "--json").json["waiting"]))
        lab.cli("decide", "customer-search", "statistics", "approve", "--latest")
        wait(lambda: lab.cli("progress", "customer-search", "--json").json["status"] == "completed")
        lab.run_key = lab.cli("progress", "customer-search", "--json").json["run_key"]
        lab.cli("judge", "customer-search")
        wait(lambda: {"CHAIN", "EVALUATOR"} <= {span["span_kind"] for span in lab.spans()})
        wait(lambda: any(span["name"] == "pipeline" for span in lab.spans()))
        yield lab


def wait(is_so: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_one_tree(lab: Lab) -> None:
    """1 root, 0 orphans, 0 duplicates, 0 UNKNOWN kinds, every span in its session; at most 45 but for the judges'.

    And at most 300 KB with previews of all content.
    """
    spans = lab.spans()
    ids = [span["context"]["span_id"] for span in spans]
    assert len(ids) == len(set(ids))
    assert len([span for span in spans if span["parent_id"] is None]) == 1
    assert {span["parent_id"] for span in spans} - {None} <= set(ids)
    kinds = Counter(span["span_kind"] for span in spans)
    assert kinds.keys() == {"CHAIN", "AGENT", "LLM", "TOOL", "RETRIEVER", "EVALUATOR"}
    assert len(spans) - kinds["EVALUATOR"] <= 45
    assert len(json.dumps(spans)) <= 300_000
    read = [span["attributes"] for span in spans if span["span_kind"] == "RETRIEVER"]
    assert all(item["retrieval.documents.0.document.id"].startswith("agog.deliverables.") for item in read)
    assert {span["attributes"]["session.id"] for span in spans} == {"feature/customer-search"}
    [session] = lab.get("/v1/projects/coatcheck/sessions")["data"]
    assert session["session_id"] == "feature/customer-search"


async def test_tokens_are_those_of_the_rows(lab: Lab) -> None:
    """Each once: Phoenix sums them up along the tree."""
    llm = [span["attributes"] for span in lab.spans() if span["span_kind"] == "LLM"]
    postgres = lab.stack.status().postgres
    assert postgres is not None
    async with open_pool(postgres.dsn) as pool:
        spent = (await spending(pool, Dimension.CALL, run_key=lab.run_key)).total
    assert sum(item["llm.token_count.prompt"] for item in llm) == spent.tokens_in
    assert sum(item["llm.token_count.completion"] for item in llm) == spent.tokens_out
    assert len(llm) == spent.turns


def test_decisions_and_scores_are_annotations(lab: Lab) -> None:
    """On the spans that they are about."""
    ids = [span["context"]["span_id"] for span in lab.spans()]
    path = "/v1/projects/coatcheck/span_annotations"

    def found() -> list[dict[str, Any]]:
        query = urllib.parse.urlencode([("span_ids", item) for item in ids] + [("limit", "1000")])
        with urllib.request.urlopen(f"{lab.url}{path}?{query}", timeout=30) as answer:
            notes: list[dict[str, Any]] = json.load(answer)["data"]
        return notes

    wait(lambda: {"HUMAN", "CODE"} <= {item["annotator_kind"] for item in found()})
    [decision] = [item for item in found() if item["annotator_kind"] == "HUMAN"]
    assert decision["span_id"] == round_span_id(f"{lab.run_key}/statistics-1")
    assert decision["result"]["label"] == "approve"
    assert all(0 <= item["result"]["score"] <= 1 for item in found() if item["annotator_kind"] == "CODE")


def test_the_link_leads_to_the_trace(lab: Lab) -> None:
    """What `why` prints is a page."""
    url = lab.cli("why", "customer-search", "--json").json["trace_url"]
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.status == 200


async def test_every_notice_has_the_link(lab: Lab) -> None:
    """The same that `why` prints."""
    url = lab.cli("why", "customer-search", "--json").json["trace_url"]
    postgres = lab.stack.status().postgres
    assert postgres is not None
    async with open_pool(postgres.dsn) as pool:
        rows = await pool.fetch("SELECT output_data #>> '{metadata,trace_url}' AS said FROM task_executions")
    assert {row["said"] for row in rows} == {url}


async def test_sent_again_it_is_the_same(lab: Lab) -> None:
    """The whole audit log once more, by a tracer that knows of nothing: not a span more."""
    before = sorted(span["context"]["span_id"] for span in lab.spans())
    nats = lab.stack.status().nats
    assert nats is not None
    lab.stack.stop_member("core")
    async with NatsClient(nats.url, user=identity(nats, "core"), name="again") as core:
        await core.api(f"CONSUMER.DELETE.{AUDIT_LOG.name}.{TRACER}")
        lab.stack.start_member("core")
        last = (await core.api(f"STREAM.INFO.{AUDIT_LOG.name}"))["state"]["last_seq"]

        async def done() -> int:
            info = await core.consumer_info(AUDIT_LOG.name, TRACER)
            return int(info["ack_floor"]["stream_seq"]) if info else 0

        deadline = time.monotonic() + PATIENCE_SECONDS
        while await done() < last:
            assert time.monotonic() < deadline
            time.sleep(0.2)  # noqa: ASYNC251  nothing else runs here
    time.sleep(5)  # noqa: ASYNC251  Phoenix stores behind its answer; there is nothing to wait for in what must not come
    assert sorted(span["context"]["span_id"] for span in lab.spans()) == before


def test_a_benchmark_is_an_experiment(lab: Lab, tmp_path: Path) -> None:
    """A dataset per scenario, each run with its trace and its scores; sent again, nothing is there twice."""
    result = tmp_path / "result.json"
    result.write_text(lab.cli("bench", "run", "er_004", "--repeat", "2", "--json").out)
    keys = {run["run_key"] for run in json.loads(result.read_text())["runs"]}
    assert "2 of 2 runs were new" in lab.cli("bench", "experiment", str(result)).err
    assert "0 of 2 runs were new" in lab.cli("bench", "experiment", str(result)).err
    [dataset] = [item for item in lab.get("/v1/datasets")["data"] if item["name"] == "coatcheck er_004"]
    [experiment] = lab.get(f"/v1/datasets/{dataset['id']}/experiments")["data"]
    assert (experiment["example_count"], experiment["successful_run_count"]) == (1, 2)
    runs = lab.get(f"/v1/experiments/{experiment['id']}/json")
    assert {run["output"]["run_key"] for run in runs} == keys
    assert {run["trace_id"] for run in runs} == {trace_id(key) for key in keys}
    assert {score["name"] for run in runs for score in run["annotations"]} >= {"scenario"}


def test_it_listens_on_the_loopback_alone(lab: Lab) -> None:
    """Also its gRPC port, which Phoenix itself binds to every interface."""
    sockets = psutil.Process(lab.stack.pid("phoenix")).net_connections()
    listening = [ip_address(item.laddr.ip) for item in sockets if item.status == "LISTEN"]
    assert len(listening) == 2
    assert all((getattr(address, "ipv4_mapped", None) or address).is_loopback for address in listening)
