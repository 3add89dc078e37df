"""The Grafana dashboards: what they show, and `python -m tests.deploy.dashboards`, which writes `deploy/grafana`.

Grafana's own library builds them, so that a panel is a title, a unit and queries here. Each answers one question of
whoever is on call: is work done, what does it cost, are models reachable, is there room, does Temporal keep up.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef

FOLDER = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards"
_SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
_HOUR = 3600
_MINUTE = 60
_MODEL = "gen_ai_request_model"
_TOKEN_TYPE = "gen_ai_token_type"
_CALLS = "gen_ai_client_operation_duration_seconds"
_OUTCOME = "coatcheck_outcome"
_STAGE = "coatcheck_stage"
_STREAM = "coatcheck_stream"
_ROUNDS = "coatcheck_stage_rounds_total"

Query = tuple[str, str]
"""PromQL, and what a line of its result is called."""


@dataclass(frozen=True)
class Panel:
    """A diagram."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    description: str = ""


@dataclass(frozen=True)
class Board:
    """A page."""

    uid: str
    title: str
    rows: dict[str, tuple[Panel, ...]]


def _named(*labels: str) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in labels)


def _rate(metric: str, *by: str, seconds: int = 1) -> Query:
    """How often, per so many seconds."""
    return f"sum by ({', '.join(by)}) (rate({metric}[$__rate_interval])) * {seconds}", _named(*by)


def _quantiles(metric: str, *by: str) -> tuple[Query, ...]:
    rate = f"sum by ({', '.join(('le', *by))}) (rate({metric}_bucket[$__rate_interval]))"
    return tuple((f"histogram_quantile({q}, {rate})", f"{_named(*by)} p{q * 100:g}") for q in (0.5, 0.95))


def _share(part: str, whole: str, by: str) -> Query:
    return f"{_rate(part, by)[0]} / {_rate(whole, by)[0]}", _named(by)


def _now(function: str, value: str, *by: str) -> Query:
    return f"{function} by ({', '.join(by)}) ({value})", _named(*by)


RUNS = Board(
    "coatcheck-runs",
    "Coatcheck: runs",
    {
        "Work": (
            Panel(
                "Runs begun and ended, per hour",
                units.Short,
                (
                    (f"sum(rate(coatcheck_run_started_total[$__rate_interval])) * {_HOUR}", "begun"),
                    _rate("coatcheck_run_ended_total", _OUTCOME, seconds=_HOUR),
                ),
            ),
            Panel(
                "How long runs take",
                units.Seconds,
                _quantiles("coatcheck_run_duration_seconds", _OUTCOME),
                "From start to end, the waiting for people included.",
            ),
            Panel(
                "Runs under way",
                units.Short,
                (("sum(coatcheck_run_started_total) - sum(coatcheck_run_ended_total)", "open"),),
                "Since the core workers began; a run that was begun before is not counted.",
            ),
        ),
        "Stages": (
            Panel("How long rounds take", units.Seconds, _quantiles("coatcheck_stage_duration_seconds", _STAGE)),
            Panel(
                "Rounds per hour",
                units.Short,
                (_rate(_ROUNDS + '{coatcheck_outcome="completed"}', _STAGE, seconds=_HOUR),),
                "More rounds than runs: reviews and tests send work back.",
            ),
            Panel(
                "Rounds that fail or are cancelled, per hour",
                units.Short,
                (_rate(_ROUNDS + '{coatcheck_outcome!="completed"}', _STAGE, _OUTCOME, seconds=_HOUR),),
            ),
        ),
        "What is handed over": (
            Panel(
                "Size of notices",
                units.BytesIEC,
                _quantiles("coatcheck_notice_size_bytes", "coatcheck_agent"),
                "1,024 bytes are the limit.",
            ),
            Panel(
                "Size of deliverables",
                units.BytesIEC,
                _quantiles("coatcheck_deliverable_size_bytes", "coatcheck_agent"),
            ),
            Panel(
                "Dollars per hour, by stage",
                units.Short,
                (_rate("coatcheck_turn_cost_total", _STAGE, seconds=_HOUR),),
                "Of turns whose price is known.",
            ),
            Panel(
                "Turns without a known price, per hour",
                units.Short,
                ((f"sum(rate(coatcheck_turn_unpriced_total[$__rate_interval])) * {_HOUR}", "turns"),),
                "They are missing in what is said in dollars.",
            ),
            Panel(
                "Turns refused for want of budget, per hour",
                units.Short,
                ((f"sum(rate(coatcheck_budget_refused_total[$__rate_interval])) * {_HOUR}", "turns"),),
            ),
        ),
    },
)

