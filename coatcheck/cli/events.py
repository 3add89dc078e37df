"""`events RUN` and its group: what happened, straight from the audit log, and how the table of it is.

The first word after `events` is a command of the group or else a run, so that the usual case needs no more words.
"""

from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from coatcheck.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir, Run

MORE: Final[tuple[str, ...]] = ("history", "export")
"""Further modules of `coatcheck.cli` whose `app` has commands of this group."""

SHOW: Final = "show"
MAX_LAG: Final = 10_000
"""Events: 3 s of the projector's work."""


class RunFirst(TyperGroup):
    """`events customer-search` is `events show customer-search`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `show` before what is no command."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [SHOW, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="events",
    cls=RunFirst,
    no_args_is_help=True,
    help="What happened: `events RUN` is short for `events show RUN`.\n\nExample: coatcheck events RUN --follow",
)


@app.command(SHOW)
def show(
    name: Run,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    types: Annotated[list[str] | None, typer.Option("--type", help="Only this event type; may be repeated.")] = None,
    from_sequence: Annotated[int, typer.Option(min=1, help="Only from this sequence of the audit log on.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show what happened in a run, in order, from the audit log.

    Example: coatcheck events customer-search --follow --type stage.completed
    """
    from coatcheck.cli import event_log, session  # noqa: PLC0415

    wanted = event_log.Wanted(types=frozenset(types or ()), from_sequence=from_sequence)
    session.run(event_log.show(name, wanted, follow=follow, as_json=as_json, data_dir=data_dir))


@app.command()
def status(
    *,
    max_lag: Annotated[int, typer.Option(min=0, help="Events that the table may be behind.")] = MAX_LAG,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show how large the audit log is, how far table and traces are behind it, and what could not be digested.

    Exits with 1 when there are dead letters, or when the table is too far behind.

    Example: coatcheck events status --max-lag 1000
    """
    from coatcheck.cli import event_log, session  # noqa: PLC0415

    session.run(event_log.status(max_lag=max_lag, as_json=as_json, data_dir=data_dir))


@app.command()
def dead(
    *,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the latest.")] = 50,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """List dead letters: messages that could not be digested, and why.

    Example: coatcheck events dead --json
    """
    from coatcheck.cli import event_log, session  # noqa: PLC0415

    session.run(event_log.dead(limit=limit, as_json=as_json, data_dir=data_dir))


@app.command()
def rebuild(*, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Write the table `events` anew from the audit log; readers see the old one until then.

    Rows of events that the log no longer holds stay. Safe to interrupt and to repeat, also while runs go on.

    Example: coatcheck events rebuild
    """
    from coatcheck.cli import event_log, session  # noqa: PLC0415

    session.run(event_log.rebuild_table(as_json=as_json, data_dir=data_dir))


for _module in MORE:
    app.add_typer(import_module(f"coatcheck.cli.{_module}").app)
