"""What a real run tells Prometheus: is it true, does it stay small, do the dashboards ask for what is there."""

import asyncio
import json
from pathlib import Path
from typing import Any

import asyncpg
import promql_parser as promql
import pytest

from tests.acceptance.program import coatcheck
from tests.deploy.alerts import ALERTS, quiet_for_an_hour, run
from tests.deploy.conftest import FEATURE, ROUNDS, Watched
from tests.deploy.dashboards import BOARDS, FOLDER, rendered
from tests.deploy.programs import program

SERIES_PER_WORKER = 1500
"""A worker's endpoint after a run; the largest part are Temporal's histograms, per agent."""
QUERIES = [
    pytest.param(query, id=f"{board.uid}: {panel.title} {number}")
    for board in BOARDS
    for panels in board.rows.values()
    for panel in panels
    for number, (query, _) in enumerate(panel.queries)
]
ONLY_IN_TROUBLE = frozenset({"error_type"})
"""Labels that a good run does not have."""


def rows(watched: Watched, statement: str) -> dict[str, Any]:
    """One row of the stack's database."""

    async def fetch() -> dict[str, Any]:
        assert watched.status.postgres is not None
        connection = await asyncpg.connect(watched.status.postgres.dsn)
        try:
            return dict(await connection.fetchrow(statement))
        finally:
            await connection.close()

    return asyncio.run(fetch())


def test_every_worker_says_where_it_answers(watched: Watched) -> None:
    """`coatcheck status --json`, and for people."""
    said = coatcheck("status", "--json", data_dir=watched.status.data_dir)
    urls = {worker["name"]: worker["metrics_url"] for worker in said.json["workers"]}
    assert urls == {worker.name: worker.metrics_url for worker in watched.status.workers}
    assert all(url.startswith("http://127.0.0.1:") for url in urls.values())
    shown = coatcheck("status", data_dir=watched.status.data_dir).out
    assert all(url in shown for url in urls.values())


def test_it_is_what_the_rows_say(watched: Watched) -> None:
    """Tokens, calls, rounds, bytes and seconds, against the tables."""
    seen = watched.scrape
    turns = rows(
        watched, "SELECT sum(tokens_in) AS tokens_in, sum(tokens_out) AS tokens_out, sum(calls) AS calls FROM llm_turns"
    )
    assert seen.total("gen_ai_client_token_usage_sum", gen_ai_token_type="input") == turns["tokens_in"]
    assert seen.total("gen_ai_client_token_usage_sum", gen_ai_token_type="output") == turns["tokens_out"]
    assert seen.total("gen_ai_client_operation_duration_seconds_count") == turns["calls"]
    tasks = rows(
        watched,
        "SELECT count(*) AS rounds, sum(extract(epoch FROM completed_at - started_at))::float8 AS seconds, "
        "sum((output_data #>> '{metadata,bytes}')::int) AS bytes, sum(length(output_data::text)) AS notices "
        "FROM task_executions",
    )
    assert tasks["rounds"] == ROUNDS
    assert seen.total("coatcheck_stage_rounds_total", coatcheck_outcome="completed") == ROUNDS
    assert seen.total("coatcheck_stage_rounds_total") == ROUNDS
    assert seen.total("coatcheck_stage_duration_seconds_sum") == pytest.approx(tasks["seconds"], abs=1e-3)
    assert seen.total("coatcheck_deliverable_size_bytes_sum") == tasks["bytes"]
    assert seen.total("coatcheck_notice_size_bytes_sum") == pytest.approx(tasks["notices"], rel=0.1)  # jsonb has spaces
    assert seen.total("coatcheck_run_started_total") == 1
    assert seen.total("coatcheck_run_ended_total", coatcheck_outcome="completed") == 1
    assert seen.total("coatcheck_run_ended_total") == 1
    assert seen.total("coatcheck_call_paid_again_total") == 0
    assert seen.total("coatcheck_projector_lag") == 0
    assert seen.total("coatcheck_dead_letters") == 0
    assert seen.total("coatcheck_backbone_up") == 1


def test_temporals_own_are_under_the_same_address_with_their_own_labels(watched: Watched) -> None:
    """Each activity under its name and its queue."""
    done = {
        (labels["activity_type"], labels["task_queue"]): count
        for labels, count in watched.scrape.of("temporal_activity_execution_latency_seconds_count")
        if labels["workflow_type"] == "FeaturePipeline"
    }
    assert done == {
        ("cynthia.research", "agent-cynthia"): 2,
        ("sylvia.critique", "agent-sylvia"): 2,
        ("roy.backend", "agent-roy"): 2,
        ("jen.frontend", "agent-jen"): 1,
        ("billy.qa", "agent-billy"): 2,
        ("priya.statistics", "agent-priya"): 1,
    }
    assert watched.scrape.total("temporal_worker_task_slots_available", worker="agents") == 6 * 200


