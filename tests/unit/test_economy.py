"""The economy's pure rules: units that lose nothing, and quotes that are never too low."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.economy.quotes import (
    ANSWER_TOKENS,
    WRAP_UP_ANSWER_TOKENS,
    WRAP_UP_PROMPT_TOKENS,
    Quote,
    Rates,
    quote,
)
from coatcheck.economy.units import budget_in_microcredits, cost_in_microcredits, format_credits, parse_credits
from schemas.ledger import MICROCREDITS, MOST_MICROCREDITS

AMOUNTS = st.integers(1, MOST_MICROCREDITS)
PRICES = st.decimals(0, 1000, places=4, allow_nan=False)


@given(AMOUNTS)
def test_an_amount_is_what_it_is_written_as(micro: int) -> None:
    """There and back, to the micro-credit, with a sign."""
    text = format_credits(micro)
    assert parse_credits(text.replace(",", "")) == micro
    assert format_credits(-micro) == f"-{text}"


@pytest.mark.parametrize(
    "text",
    ["", "-1", "0", "NaN", "Infinity", "1e400", "0.0000001", "abc", "1,5", str(MOST_MICROCREDITS), "0x10", "--1"],
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    """With the text, whatever it was."""
    with pytest.raises(ValueError, match=r"amount|micro-credit"):
        parse_credits(text)


@given(st.decimals(0, 10**6, places=12, allow_nan=False))
def test_charges_are_rounded_up_and_limits_down(usd: Decimal) -> None:
    """So many charges never add up to less than the bill, and a limit never allows more than it says."""
    assert 0 <= cost_in_microcredits(usd) - usd * MICROCREDITS < 1
    assert 0 <= usd * MICROCREDITS - budget_in_microcredits(usd) < 1


def worst(quoted: Quote, said: int) -> tuple[Decimal, Decimal]:
    """What is reserved for a turn after `said` tokens, and what has to be left besides."""
    rate = quoted.rate or Decimal(0)
    return said * rate + quoted.fixed, said * rate + quoted.keep


@given(
    rates=st.builds(Rates, PRICES, PRICES),
    said=st.integers(0, 10**6),
    new_bytes=st.integers(0, 10**6),
    asked=st.none() | st.integers(1, 10**6),
    share=st.floats(0, 1),
    answered=st.floats(0, 1),
)
def test_a_turn_within_its_bounds_is_covered_and_so_is_the_last_one_after_it(  # noqa: PLR0917  one per bound
    rates: Rates, said: int, new_bytes: int, asked: int | None, share: float, answered: float
) -> None:
    """Whatever the provider counts, up to a token for two bytes and the bound that it was told."""
    first = quote(rates, new_bytes=new_bytes, answer_tokens=asked)
    assert first.answer_tokens == min(asked or ANSWER_TOKENS, ANSWER_TOKENS)
    prompt, answer = said + int(share * new_bytes / 2), int(answered * first.answer_tokens)
    cost = prompt * rates.prompt + answer * rates.answer
    amount, keep = worst(first, said)
    assert cost <= amount
    last_prompt = prompt + answer + WRAP_UP_PROMPT_TOKENS
    assert last_prompt * rates.prompt + WRAP_UP_ANSWER_TOKENS * rates.answer <= keep
    assert said + first.tokens >= prompt + answer
    assert said + first.keep_tokens >= last_prompt + WRAP_UP_ANSWER_TOKENS


@given(rates=st.none() | st.builds(Rates, PRICES, PRICES), new_bytes=st.integers(0, 10**6))
def test_a_last_turn_keeps_nothing_and_is_small(rates: Rates | None, new_bytes: int) -> None:
    """And without a price there are tokens to count, and no money."""
    last = quote(rates, new_bytes=new_bytes, is_last=True)
    assert (last.keep, last.keep_tokens, last.answer_tokens) == (0, 0, WRAP_UP_ANSWER_TOKENS)
    if rates is None:
        assert (last.rate, last.fixed) == (None, 0)
