"""`events at` and `bench fork`: a run as it was, and again from there."""

import json
from typing import Any

from tests.acceptance.test_cli import Cli


def told(cli: Cli, run: str, event_type: str) -> list[dict[str, Any]]:
    """Events of one type, in order."""
    return [json.loads(line) for line in cli("events", run, "--json", "--type", event_type).out.splitlines()]


def test_a_run_is_shown_as_it_was(cli: Cli) -> None:
    """At the start of a round exactly that round runs; at the end everything is as the rows say."""
    assert cli("run", "remembered", "Look back", "--wait").code == 0
    [begun] = told(cli, "remembered", "run.started")
    for started in told(cli, "remembered", "stage.started")[::4]:
        past = cli("events", "at", "remembered", "--sequence", str(started["sequence"]), "--json").json
        running = [task for task in past["tasks"] if task["status"] == "running"]
        assert [(task["stage"], task["round"]) for task in running] == [
            (started["payload"]["stage"], started["payload"]["round"])
        ]
        assert past["run"]["current_step"] == started["payload"]["stage"]
    now = cli("events", "at", "remembered")
    assert now.code == 0
    assert now.out.startswith("remembered: completed, 6 of 6 stages done\n")
    early = (
        cli("events", "at", "remembered", "--sequence", str(begun["sequence"] - 1)) if begun["sequence"] > 1 else None
    )
    assert early is None or (early.code, "has not begun at sequence" in early.err) == (1, True)


def test_a_fork_pays_only_from_its_stage(cli: Cli) -> None:
    """The rounds before are taken over, the others are done, in a run of its own that is told like any other."""
    assert cli("run", "forked", "Fork this", "--wait").code == 0
    started = cli("bench", "fork", "forked", "--from", "qa", "--json")
    assert started.code == 0
    assert "qa is the first stage that is paid" in started.err
    fork = started.json["run_key"]
    assert cli("watch", fork).code == 0
    [begun] = told(cli, fork, "run.started")
    original = told(cli, "forked", "run.started")[0]["correlation_id"]
    assert begun["payload"]["forked_from"] == original
    taken = [(item["stage"], item["round"]) for item in begun["payload"]["inherited"]]
    assert taken == [
        ("research", 1),
        ("critique", 1),
        ("research", 2),
        ("critique", 2),
        ("backend", 1),
        ("frontend", 1),
    ]
    done = [(item["payload"]["stage"], item["payload"]["round"]) for item in told(cli, fork, "stage.completed")]
    assert done == [("qa", 1), ("backend", 2), ("qa", 2), ("statistics", 1)]
    paid = {item["payload"]["stage"] for item in told(cli, fork, "turn.completed")}
    assert paid == {"qa", "backend", "statistics"}
    rows = cli("events", "at", fork, "--json").json
    assert {task["task_key"].rpartition("/")[0] for task in rows["tasks"]} == {fork}


def test_a_fork_that_cannot_be(cli: Cli) -> None:
    """No such stage, no such run, and a stage that was never reached; nothing is started."""
    cli("run", "short", "Reject me", "--gate", "research")
    before = cli("runs", "--json").out
    for arguments, words in (
        (("short", "--from", "nowhere"), "no stage is named 'nowhere'"),
        (("short", "--from", "backend"), "the run never came to backend"),
        (("no-such-run", "--from", "qa"), "no run is called"),
    ):
        refused = cli("bench", "fork", *arguments)
        assert (refused.code, words in refused.err) == (1, True), refused.err
    assert cli("runs", "--json").out.count("run_key") == before.count("run_key")
    assert cli("cancel", "short").code == 0