def test_the_buckets_fit_work_that_takes_an_hour(watched: Watched) -> None:
    """The last bound before infinity, of every histogram of seconds."""
    last: dict[str, float] = {}
    for name, labels in watched.scrape.values:
        bound = float(dict(labels).get("le", "inf"))
        if name.endswith("_seconds_bucket") and bound != float("inf"):
            last[name] = max(last.get(name, 0), bound)
    assert [name for name, bound in last.items() if bound < 3600] == []
    assert "temporal_activity_execution_latency_seconds_bucket" in last
    assert "coatcheck_stage_duration_seconds_bucket" in last
    assert "gen_ai_client_operation_duration_seconds_bucket" in last


def test_no_label_names_a_run_and_the_series_are_few(watched: Watched) -> None:
    """Or the number of series would grow with the work."""
    values = {value for _, labels in watched.scrape.values for _, value in labels}
    assert [value for value in values if FEATURE in value] == []
    for worker in watched.status.workers:
        count = sum(("worker", worker.name) in labels for _, labels in watched.scrape.values)
        assert count <= SERIES_PER_WORKER, worker.name


@pytest.mark.parametrize("query", QUERIES)
def test_a_panel_asks_for_what_a_run_exposes(watched: Watched, query: str) -> None:
    """Every name and every label of its query; and real Prometheus has an answer, where there is one."""
    known = watched.scrape.labels()
    query = query.replace("$__rate_interval", "1m")
    selectors, grouped = _selected(promql.parse(query))
    assert selectors
    for name, labels in selectors:
        assert name in known, f"no run exposes {name}"
        assert labels <= known[name] | ONLY_IN_TROUBLE, f"{name} has no label {labels - known[name]}"
    assert grouped <= set().union(*(known[name] for name, _ in selectors))
    if watched.prometheus is not None and not any(label in query for label in ONLY_IN_TROUBLE):
        assert watched.prometheus.get("query", query=query)["result"] != []


def _selected(query: promql.Expr) -> tuple[list[tuple[str, set[str]]], set[str]]:
    """Each metric of a query with the labels that it is chosen by, and the labels that are grouped by."""
    selectors: list[tuple[str, set[str]]] = []
    grouped: set[str] = set()

    def visit(part: promql.Expr) -> None:
        if isinstance(part, promql.MatrixSelector):
            part = part.vector_selector
        if isinstance(part, promql.VectorSelector):
            selectors.append((part.name, {matcher.name for matcher in part.matchers.matchers}))
        if isinstance(part, promql.AggregateExpr) and part.modifier is not None:
            grouped.update(part.modifier.labels)

    promql.walk(query, visit)
    return selectors, grouped


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_the_dashboards_are_as_they_are_built(board: Any) -> None:
    """`python -m tests.deploy.dashboards` writes them anew."""
    assert (FOLDER / f"{board.uid}.json").read_text() == rendered(board)
    panels = [panel for panel in json.loads(rendered(board))["panels"] if panel["type"] != "row"]
    assert len(panels) == sum(map(len, board.rows.values()))


def test_a_real_prometheus_watched_the_run(watched: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    """Every worker is up, every rule can be evaluated, and a good run rings no bell."""
    if program("prometheus", "Prometheus on a running stack", capsys) is None:
        return
    assert watched.prometheus is not None
    targets = watched.prometheus.get("targets", state="active")["activeTargets"]
    assert {target["labels"]["worker"]: target["health"] for target in targets} == dict.fromkeys(
        ("core", "gateway", "agents"), "up"
    )
    rules = [rule for group in watched.prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(ALERTS)
    assert {rule["health"] for rule in rules} == {"ok"}
    assert [rule["name"] for rule in rules if rule["state"] != "inactive"] == []
    assert watched.prometheus.get("query", query="sum(coatcheck_stage_rounds_total)")["result"][0]["value"][1] == str(
        ROUNDS
    )


def test_a_good_run_rings_no_bell(watched: Watched, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not within an hour of what it exposed, either."""
    promtool = program("promtool", "alert rules against a real run", capsys)
    if promtool is not None:
        good = tmp_path / "good_test.yml"
        good.write_text(quiet_for_an_hour(watched.scrape))
        run(promtool, "test", "rules", str(good))
