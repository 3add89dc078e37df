"""`bench`: runs held against scenarios, live or as they were recorded."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from coatcheck.cli import forking
from coatcheck.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir, Run

app = typer.Typer()
bench = typer.Typer(
    help="Scenarios: run them, replay what was recorded, report.\n\nExample: coatcheck bench run er_001 --repeat 3"
)
app.add_typer(bench, name="bench")
bench.add_typer(forking.app)

Scenarios = Annotated[list[str] | None, typer.Argument(metavar="SCENARIO…", help="An id such as er_001, or a file.")]


@bench.command("list")
def list_scenarios(*, as_json: AsJson = False) -> None:
    """List the scenarios that come with Coatcheck.

    Example: coatcheck bench list
    """
    from coatcheck.cli import benching  # noqa: PLC0415  `--help` must not wait for it

    benching.list_scenarios(as_json=as_json)


@bench.command()
def run(
    scenarios: Scenarios = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All scenarios that come with Coatcheck.")] = False,
    repeat: Annotated[int, typer.Option(min=1, max=1000, help="Runs of each.")] = 1,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Runs at a time.")] = 1,
    judge: Annotated[bool, typer.Option(help="Have the judges speak that a scenario names.")] = True,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Run scenarios on the stack that is running, and hold what was recorded against them.

    Exits with 1 when something is wrong with a run, with 3 when a server is away.

    Example: coatcheck bench run er_001 er_009 --repeat 5 --concurrency 4 --json > result.json
    """
    from coatcheck.cli import benching, session  # noqa: PLC0415

    plan = benching.Plan(names=scenarios or [], every=every, repeat=repeat, concurrency=concurrency, judge=judge)
    session.run(benching.run(plan, as_json=as_json, data_dir=data_dir))


@bench.command()
def replay(
    *,
    correlation: Annotated[str, typer.Option("--correlation", metavar="ID", help="The run key.")],
    scenario: Annotated[
        str | None, typer.Option(metavar="SCENARIO", help="What it had to be. [default: what every run has to be]")
    ] = None,
    from_sequence: Annotated[
        int, typer.Option(min=1, metavar="N", help="Only what the audit log holds from there on.")
    ] = 1,
    from_time: Annotated[
        datetime | None, typer.Option(metavar="TIME", help="Only what was stored since; UTC unless it says otherwise.")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Hold a recorded run against a scenario: its events straight from the audit log, no model and no database.

    Of a part of a run only those rules are applied that need no beginning.

    Example: coatcheck bench replay --correlation feature/customer-search/0190f3c2-… --scenario er_001
    """
    from coatcheck.cli import benching, session  # noqa: PLC0415

    since = benching.Since(sequence=from_sequence, moment=from_time)
    session.run(benching.replay(correlation, scenario, since, as_json=as_json, data_dir=data_dir))


@bench.command()
def record(
    name: Run,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where the scenario goes.", dir_okay=False)],
    scenario_id: Annotated[str | None, typer.Option("--id", metavar="ID", help="[default: the file's name]")] = None,
    title: Annotated[str | None, typer.Option(help="One line for people. [default: the feature]")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make a scenario of a good run: what it was given and what happened, without what is only of that run.

    Example: coatcheck bench record customer-search -o search.json
    """
    from coatcheck.cli import benching, session  # noqa: PLC0415

    session.run(benching.record(name, out, scenario_id=scenario_id, title=title, force=force, data_dir=data_dir))


@bench.command()
def report(
    result: Annotated[Path, typer.Argument(metavar="RESULT.json", help="What --json printed.", exists=True)],
    *,
    style: Annotated[
        Literal["table", "json", "junit", "svg"], typer.Option("--format", help="What to make.")
    ] = "table",
    number: Annotated[int, typer.Option("--run", min=1, metavar="N", help="For svg: which run.")] = 1,
) -> None:
    """Show a result as a table, as JUnit XML for a CI, or as a picture of when a run did what.

    Example: coatcheck bench report result.json --format junit > junit.xml
    """
    from coatcheck.cli import benching  # noqa: PLC0415

    benching.report(result, style, number)


@bench.command()
def experiment(
    result: Annotated[Path, typer.Argument(metavar="RESULT.json", help="What --json printed.", exists=True)],
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Send a result to Phoenix: a dataset for each scenario, an experiment for this result, each run with its trace.

    To the Phoenix of the stack, or that of PHOENIX_COLLECTOR_ENDPOINT. Sent again, nothing is there twice.

    Example: coatcheck bench experiment result.json
    """
    from coatcheck.cli import benching, session  # noqa: PLC0415

    session.run(benching.experiment(result, data_dir=data_dir))


@bench.command()
def schema() -> None:
    """Print the JSON schema of a scenario, for editors.

    Example: coatcheck bench schema > scenario.schema.json
    """
    from coatcheck.cli import benching  # noqa: PLC0415

    benching.print_schema()
