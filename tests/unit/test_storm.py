"""The simulation of `make bench market`, small: floors are kept, and it is the same each time."""

from tests.benchmarks.storm import Weather, play

SMALL = Weather(per_minute=240_000, begins=60, ends=240, over=250)


def test_the_market_keeps_floors_where_priorities_do_not_and_is_worth_more() -> None:
    """One tenant shouts. The real queue, buckets and auction are played, twice with one result."""
    market = play("a shouter", "market", 1, SMALL)
    assert market == play("a shouter", "market", 1, SMALL)
    assert market.short < 2
    loud = play("a shouter", "Temporal, priorities and fairness", 1, SMALL)
    assert loud.least == 0
    assert loud.short > 4
    assert market.completed > 1.2 * loud.completed > 1.2 * play("a shouter", "FIFO", 1, SMALL).completed
