"""What was spent, from the journal of turns, and the prices behind it.

Prices are applied when a turn is journalled: a new price changes no cost of before.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Final, Self

from coatcheck.cli.output import columns, cost, emit, emit_json
from coatcheck.cli.runs import find_record
from coatcheck.cli.session import load_settings, open_database
from coatcheck.cli.voice import MisuseError, tell
from coatcheck.config import load_config
from coatcheck.gateway.prices import SCRIPTED, KnownPrice, PriceTable, openai_endpoints
from coatcheck.settings import Settings
from coatcheck.storage.spending import Dimension, Report, Spending, spending
from schemas.config import Config

_LABELS: Final[dict[Dimension, tuple[str, ...]]] = {
    Dimension.CALL: ("task", "turn", "agent", "model", "status"),
    Dimension.RUN: ("run", "status"),
}
"""Which parts of a label are shown, where it has more than one or they have an order."""
_NUMBERS: Final = ("calls", "turns", "tokens in", "out", "cached", "cost", "unpriced")
_PRICE_HEADER: Final = ("model", "in", "out", "cached", "as of", "source")
_AGO: Final = re.compile(r"([1-9][0-9]{0,4})([dhm])")
_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes"}


@dataclass(frozen=True)
class Filters:
    """What `coatcheck cost` is asked for."""

    by: Dimension
    run: str | None
    tenant: str | None
    since: datetime | None

    @classmethod
    def of(
        cls, *, by: str, run: str | None, tenant: str | None, since: str | None, prices: bool, model: str | None
    ) -> Self:
        """Check what was typed, before anything connects.

        Raises:
            MisuseError: options that do not go together, or a time that is none.
        """
        if model is not None and not prices:
            raise MisuseError(f"MODEL goes with --prices only, not {model!r}", hint="--run names a run")
        if prices and (run, tenant, since) != (None, None, None):
            raise MisuseError("--prices shows prices: it has no --run, --tenant or --since")
        return cls(Dimension(by), run, tenant, None if since is None else moment_of(since, datetime.now(UTC)))


def moment_of(text: str, now: datetime) -> datetime:
    """`2026-11-01` (midnight, UTC), an ISO time, or so long ago: `7d`, `12h`, `30m`.

    Raises:
        MisuseError: it is none of these.
    """
    if match := _AGO.fullmatch(text):
        return now - timedelta(**{_UNITS[match[2]]: int(match[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise MisuseError(f"--since: {text!r} is no time", hint="like 2026-11-01, 7d, 12h or 30m") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


async def show_costs(filters: Filters, *, as_json: bool, data_dir: Path) -> None:
    """Print what was spent, with a line for all of it.

    Raises:
        RunNotFoundError: the run is not recorded.
        DependencyDownError: PostgreSQL does not answer.
    """
    async with open_database(load_settings(data_dir)) as pool:
        run_key = None if filters.run is None else (await find_record(pool, filters.run)).run_key
        report = await spending(pool, filters.by, run_key=run_key, tenant=filters.tenant, since=filters.since)
    if as_json:
        emit_json(report)
        return
    emit(cost_table(report))
    if report.total.unpriced:
        tell(
            f"note: {report.total.unpriced:,} of {report.total.turns:,} finished turns have no known price; the others "
            f"cost {cost(report.total.priced_usd)}"
        )
        tell("hint: `coatcheck cost --by model` shows whose, [prices] in coatcheck.toml sets a price for later calls")
    if report.total.unmetered:
        rounds = "1 round was" if report.total.unmetered == 1 else f"{report.total.unmetered:,} rounds were"
        tell(
            f"note: {rounds} worked by command agents, which call their providers themselves; the known turns cost "
            f"{cost(report.total.priced_usd)}"
        )


def cost_table(report: Report) -> str:
    """One line per group and one for the total."""
    labels = _LABELS.get(report.by, (report.by.value,))
    rows = [
        [*("" if row.label[name] is None else str(row.label[name]) for name in labels), *numbers(row)]
        for row in report.rows
    ]
    total = ["total", *[""] * (len(labels) - 1), *numbers(report.total)]
    return columns((*labels, *_NUMBERS), [*rows, total])


def numbers(row: Spending) -> list[str]:
    """The cells of `_NUMBERS`."""
    counts = [row.calls, row.turns, row.tokens_in, row.tokens_out, row.tokens_cached]
    return [*(f"{count:,}" for count in counts), cost(row.cost_usd), str(row.unpriced or "")]


# --- prices -------------------------------------------------------------------------------------------------------


def show_prices(model: str | None, *, as_json: bool, data_dir: Path) -> None:
    """Print prices per million tokens and where they come from; needs no server.

    Raises:
        ConfigError: the configuration is wrong.
    """
    settings = load_settings(data_dir)
    config = load_config(settings.config_file)
    table = PriceTable(config.prices, own_endpoints=openai_endpoints(settings.openai_base_url))
    found = [table.price(name) for name in ([model] if model is not None else models_in_use(config, settings))]
    if as_json:
        emit_json(found)
        return
    emit(columns(_PRICE_HEADER, [_price_row(price) for price in found]))
    for price in found:
        if price.note:
            tell(f"note: {price.model}: {price.note}")
    tell("US dollars per million tokens, as this environment and its configuration have it")


def models_in_use(config: Config, settings: Settings) -> list[str]:
    """Every model that the configuration or the environment names, or that a key here would choose."""
    from coatcheck.gateway.providers import (  # noqa: PLC0415  imports pydantic-ai: a second, for this command only
        DEFAULT_ANTHROPIC_MODEL,
        DEFAULT_OPENAI_MODEL,
    )

    named = [model for role in config.roles.values() for model in role.models]
    chosen = [model.strip() for model in (settings.model or "").split(",") if model.strip()]
    defaults = (DEFAULT_OPENAI_MODEL, DEFAULT_ANTHROPIC_MODEL, SCRIPTED)
    return list(dict.fromkeys([*chosen, *config.models, *named, *config.prices, *defaults]))


def _price_row(price: KnownPrice) -> Sequence[str]:
    amounts = [_amount(value) for value in (price.input_usd, price.output_usd, price.cached_input_usd)]
    return [price.model, *amounts, str(price.as_of or ""), price.source]


def _amount(value: Decimal | None) -> str:
    return "unknown" if value is None else f"${value.normalize():f}"
