"""`ledger`: balances, statements and movements of credits."""

from typing import Annotated

import typer

from coatcheck.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir

app = typer.Typer()
group = typer.Typer(help="Balances, statements and movements of credits; a credit is a US dollar.")
app.add_typer(group, name="ledger")

Account = Annotated[
    str, typer.Argument(metavar="ACCOUNT", help="treasury, market, tenant/NAME, agent/NAME, provider/NAME or run/RUN.")
]
Key = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="Names the movement: given again, it is made once. [default: a new one, told]"),
]
Memo = Annotated[str, typer.Option(help="What it is for.")]


@group.command()
def balance(
    account: Annotated[str | None, typer.Argument(metavar="[ACCOUNT]", help="One account; all by default.")] = None,
    *,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show what accounts have, how much of it is held for calls under way, and what is free.

    Example: coatcheck ledger balance tenant/default
    """
    from coatcheck.cli import bookkeeping, session  # noqa: PLC0415

    session.run(bookkeeping.show_balances(account, as_json=as_json, data_dir=data_dir))


@group.command()
def history(
    account: Account,
    *,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Entries, newest first.")] = 50,
    before: Annotated[
        int | None, typer.Option(min=1, metavar="NUMBER", help="Older ones than this; told below a full page.")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show an account's statement, newest first.

    Example: coatcheck ledger history run/customer-search --limit 10
    """
    from coatcheck.cli import bookkeeping, session  # noqa: PLC0415

    session.run(bookkeeping.show_history(account, before=before, limit=limit, as_json=as_json, data_dir=data_dir))


@group.command()
def transfer(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The account that pays; not the treasury.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="The account that is paid.")],
    amount: Annotated[str, typer.Argument(help="Credits, such as 0.50.")],
    *,
    key: Key = None,
    memo: Memo = "",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Move credits from one account to another, if it has them.

    Example: coatcheck ledger transfer tenant/default agent/roy 5
    """
    from coatcheck.cli import bookkeeping, session  # noqa: PLC0415

    order = bookkeeping.Order.of(source, target, amount, key=key, memo=memo)
    session.run(bookkeeping.move(order, as_json=as_json, data_dir=data_dir))


@group.command()
def topup(
    account: Annotated[str, typer.Argument(metavar="ACCOUNT", help="tenant/NAME or agent/NAME; made when it is new.")],
    amount: Annotated[str, typer.Argument(help="Credits, such as 100.")],
    *,
    key: Key = None,
    memo: Memo = "",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Give an account new credits from the treasury, which alone may be negative.

    Example: coatcheck ledger topup tenant/default 100
    """
    from coatcheck.cli import bookkeeping, session  # noqa: PLC0415

    order = bookkeeping.Order.topup(account, amount, key=key, memo=memo)
    session.run(bookkeeping.move(order, as_json=as_json, data_dir=data_dir))


@group.command()
def check(*, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Add everything up: all balances are zero together, each is the sum of its entries. Exits with 1 when not.

    Example: coatcheck ledger check
    """
    from coatcheck.cli import bookkeeping, session  # noqa: PLC0415

    session.run(bookkeeping.check(as_json=as_json, data_dir=data_dir))
