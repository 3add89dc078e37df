"""`coatcheck ledger`, `run --budget` and `set-budget` on a whole stack, as a person types them."""

import json
from collections.abc import Callable

from tests.acceptance.program import Outcome
from tests.acceptance.test_cli import wait_for

Cli = Callable[..., Outcome]


def test_credits_move_once_and_are_accounted_for(cli: Cli) -> None:
    """Top up, transfer, the same again under its key, what is refused, statement and check."""
    assert cli("ledger", "topup", "tenant/acme", "12.5").code == 0
    first = cli(
        "ledger", "transfer", "tenant/acme", "agent/roy", "2.50", "--key", "gift", "--memo", "for pages", "--json"
    )
    assert first.json["moved"] is True
    again = cli("ledger", "transfer", "tenant/acme", "agent/roy", "2.50", "--key", "gift")
    assert (again.code, "was moved before" in again.err) == (0, True)
    other = cli("ledger", "transfer", "tenant/acme", "agent/roy", "3", "--key", "gift")
    assert (other.code, other.out) == (1, "")
    poor = cli("ledger", "transfer", "tenant/acme", "agent/roy", "100")
    assert (poor.code, "has less than" in poor.err, "hint:" in poor.err) == (1, True, True)
    assert cli("ledger", "balance", "tenant/acme", "--json").json["free"] == 10_000_000
    [entry] = cli("ledger", "history", "agent/roy", "--json").json["entries"]
    assert (entry["amount"], entry["other"], entry["memo"]) == (2_500_000, "tenant/acme", "for pages")
    assert "tenant/acme" in cli("ledger", "balance").out
    assert cli("ledger", "check", "--json").json["total"] == 0


def test_a_run_without_calls_left_waits_for_more(cli: Cli) -> None:
    """The scripted author is free, so its calls are limited: the stage stops, hands in, and goes on with more."""
    request = b'{"feature": "few-calls", "brief": "Count things.", "budget": {"calls": 2}}'
    assert cli("run", "--request", "-", stdin=request).code == 0
    progress = wait_for(cli, "few-calls", "waiting")
    [waiting] = progress["waiting"]
    assert waiting["reason"].startswith("blocked: budget: the run has ")
    assert waiting["subject"]
    shown = cli("progress", "few-calls")
    assert "coatcheck set-budget" in shown.err
    assert "of 2 calls" in cli("why", "few-calls").out
    assert "of 2 calls" in shown.out
    assert progress["budget"]["calls"] == 2
    more = cli("set-budget", "few-calls", "--calls", "500", "--agent-budget", "roy=3", "--by", "ann")
    assert (more.code, "goes on" in more.err) == (0, True), more
    assert wait_for(cli, "few-calls", "completed")
    [told] = [
        json.loads(line) for line in cli("events", "few-calls", "--type", "budget.set", "--json").out.splitlines()
    ]
    assert told["payload"]["budget"] == {"calls": 500, "agents": {"roy": {"usd": "3"}}}
    assert "roy $0.00 of $3.00" in cli("why", "few-calls").out
    assert cli("set-budget", "few-calls", "5", "--agent-budget", "roy").code == 2
    late = cli("set-budget", "few-calls", "5", "--by", "ann")
    assert (late.code, "has ended" in late.err) == (1, True)


def test_a_budget_is_known_and_can_be_paid(cli: Cli) -> None:
    """A name that is not configured and a tenant that has too little fail the run at once, with the reason."""
    unknown = cli("run", "no-such-budget", "Do it.", "--budget", "huge", "--wait")
    assert (unknown.code, "there is no budget 'huge'" in unknown.err) == (1, True)
    assert cli("ledger", "topup", "tenant/poor", "0.10").code == 0
    poor = cli("run", "too-dear", "Do it.", "--tenant", "poor", "--budget", "0.50", "--wait")
    assert (poor.code, "tenant/poor has less than" in poor.err) == (1, True)
    assert cli("run", "nonsense", "Do it.", "--budget", "$-5").code == 2
    done = cli("run", "paid-for", "Do it.", "--tenant", "poor", "--budget", "0.10", "--wait")
    assert done.code == 0, done.err
    assert cli("ledger", "balance", "tenant/poor", "--json").json["free"] == 100_000
    kinds = [entry["kind"] for entry in cli("ledger", "history", "run/paid-for", "--json").json["entries"]]
    assert kinds == ["refund", "escrow"]
    assert cli("ledger", "check").code == 0
