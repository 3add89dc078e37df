"""What shares of the machine mean for a check."""

import pytest

from coatcheck.economy.grants import PLAIN, grant


@pytest.mark.parametrize(
    ("agent", "shares", "niceness"),
    [
        ("roy", {}, 0),
        ("roy", {"roy": 7500, "jen": 2500}, 0),
        ("jen", {"roy": 7500, "jen": 2500}, 5),  # 1.25 to the 5th is 3.05
        ("jen", {"roy": 5000, "jen": 5000}, 0),
        ("billy", {"roy": 5000, "jen": 2500}, 3),  # what is left is a quarter, too
        ("billy", {"roy": 9000, "jen": 1000}, 19),
        ("billy", {"roy": 1000}, 0),
    ],
)
def test_the_cpu_is_divided_by_niceness(agent: str, shares: dict[str, int], niceness: int) -> None:
    """The largest share runs as any process does."""
    assert grant(agent, cpu=shares, memory={}).niceness == niceness


def test_nobody_has_less_memory_than_is_configured() -> None:
    """Or a check would fail since its agent was outbid; who has more than an equal share has more."""
    shares = {"roy": 6000, "jen": 3000, "billy": 1000}
    assert grant("roy", cpu={}, memory=shares).memory == pytest.approx(1.8)
    assert grant("jen", cpu={}, memory=shares) == grant("sylvia", cpu={}, memory=shares) == PLAIN
