"""What model calls cost: prices from `coatcheck.toml` first, then the table that genai-prices bundles.

Unknown is `None` and never 0: a sum with an unknown part is unknown too. The bundled table is data of the installed
release and is not refreshed over the network, so that the same call costs the same wherever it is priced.
"""

import logging
from collections.abc import Collection, Mapping
from datetime import UTC, date, datetime
from decimal import Context, Decimal, localcontext
from enum import StrEnum
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict

from schemas.config import Price

if TYPE_CHECKING:  # a second of imports, which `coatcheck cost` must not wait for
    from genai_prices.types import ModelPrice, PriceCalculation, TieredPrices
    from pydantic_ai.messages import ModelResponse

SCRIPTED: Final = "scripted"
TABLE_VERSION: Final = version("genai-prices")
TABLE_DATES: Final[Mapping[str, date]] = {"0.2.3": date(2026, 11, 9)}
"""Release of genai-prices → the newest change of a price that is in force in it: the table does not say its own date.

Read off the data (`StartDateConstraint`); later dates in it are changes that were announced. A release that is not
listed has no date here, rather than a wrong one.
"""
_MILLION_DIGITS: Final = 6
_EXACT: Final = Context(prec=200)
"""Token counts have at most 10 digits, so products and sums stay exact for prices of up to 100."""
_log = logging.getLogger(__name__)


class PriceOrigin(StrEnum):
    """Who says what a model costs."""

    CONFIGURED = "configured"
    """`[prices]` of `coatcheck.toml`."""
    TABLE = "table"
    """The bundled table of genai-prices."""
    FREE = "free"
    """Nothing is called, so nothing is paid."""
    UNKNOWN = "unknown"


class KnownPrice(BaseModel):
    """A model's price, in US dollars per million tokens, and where it comes from."""

    model_config = ConfigDict(frozen=True)

    model: str
    origin: PriceOrigin
    input_usd: Decimal | None = None
    """`None` when unknown. The lowest tier's, where the price depends on the length of the prompt."""
    output_usd: Decimal | None = None
    cached_input_usd: Decimal | None = None
    as_of: date | None = None
    """When it was read, or how new the table is at least; `None` when nobody says."""
    source: str = ""
    note: str = ""
    """Why it is unknown or 0, or that longer prompts cost more."""


class PriceTable:
    """Prices by the name that a role or the chain asks for, `provider:model`.

    Args:
        overrides: `[prices]` of the configuration.
        own_endpoints: Providers whose calls go to an address of one's own, where the maker's prices mean nothing.
    """

    def __init__(self, overrides: Mapping[str, Price], *, own_endpoints: Collection[str] = ()) -> None:
        self._overrides = dict(overrides)
        self._own_endpoints = frozenset(own_endpoints)

    def price(self, model: str, at: datetime | None = None) -> KnownPrice:
        """The model's price at a time (now, by default), with its origin; never raises."""
        if (agreed := self._overrides.get(model)) is not None:
            cached = agreed.input_usd if agreed.cached_input_usd is None else agreed.cached_input_usd
            return KnownPrice(
                model=model,
                origin=PriceOrigin.CONFIGURED,
                input_usd=agreed.input_usd,
                output_usd=agreed.output_usd,
                cached_input_usd=cached,
                as_of=agreed.as_of,
                source=agreed.source,
            )
        if model == SCRIPTED:
            nothing = Decimal(0)
            return KnownPrice(
                model=model,
                origin=PriceOrigin.FREE,
                input_usd=nothing,
                output_usd=nothing,
                cached_input_usd=nothing,
                source="coatcheck",
                note="the scripted author is a part of Coatcheck and calls no provider",
            )
        if self._is_own_endpoint(model):
            return _unknown(model, "its calls go to an endpoint of your own: set its price under [prices]")
        return _from_table(model, at or datetime.now(UTC))

    def highest(self, model: str) -> tuple[Decimal, Decimal] | None:
        """The most that a prompt token and an answer token may cost, in US dollars per million; `None` when unknown."""
        known = self.price(model)
        if known.input_usd is None or known.output_usd is None:
            return None
        if known.origin is not PriceOrigin.TABLE:
            return max(known.input_usd, known.cached_input_usd or Decimal(0)), known.output_usd
        return _highest_of_table(model)

    def cost_usd(
        self,
        model: str,
        *,
        tokens_in: int,
        tokens_out: int,
        tokens_cached: int,
        response: "ModelResponse | None" = None,
    ) -> Decimal | None:
        """What one call cost; `None` when that is not known, which is not 0. Never raises: the answer is paid for.

        Args:
            model: The name that was asked for.
            tokens_in: Prompt tokens, cached ones included. When there are none at all, in or out, the provider did
                not count, and what was paid is not known.
            tokens_out: Tokens of the answer.
            tokens_cached: Prompt tokens that the provider had cached; more of them than `tokens_in` is a miscount
                whose cost is unknown.
            response: The provider's answer. The table also knows cache writes, audio and service tiers, which the
                three counts do not tell.
        """
        try:
            if (agreed := self._overrides.get(model)) is not None:
                return _agreed_cost(agreed, tokens_in, tokens_out, tokens_cached)
            if model == SCRIPTED:
                return Decimal(0)
            if self._is_own_endpoint(model):
                return None
            return _table_cost(model, tokens_in, tokens_out, tokens_cached, response)
        except (LookupError, ValueError):
            return None
        except Exception:  # noqa: BLE001  a fault in a price table must not lose an answer that is paid for
            _log.exception("no price for %s", model)
            return None

    def _is_own_endpoint(self, model: str) -> bool:
        return model.partition(":")[0] in self._own_endpoints


