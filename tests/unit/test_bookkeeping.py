"""What `coatcheck ledger` refuses before anything connects."""

import pytest

from coatcheck.cli.bookkeeping import Order, check_account
from coatcheck.cli.voice import MisuseError


@pytest.mark.parametrize(
    ("source", "target", "amount"),
    [
        ("treasury", "agent/roy", "1"),
        ("agent/roy", "agent/roy", "1"),
        ("agent/Roy", "agent/jen", "1"),
        ("pocket/roy", "agent/jen", "1"),
        ("agent/roy", "agent/", "1"),
        ("agent/roy", "run/", "1"),
        ("agent/roy", "market/x", "1"),
        ("agent/roy", "market", "-1"),
        ("agent/roy", "market", "NaN"),
        ("agent/roy", "market", "0.0000001"),
    ],
)
def test_a_transfer_that_makes_no_sense_is_misuse(source: str, target: str, amount: str) -> None:
    """Its ends or its amount."""
    with pytest.raises(MisuseError):
        Order.of(source, target, amount, key=None, memo="")


@pytest.mark.parametrize("account", ["provider/openai", "market", "treasury", "run/x", "tenant/A"])
def test_only_tenants_and_agents_are_topped_up(account: str) -> None:
    """The others get their money from those."""
    with pytest.raises(MisuseError):
        Order.topup(account, "1", key=None, memo="")


def test_a_key_makes_it_the_same_movement() -> None:
    """Without one each command is a movement of its own."""
    named = [Order.topup("tenant/acme", "1.5", key="gift", memo="") for _ in range(2)]
    assert named[0] == named[1]
    assert (named[0].amount, named[0].key) == (1_500_000, "gift")
    assert Order.topup("tenant/acme", "1", key=None, memo="") != Order.topup("tenant/acme", "1", key=None, memo="")
    with pytest.raises(MisuseError, match="is no key"):
        Order.topup("tenant/acme", "1", key="a b", memo="")


@pytest.mark.parametrize("account", ["treasury", "market", "tenant/acme", "agent/roy", "provider/openai", "run/x/y"])
def test_accounts_have_these_names(account: str) -> None:
    """And no others."""
    check_account(account)