MODELS = Board(
    "coatcheck-models",
    "Coatcheck: models",
    {
        "Calls": (
            Panel("Calls per minute", units.Short, (_rate(f"{_CALLS}_count", _MODEL, seconds=_MINUTE),)),
            Panel("How long calls take", units.Seconds, _quantiles(_CALLS, _MODEL)),
            Panel(
                "Share of calls that fail",
                units.PercentUnit,
                (_share(f'{_CALLS}_count{{error_type!=""}}', f"{_CALLS}_count", _MODEL),),
            ),
        ),
        "Tokens": (
            Panel(
                "Tokens per minute",
                units.Short,
                (_rate("gen_ai_client_token_usage_sum", _MODEL, _TOKEN_TYPE, seconds=_MINUTE),),
            ),
            Panel("Tokens per call", units.Short, _quantiles("gen_ai_client_token_usage", _MODEL, _TOKEN_TYPE)),
            Panel(
                "Dollars per hour, by model",
                units.Short,
                (_rate("coatcheck_turn_cost_total", _MODEL, seconds=_HOUR),),
            ),
        ),
        "Trouble": (
            Panel(
                "Breakers",
                units.Short,
                (_now("max", "coatcheck_breaker_state", _MODEL),),
                "0 closed, 1 half open, 2 open.",
            ),
            Panel(
                "Calls that were lost and made again",
                units.Short,
                (_now("sum", "increase(coatcheck_call_paid_again_total[1h])", _MODEL),),
                "Each may have been paid twice. Expected when a gateway is killed, never otherwise.",
            ),
        ),
    },
)

SYSTEM = Board(
    "coatcheck-system",
    "Coatcheck: streams, Temporal, processes",
    {
        "Streams": (
            Panel(
                "How full streams are",
                units.PercentUnit,
                (_now("max", "coatcheck_stream_size_bytes / coatcheck_stream_size_limit_bytes", _STREAM),),
            ),
            Panel(
                "Age of the oldest message against its limit",
                units.PercentUnit,
                (_now("max", "coatcheck_stream_age_seconds / coatcheck_stream_age_limit_seconds", _STREAM),),
                "At 1 the oldest is dropped, which is what retention is for: archive before.",
            ),
            Panel("Messages", units.Short, (_now("max", "coatcheck_stream_messages", _STREAM),)),
            Panel(
                "Events behind, dead letters, NATS",
                units.Short,
                (
                    ("max(coatcheck_projector_lag)", "events behind"),
                    ("max(coatcheck_dead_letters)", "dead letters"),
                    ("min(coatcheck_backbone_up)", "NATS answers"),
                ),
            ),
            Panel("Accounts that do not add up", units.Short, (("max(coatcheck_ledger_imbalance)", "accounts"),)),
        ),
        "Temporal": (
            Panel(
                "Waiting for a worker",
                units.Seconds,
                _quantiles("temporal_activity_schedule_to_start_latency_seconds", "task_queue"),
            ),
            Panel(
                "Free activity slots",
                units.Short,
                (
                    _now(
                        "min",
                        'temporal_worker_task_slots_available{worker_type="ActivityWorker"}',
                        "task_queue",
                        "worker",
                    ),
                ),
            ),
            Panel(
                "Activities",
                units.Seconds,
                _quantiles("temporal_activity_execution_latency_seconds", "activity_type"),
            ),
            Panel(
                "Recording a step",
                units.Seconds,
                _quantiles("temporal_local_activity_execution_latency_seconds", "activity_type"),
            ),
            Panel(
                "Workflow tasks",
                units.Seconds,
                _quantiles("temporal_workflow_task_execution_latency_seconds", "workflow_type"),
            ),
            Panel("Workflows in the cache", units.Short, (_now("sum", "temporal_sticky_cache_size", "worker"),)),
            Panel("Pollers", units.Short, (_now("sum", "temporal_num_pollers", "task_queue", "poller_type"),)),
        ),
        "Processes": (
            Panel("Workers that answer", units.Short, (_now("sum", 'up{job="coatcheck"}', "worker"),)),
            Panel("CPU", units.PercentUnit, (_rate("process_cpu_seconds_total", "worker"),)),
            Panel("Memory", units.BytesIEC, (_now("sum", "process_resident_memory_bytes", "worker"),)),
            Panel("Open files", units.Short, (_now("sum", "process_open_fds", "worker"),)),
        ),
    },
)
BOARDS = (RUNS, MODELS, SYSTEM)


def rendered(board: Board) -> str:
    """The dashboard as Grafana imports it."""
    builder = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .tags(["coatcheck"])
        .time("now-3h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("source").label("Prometheus").type("prometheus"))
    )
    numbers = itertools.count(1)
    for row, panels in board.rows.items():
        builder = builder.with_row(dashboard.Row(row).id(next(numbers)))
        for panel in panels:
            builder = builder.with_panel(_panel(panel).id(next(numbers)))
    return json.dumps(json.loads(JSONEncoder().encode(builder.build())), indent=2, sort_keys=True) + "\n"


def _panel(panel: Panel) -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    built = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.description)
        .datasource(_SOURCE)
        .unit(panel.unit)
        .min(0)
        .height(8)
        .span(8)
        .legend(legend.show_legend(show_legend=True))
    )
    for letter, (query, name) in zip("ABCDEFGH", panel.queries, strict=False):
        built = built.with_target(prometheus.Dataquery().expr(query).legend_format(name).ref_id(letter))
    return built


def main() -> None:
    """Write the dashboards."""
    for board in BOARDS:
        (FOLDER / f"{board.uid}.json").write_text(rendered(board))


if __name__ == "__main__":
    main()
