"""`why`, `cost`: where a run stands and what was spent."""

from typing import Annotated, Literal

import typer

from coatcheck.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir, Run

app = typer.Typer()


@app.command()
def why(name: Run, *, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Explain a run on one screen: where it is, what it waits for, who spent what, which message has which files.

    Says what it can when a server is down, and which one that is.

    Example: coatcheck why customer-search
    """
    from coatcheck.cli import explaining, session  # noqa: PLC0415

    session.run(explaining.explain(name, as_json=as_json, data_dir=data_dir))


@app.command()
def cost(
    model: Annotated[str | None, typer.Argument(help="With --prices: one model, as provider:model.")] = None,
    *,
    by: Annotated[
        Literal["call", "stage", "agent", "model", "run", "tenant", "day"], typer.Option(help="What the lines are.")
    ] = "run",
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="Only this run: a feature, a workflow id or a run key.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Only calls begun since: 2026-11-01 (UTC), 7d, 12h or 30m.")
    ] = None,
    prices: Annotated[
        bool, typer.Option("--prices", help="Show prices instead, with their source, of MODEL or of those in use.")
    ] = False,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show what model calls took: calls, tokens and cost.

    What has no known price is unknown, and so is every sum with it.

    Example: coatcheck cost --by stage --run customer-search

    Example: coatcheck cost --by tenant --since 7d

    Example: coatcheck cost --prices openai:gpt-5-mini
    """
    from coatcheck.cli import costs, session  # noqa: PLC0415

    filters = costs.Filters.of(by=by, run=run, tenant=tenant, since=since, prices=prices, model=model)
    if prices:
        costs.show_prices(model, as_json=as_json, data_dir=data_dir)
    else:
        session.run(costs.show_costs(filters, as_json=as_json, data_dir=data_dir))
