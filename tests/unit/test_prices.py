"""Prices of models: unknown is never 0, cached tokens cost what cached tokens cost, and sums are exact."""

from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.usage import RequestUsage

from coatcheck.gateway.prices import (
    SCRIPTED,
    TABLE_DATES,
    TABLE_VERSION,
    PriceOrigin,
    PriceTable,
    openai_endpoints,
)
from schemas.config import Price

MINI = "openai:gpt-5-mini"
SONNET = "anthropic:claude-sonnet-4-5"
TABLE = PriceTable({})
AGREED = Price(
    input_usd=Decimal(4),
    output_usd=Decimal(8),
    cached_input_usd=Decimal(1),
    as_of=date(2026, 5, 1),
    source="contract 17",
)


def cost(
    table: PriceTable, model: str, tokens_in: int = 1000, tokens_out: int = 100, tokens_cached: int = 0
) -> Decimal | None:
    """What a call costs by its counts alone."""
    return table.cost_usd(model, tokens_in=tokens_in, tokens_out=tokens_out, tokens_cached=tokens_cached)


def answer(name: str | None, provider: str, usage: RequestUsage) -> ModelResponse:
    """A provider's answer."""
    return ModelResponse(
        parts=[TextPart("x")], usage=usage, model_name=name, provider_name=provider, timestamp=datetime.now(UTC)
    )


def cost_of(table: PriceTable, model: str, response: ModelResponse) -> Decimal | None:
    """What that answer cost."""
    usage = response.usage
    return table.cost_usd(
        model,
        tokens_in=usage.input_tokens,
        tokens_out=usage.output_tokens,
        tokens_cached=usage.cache_read_tokens,
        response=response,
    )


def test_cached_tokens_are_priced_as_cached() -> None:
    """By the table's own numbers: they are a part of the tokens in, and not paid for twice."""
    price = TABLE.price(MINI)
    assert price.input_usd is not None
    assert price.output_usd is not None
    assert price.cached_input_usd is not None
    assert price.cached_input_usd < price.input_usd
    want = (400 * price.input_usd + 600 * price.cached_input_usd + 100 * price.output_usd) / 1_000_000
    assert cost(TABLE, MINI, 1000, 100, 600) == want
    response = answer("gpt-5-mini", "openai", RequestUsage(input_tokens=1000, output_tokens=100, cache_read_tokens=600))
    assert cost_of(TABLE, MINI, response) == want


def test_cache_writes_cost_more_than_the_counts_tell() -> None:
    """Anthropic charges for filling its cache; only the answer itself says so."""
    usage = RequestUsage(input_tokens=1000, output_tokens=100, cache_write_tokens=900)
    written = cost_of(TABLE, SONNET, answer("claude-sonnet-4-5", "anthropic", usage))
    plain = cost(TABLE, SONNET)
    assert written is not None
    assert plain is not None
    assert written > plain


@pytest.mark.parametrize(
    "model",
    [
        "openai:no-such-model",
        "ollama:llama3",
        "nonsense",
        "",
        "cerebras:qwen-3-coder-480b",  # the table lists it without a price, which its library adds up to 0
    ],
)
def test_an_unknown_price_is_none_and_says_why(model: str) -> None:
    """Also when the provider's answer names the same model."""
    price = TABLE.price(model)
    assert price.origin is PriceOrigin.UNKNOWN
    assert price.input_usd is price.output_usd is None
    assert "[prices]" in price.note
    assert cost(TABLE, model) is None
    provider, _, name = model.partition(":")
    assert cost_of(TABLE, model, answer(name, provider, RequestUsage(input_tokens=1000, output_tokens=100))) is None


@pytest.mark.parametrize("table", [TABLE, PriceTable({MINI: AGREED})])
@pytest.mark.parametrize(("tokens_in", "tokens_cached"), [(0, 0), (100, 600)])
def test_what_a_provider_did_not_count_is_unknown(table: PriceTable, tokens_in: int, tokens_cached: int) -> None:
    """No tokens at all, or more cached ones than there were: neither is free."""
    assert cost(table, MINI, tokens_in, 0, tokens_cached) is None