def openai_endpoints(base_url: str | None) -> frozenset[str]:
    """The providers that `OPENAI_BASE_URL` leads elsewhere; pydantic-ai has three names for OpenAI's protocols."""
    return frozenset() if base_url is None else frozenset({"openai", "openai-chat", "openai-responses"})


def _agreed_cost(agreed: Price, tokens_in: int, tokens_out: int, tokens_cached: int) -> Decimal | None:
    cached = agreed.input_usd if agreed.cached_input_usd is None else agreed.cached_input_usd
    if not any((agreed.input_usd, cached, agreed.output_usd)):
        return Decimal(0)
    if not (tokens_in or tokens_out) or not 0 <= tokens_cached <= tokens_in:
        return None
    with localcontext(_EXACT):
        total = (tokens_in - tokens_cached) * agreed.input_usd + tokens_cached * cached + tokens_out * agreed.output_usd
        return total.scaleb(-_MILLION_DIGITS)


def _table_cost(
    model: str, tokens_in: int, tokens_out: int, tokens_cached: int, response: "ModelResponse | None"
) -> Decimal | None:
    """The cost by the table; `None` when it lists the model without prices, which the library adds up to 0.

    Raises:
        LookupError: the table does not have the model.
        ValueError: the usage contradicts itself.
    """
    if not (tokens_in or tokens_out):
        return None
    result = _calculated(model, tokens_in, tokens_out, tokens_cached, response)
    return result.total_price if _is_priced(result.model_price) else None


def _calculated(
    model: str, tokens_in: int, tokens_out: int, tokens_cached: int, response: "ModelResponse | None"
) -> "PriceCalculation":
    from genai_prices import Usage, calc_price  # noqa: PLC0415

    if response is not None and response.model_name:
        try:
            return response.cost()
        except LookupError:
            pass  # a provider may answer with a dated name that is newer than the table; what was asked for is billed
    provider, _, name = model.partition(":")
    usage = Usage(input_tokens=tokens_in, output_tokens=tokens_out, cache_read_tokens=tokens_cached)
    moment = None if response is None else response.timestamp
    return calc_price(usage, name, provider_id=provider, genai_request_timestamp=moment)


def _is_priced(prices: "ModelPrice") -> bool:
    return prices.input_mtok is not None and prices.output_mtok is not None


def _from_table(model: str, at: datetime) -> KnownPrice:
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415

    provider_name, _, name = model.partition(":")
    try:
        provider, info = get_snapshot().find_provider_model(name, None, provider_name, None)
    except LookupError:
        return _unknown(model, "the table does not have it: set its price under [prices]")
    prices = info.get_prices(at)
    if not _is_priced(prices):
        return _unknown(model, "the table lists it without a price: set one under [prices]")
    page = provider.pricing_urls[0] if provider.pricing_urls else provider.name
    return KnownPrice(
        model=model,
        origin=PriceOrigin.TABLE,
        input_usd=_base(prices.input_mtok),
        output_usd=_base(prices.output_mtok),
        cached_input_usd=_base(prices.input_mtok if prices.cache_read_mtok is None else prices.cache_read_mtok),
        as_of=TABLE_DATES.get(TABLE_VERSION),
        source=f"genai-prices {TABLE_VERSION}: {page}",
        note=_tiers(prices),
    )


def _highest_of_table(model: str) -> tuple[Decimal, Decimal]:
    """Writing to a cache costs more than a plain prompt, and a long prompt more than a short one."""
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415

    provider_name, _, name = model.partition(":")
    prices = get_snapshot().find_provider_model(name, None, provider_name, None)[1].get_prices(datetime.now(UTC))
    return _top(prices.input_mtok, prices.cache_write_mtok), _top(prices.output_mtok)


def _top(*prices: "Decimal | TieredPrices | None") -> Decimal:
    """The highest of all tiers."""
    found = [Decimal(0)]
    for price in prices:
        if isinstance(price, Decimal):
            found.append(price)
        elif price is not None:
            found += [price.base, *(tier.price for tier in price.tiers)]
    return max(found)


def _unknown(model: str, why: str) -> KnownPrice:
    return KnownPrice(model=model, origin=PriceOrigin.UNKNOWN, note=why)


def _base(price: "Decimal | TieredPrices | None") -> Decimal | None:
    return price if price is None or isinstance(price, Decimal) else price.base


def _tiers(prices: "ModelPrice") -> str:
    price = prices.input_mtok
    if price is None or isinstance(price, Decimal):
        return ""
    return ", ".join(f"${tier.price} per million of prompts over {tier.start:,} tokens" for tier in price.tiers)
