"""What the commands of `coatcheck ledger` do."""

import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from coatcheck.cli.output import columns, emit, emit_json, moment
from coatcheck.cli.runs import find_record
from coatcheck.cli.session import load_settings, open_database
from coatcheck.cli.voice import MisuseError, tell
from coatcheck.economy.units import format_credits, parse_credits
from coatcheck.errors import CoatcheckError, DependencyDownError, InsufficientCreditsError
from coatcheck.storage import ledger
from coatcheck.storage.database import Pool
from schemas.ledger import MARKET, MAX_PAGE, TREASURY, Balance, run_account
from schemas.subjects import check_slug

_KEY: Final = re.compile(r"[A-Za-z0-9._:/-]{1,100}")
_NAMED: Final = ("tenant", "agent", "provider")
_FORMS: Final = f"{TREASURY}, {MARKET}, tenant/NAME, agent/NAME, provider/NAME or run/RUN"


class LedgerWrongError(CoatcheckError):
    """The books do not add up."""

    code = "ledger.wrong"


@dataclass(frozen=True)
class Order:
    """A movement that somebody typed."""

    transfer_id: str
    kind: str
    source: str
    target: str
    amount: int
    memo: str

    @classmethod
    def of(cls, source: str, target: str, amount: str, *, key: str | None, memo: str) -> Self:
        """A transfer between accounts.

        Raises:
            MisuseError: an account, the amount or the key is none, or the treasury would pay.
        """
        if source == TREASURY:
            raise MisuseError("the treasury pays with `coatcheck ledger topup` only")
        return cls._made("transfer", source, target, amount, key=key, memo=memo)

    @classmethod
    def topup(cls, account: str, amount: str, *, key: str | None, memo: str) -> Self:
        """New credits.

        Raises:
            MisuseError: the account, the amount or the key is none.
        """
        if account.partition("/")[0] not in ("tenant", "agent"):
            raise MisuseError(f"{account!r} cannot be topped up", hint="tenant/NAME or agent/NAME")
        return cls._made("topup", TREASURY, account, amount, key=key, memo=memo)

    @classmethod
    def _made(cls, kind: str, source: str, target: str, amount: str, *, key: str | None, memo: str) -> Self:
        for account in (source, target):
            check_account(account)
        if source == target:
            raise MisuseError(f"from {source} to itself nothing moves")
        if key is not None and not _KEY.fullmatch(key):
            raise MisuseError(f"{key!r} is no key: at most 100 letters, digits and . _ : / -")
        try:
            micro = parse_credits(amount)
        except ValueError as error:
            raise MisuseError(str(error)) from error
        return cls(f"{kind}/{key or uuid.uuid4()}", kind, source, target, micro, memo)

    @property
    def key(self) -> str:
        """What to give again."""
        return self.transfer_id.partition("/")[2]


def check_account(account: str) -> None:
    """Refuse what is no account's name.

    Raises:
        MisuseError: as said.
    """
    kind, _, name = account.partition("/")
    if account in (TREASURY, MARKET) or (kind == "run" and name):
        return
    try:
        if kind in _NAMED:
            check_slug(name)
            return
    except ValueError as error:
        raise MisuseError(f"{account!r} is no account: {error}") from error
    raise MisuseError(f"{account!r} is no account", hint=_FORMS)


async def show_balances(account: str | None, *, as_json: bool, data_dir: Path) -> None:
    """Print one account or all.

    Raises:
        MisuseError: what is given is no account's name.
        AccountMissingError: there is no such account.
        DependencyDownError: PostgreSQL does not answer.
    """
    if account is not None:
        check_account(account)
    async with open_database(load_settings(data_dir)) as pool:
        if account is None:
            found = await _all(pool)
        else:
            found = [await ledger.balance(pool, await _resolved(pool, account))]
    if as_json:
        emit_json(found if account is None else found[0])
        return
    rows = [[item.account, *map(format_credits, (item.balance, item.held, item.free))] for item in found]
    emit(columns(("account", "balance", "held", "free"), rows))


