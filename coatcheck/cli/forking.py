"""`bench fork`: a run again from one of its stages, paid only from there."""

from typing import Annotated

import typer

from coatcheck.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir, Run

app = typer.Typer()


@app.command()
def fork(
    name: Run,
    *,
    stage: Annotated[str, typer.Option("--from", metavar="STAGE", help="The first stage that is done anew.")],
    workflow_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Workflow id. [default: fork/<feature>/<chance>]")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the new run to its end.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Start a run that takes over what another one had done before a stage, and pays only from there on.

    To try another prompt or model on the same work: change coatcheck.toml, restart the stack, fork.

    Example: coatcheck bench fork customer-search --from backend --wait
    """
    from coatcheck.cli import session, starting  # noqa: PLC0415

    session.run(starting.fork_run(name, stage, workflow_id=workflow_id, wait=wait, as_json=as_json, data_dir=data_dir))
