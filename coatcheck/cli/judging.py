"""`judge`: what judges say of a run that has ended."""

from typing import Annotated

import typer

from coatcheck.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir, Run

app = typer.Typer()


@app.command()
def judge(
    name: Run,
    *,
    judges: Annotated[
        list[str] | None,
        typer.Option(
            "--judge", metavar="NAME", help="Only this one; may be repeated. [default: checks and the configured]"
        ),
    ] = None,
    criteria: Annotated[
        list[str] | None, typer.Option("--criterion", metavar="NAME", help="Only this one; may be repeated.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Ask also what was answered before, and pay for it.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Have judges score a run that has ended; what they said before is not asked again.

    `checks` counts what the events say. Models are judges by [judges.NAME] in coatcheck.toml; without any, `scripted`
    stands in for one and compares words. Each score is an event of the run.

    Exits with 1 when a judge gave no score, whatever the scores are.

    Example: coatcheck judge customer-search --judge checks --json
    """
    from coatcheck.cli import opinions, session  # noqa: PLC0415  `--help` must not wait for it

    wanted = opinions.Wanted(judges=judges or None, criteria=criteria or None, again=again)
    session.run(opinions.judge_run(name, wanted, as_json=as_json, data_dir=data_dir))