def test_a_dated_name_that_the_table_does_not_know_is_billed_as_what_was_asked_for() -> None:
    """Providers answer with names that are newer than the table."""
    usage = RequestUsage(input_tokens=1000, output_tokens=100)
    assert cost_of(TABLE, MINI, answer("gpt-5-mini-nightly", "openai", usage)) == cost(TABLE, MINI)


def test_the_scripted_author_is_free_and_says_why() -> None:
    """It is the one model that calls nobody."""
    assert cost(TABLE, SCRIPTED) == 0
    price = TABLE.price(SCRIPTED)
    assert (price.origin, price.input_usd) == (PriceOrigin.FREE, Decimal(0))
    assert "calls no provider" in price.note


@pytest.mark.parametrize("model", [MINI, "openai-chat:gpt-5-mini", "openai-responses:gpt-5-mini"])
def test_an_endpoint_of_ones_own_has_no_price_unless_one_is_agreed(model: str) -> None:
    """The maker's price means nothing there, whatever the answer calls itself."""
    own = openai_endpoints("http://127.0.0.1:11434/v1")
    table = PriceTable({}, own_endpoints=own)
    usage = RequestUsage(input_tokens=1000, output_tokens=100)
    assert cost_of(table, model, answer("gpt-5-mini", "openai", usage)) is None
    assert "endpoint of your own" in table.price(model).note
    assert cost(table, SONNET) is not None
    assert cost(PriceTable({model: AGREED}, own_endpoints=own), model) == Decimal("0.0048")
    assert openai_endpoints(None) == frozenset()


def test_an_agreed_price_goes_before_the_table() -> None:
    """With its date and its source; without a price for cached tokens they cost as the others do."""
    table = PriceTable({MINI: AGREED, SONNET: AGREED.model_copy(update={"cached_input_usd": None})})
    assert cost(table, MINI, 1000, 100, 600) == Decimal("0.003")
    assert cost(table, SONNET, 1000, 100, 600) == Decimal("0.0048")
    price = table.price(MINI)
    assert (price.origin, price.as_of, price.source) == (PriceOrigin.CONFIGURED, date(2026, 5, 1), "contract 17")
    assert table.price(SONNET).cached_input_usd == Decimal(4)
    assert cost(PriceTable({SCRIPTED: AGREED}), SCRIPTED) == Decimal("0.0048")


def test_a_price_of_nothing_is_known() -> None:
    """A model of one's own may be free by agreement, also where it counts no tokens."""
    free = Price(input_usd=Decimal(0), output_usd=Decimal(0), as_of=date(2026, 5, 1), source="ours")
    assert cost(PriceTable({"ollama:llama3": free}), "ollama:llama3", 0, 0) == 0


def test_the_table_says_which_it_is_and_how_new() -> None:
    """The pinned release has a date here; renewing the pin asks for a new one."""
    price = TABLE.price(MINI)
    assert price.origin is PriceOrigin.TABLE
    assert price.source.startswith(f"genai-prices {TABLE_VERSION}: https://")
    assert price.as_of == TABLE_DATES[TABLE_VERSION]


PRICES = st.integers(0, 10**40).map(lambda digits: Decimal(f"{digits}e-36"))
"""Up to $10,000 per million tokens, with more digits than the default arithmetic keeps."""


@given(
    input_usd=PRICES,
    output_usd=PRICES,
    cached_usd=st.none() | PRICES,
    fresh=st.integers(0, 2**31 - 1),
    cached=st.integers(0, 2**31 - 1),
    tokens_out=st.integers(1, 2**31 - 1),
)
def test_costs_are_exact(
    *, input_usd: Decimal, output_usd: Decimal, cached_usd: Decimal | None, fresh: int, cached: int, tokens_out: int
) -> None:
    """To the last digit, as fractions have it."""
    agreed = Price(
        input_usd=input_usd, output_usd=output_usd, cached_input_usd=cached_usd, as_of=date(2026, 5, 1), source="x"
    )
    got = cost(PriceTable({MINI: agreed}), MINI, fresh + cached, tokens_out, cached)
    rate = input_usd if cached_usd is None else cached_usd
    want = fresh * Fraction(input_usd) + cached * Fraction(rate) + tokens_out * Fraction(output_usd)
    assert got is not None
    assert Fraction(got) == want / 1_000_000
