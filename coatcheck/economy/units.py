"""Micro-credits: integers, so that nothing is lost in a sum. A credit is a US dollar."""

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, InvalidOperation

from schemas.ledger import MICROCREDITS, MOST_MICROCREDITS


def parse_credits(text: str) -> int:
    """`0.50`, `$0.50` or `12` as micro-credits.

    Raises:
        ValueError: no number, not above 0, finer than a micro-credit, or more than one movement may have.
    """
    try:
        value = Decimal(text.strip().removeprefix("$"))
    except InvalidOperation as error:
        raise ValueError(f"{text!r} is no amount: like 0.50 or 12") from error
    if not value.is_finite() or not 0 < value <= MOST_MICROCREDITS // MICROCREDITS:
        raise ValueError(f"an amount is above 0 and at most {MOST_MICROCREDITS // MICROCREDITS:,}, not {text!r}")
    micro = value * MICROCREDITS
    if micro != micro.to_integral_value():
        raise ValueError(f"{text!r} is finer than a micro-credit, 0.000001")
    return int(micro)


def format_credits(micro: int) -> str:
    """`$0.50`, `-$12.00`, `$0.000001`: all digits that there are, and two at least."""
    value = abs(Decimal(micro)) / MICROCREDITS
    text = f"{value:,.6f}"
    whole, _, fraction = text.partition(".")
    return f"{'-' if micro < 0 else ''}${whole}.{fraction.rstrip('0').ljust(2, '0')}"


def cost_in_microcredits(usd: Decimal) -> int:
    """What is charged for a cost: rounded up, so that a sum of charges is never below the bill."""
    return int((usd * MICROCREDITS).to_integral_value(ROUND_CEILING))


def budget_in_microcredits(usd: Decimal) -> int:
    """What a limit in dollars allows: rounded down."""
    return int((usd * MICROCREDITS).to_integral_value(ROUND_FLOOR))