async def show_history(account: str, *, before: int | None, limit: int, as_json: bool, data_dir: Path) -> None:
    """Print a page of a statement.

    Raises:
        MisuseError: what is given is no account's name.
        AccountMissingError: there is no such account.
        DependencyDownError: PostgreSQL does not answer.
    """
    check_account(account)
    async with open_database(load_settings(data_dir)) as pool:
        name = await _resolved(pool, account)
        await ledger.balance(pool, name)
        page = await ledger.history(pool, name, before=before, limit=limit)
    if as_json:
        emit_json(page)
        return
    rows = [
        [
            str(entry.sequence),
            moment(entry.timestamp),
            entry.kind,
            format_credits(entry.amount),
            entry.other,
            entry.agent or "",
            entry.memo,
        ]
        for entry in page.entries
    ]
    emit(columns(("number", "when", "kind", "amount", "other", "agent", "memo"), rows))
    if page.before is not None:
        tell(f"hint: --before {page.before} shows older ones")


async def move(order: Order, *, as_json: bool, data_dir: Path) -> None:
    """Make a movement, once.

    Raises:
        LedgerError: it was refused, and nothing has moved.
        DependencyDownError: PostgreSQL does not answer; the hint says how to make sure.
    """
    try:
        async with open_database(load_settings(data_dir)) as pool:
            if order.kind == "topup":
                await ledger.open_account(pool, order.target)
            source, target = await _resolved(pool, order.source), await _resolved(pool, order.target)
            moved = await ledger.transfer(
                pool,
                order.transfer_id,
                kind=order.kind,
                source=source,
                target=target,
                amount=order.amount,
                memo=order.memo,
            )
            after = await ledger.balance(pool, target)
    except DependencyDownError as error:
        raise type(error)(
            str(error), hint=f"it may have moved: --key {order.key} makes sure without moving twice"
        ) from error
    except InsufficientCreditsError as error:
        raise InsufficientCreditsError(
            str(error), hint=f"`coatcheck ledger balance {order.source}` shows it"
        ) from error
    if as_json:
        emit_json({"key": order.key, "moved": moved == "moved", "amount": order.amount, "target": after})
        return
    emit(f"{target} has {format_credits(after.balance)}")
    done = "was moved before" if moved == "duplicate" else "moved"
    tell(f"{format_credits(order.amount)} {done} from {source} to {target} (key {order.key})")


async def check(*, as_json: bool, data_dir: Path) -> None:
    """Print whether everything adds up.

    Raises:
        LedgerWrongError: it does not.
        DependencyDownError: PostgreSQL does not answer.
    """
    async with open_database(load_settings(data_dir)) as pool:
        found = await ledger.check(pool)
    if as_json:
        emit_json(found)
    else:
        emit(
            f"{found.transactions:,} transactions in {found.accounts:,} accounts, together "
            f"{format_credits(found.total)}; {found.holds:,} reservations, {found.expired:,} of them expired"
        )
    if found.shortfall:
        tell(
            f"note: the treasury paid {format_credits(found.shortfall)} for calls that cost more than was held and free"
        )
    if not found.is_right:
        wrong = ", ".join(found.drifted) or "no single account"
        raise LedgerWrongError(f"the ledger does not add up: {format_credits(found.total)} too much; wrong: {wrong}")


async def _all(pool: Pool) -> list[Balance]:
    found: list[Balance] = []
    while page := await ledger.balances(pool, after=found[-1].account if found else ""):
        found += page
        if len(page) < MAX_PAGE:
            break
    return found


async def _resolved(pool: Pool, account: str) -> str:
    """`run/RUN` with any name of a run; other accounts as they are."""
    kind, _, name = account.partition("/")
    return account if kind != "run" else run_account((await find_record(pool, name)).run_key)
