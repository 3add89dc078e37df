"""`run`, `watch`, `progress`, `decide`, `pause`, `resume`, `cancel`: a feature's way through the team.

The commands import what they do when they are called: `coatcheck --help` would otherwise wait half a second for
Temporal's client.
"""

from typing import Annotated, Literal

import typer

from coatcheck.cli.options import DEFAULT_DATA_DIR, AsJson, ConfigFile, DataDir, Run

app = typer.Typer()


@app.command()
def run(  # noqa: PLR0913  one parameter per option
    feature: Annotated[str | None, typer.Argument(help="Slug of the feature, like customer-search.")] = None,
    brief: Annotated[str | None, typer.Argument(help="What is wanted; - reads stdin.")] = None,
    *,
    file: Annotated[str | None, typer.Option("--file", "-f", help="Read the brief from a file; - is stdin.")] = None,
    request: Annotated[str | None, typer.Option(help="A whole request as JSON, from a file; - is stdin.")] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Follow the run to its end.")] = False,
    workflow_id: Annotated[str | None, typer.Option("--id", help="Workflow id. [default: feature/FEATURE]")] = None,
    gate: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="A person decides after this stage; repeatable.")
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option(help="Which of coatcheck.toml's pipelines. [default: the one called default]")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Who asks; shares are fair between tenants.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="USD|NAME", help="At most so many US dollars, or one of [budgets] of coatcheck.toml."),
    ] = None,
    agent_budget: Annotated[
        list[str] | None, typer.Option(metavar="AGENT=USD", help="Of it, this agent at most so much; repeatable.")
    ] = None,
    timeout_decision: Annotated[
        int | None, typer.Option(help="Seconds a decision may take before the run expires. [default: 7 days]")
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Send a feature request through the team.

    With --wait the exit code is 0 when the run completed, and 1 when it was rejected, expired, cancelled or failed.

    Example: coatcheck run customer-search "Find customers by name" --gate critique --wait
    """
    from coatcheck.cli import session, starting  # noqa: PLC0415

    # A whole request says itself which stages it wants.
    chosen = (
        None if request and pipeline is None else starting.chosen_pipeline(pipeline, config=config, data_dir=data_dir)
    )
    options = {
        "feature": feature,
        "pipeline": chosen,
        "tenant": tenant,
        "budget": starting.budget_option(budget, agent_budget or ()),
        "gates": gate or None,
        "decision_timeout_seconds": timeout_decision,
    }
    wanted = starting.request_from(request=request, brief=brief, file=file, options=options)
    session.run(starting.run_feature(wanted, workflow_id=workflow_id, wait=wait, as_json=as_json, data_dir=data_dir))


@app.command()
def watch(name: Run, *, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Follow a run to its end; exits like `run --wait`.

    Example: coatcheck watch customer-search
    """
    from coatcheck.cli import session, watching  # noqa: PLC0415

    session.run(watching.watch_run(name, as_json=as_json, data_dir=data_dir))


@app.command()
def progress(name: Run, *, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Show where every stage of a run is, and what it asks of a person.

    Example: coatcheck progress customer-search --json
    """
    from coatcheck.cli import session, steering  # noqa: PLC0415

    session.run(steering.show_progress(name, as_json=as_json, data_dir=data_dir))


@app.command()
def decide(
    name: Run,
    stage: Annotated[str, typer.Argument(help="The stage that waits.")],
    action: Annotated[Literal["approve", "revise", "reject"], typer.Argument(help="What shall happen.")],
    *,
    sha256: Annotated[
        str | None, typer.Option(help="Of the deliverable that you reviewed; its first 8 characters are enough.")
    ] = None,
    latest: Annotated[bool, typer.Option("--latest", help="Decide on whatever waits, without a --sha256.")] = False,
    by: Annotated[str | None, typer.Option(help="Who decides. [default: your user name]")] = None,
    comment: Annotated[str, typer.Option(help="Handed to the agent when the action is revise.")] = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Answer a run that waits for a person.

    A decision is bound to the sha256 of what was reviewed, so that approving round 1 cannot release round 2.

    Example: coatcheck decide customer-search critique approve --sha256 5e884898
    """
    from coatcheck.cli import session, steering  # noqa: PLC0415
    from schemas.pipeline import DecisionAction  # noqa: PLC0415

    session.run(
        steering.decide(
            name,
            stage,
            DecisionAction(action),
            sha256=sha256,
            latest=latest,
            by=by,
            comment=comment,
            data_dir=data_dir,
        )
    )


@app.command("set-budget")
def set_budget(
    name: Run,
    usd: Annotated[str | None, typer.Argument(metavar="USD", help="US dollars in all, such as 2.50.")] = None,
    *,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of model calls in all.")] = None,
    calls: Annotated[int | None, typer.Option(min=1, help="Model calls in all.")] = None,
    agent_budget: Annotated[
        list[str] | None, typer.Option(metavar="AGENT=USD", help="Of it, this agent at most so much; repeatable.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Who decides. [default: your user name]")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Set what a run may spend in all, what it has spent included; a stage that stopped for want of it goes on.

    Example: coatcheck set-budget customer-search 2.50 --agent-budget roy=1
    """
    from coatcheck.cli import request, session, steering  # noqa: PLC0415

    wanted = request.budget_from(usd=usd, tokens=tokens, calls=calls, agents=agent_budget or ())
    session.run(steering.set_budget(name, wanted, by=by, data_dir=data_dir))


@app.command()
def pause(name: Run, *, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Have a run stand still before its next stage.

    Example: coatcheck pause customer-search
    """
    from coatcheck.cli import session, steering  # noqa: PLC0415

    session.run(steering.pause(name, data_dir=data_dir))


@app.command()
def resume(name: Run, *, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Let a paused run go on.

    Example: coatcheck resume customer-search
    """
    from coatcheck.cli import session, steering  # noqa: PLC0415

    session.run(steering.resume(name, data_dir=data_dir))


@app.command()
def cancel(name: Run, *, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """End a run; what it delivered stays.

    Example: coatcheck cancel customer-search
    """
    from coatcheck.cli import session, steering  # noqa: PLC0415

    session.run(steering.cancel(name, data_dir=data_dir))
