"""A chain whose first models are away for good: the last one finishes the run, and everything that is kept says so."""

from collections import Counter
from decimal import Decimal
from pathlib import Path

from coatcheck.messaging.deliverables import DeliverableService
from schemas.streams import STREAMS
from tests.chaos.checker import Rule, repeated
from tests.chaos.evidence import STREAMS as SUBJECTS
from tests.chaos.evidence import Evidence
from tests.chaos.lab import SHORT_TURNS, Lab, open_lab
from tests.integration.nats_clients import client_as
from tests.providers.bill import paid, paid_twice, read_bill
from tests.providers.script import Step, unknown_model

GONE, DOWN, SPARE = "openai:gone", "openai:down", "openai:spare"
"""No longer sold (404), never well (500), and well."""
INPUT_USD = {GONE: 1000, DOWN: 100, SPARE: 10}
"""Per million tokens; the answers cost nothing, so that a wrong price cannot add up to the right one."""
PRICE = """
[prices."{model}"]
input_usd = {usd}
output_usd = 0
as_of = 2026-11-21
source = "the test"
"""
FEATURE = "primary-down"
EXPECTED = {Rule.NOTHING_BEGUN_TWICE}
"""Models that are down are asked in vain; what is paid is judged below, more strictly."""


async def test_the_next_model_finishes_the_run(tmp_path: Path) -> None:
    """Deliverables, notices, rows, messages and costs name the model that wrote; each turn is paid once."""
    env = {"COATCHECK_MODEL": f"{GONE},{DOWN},{SPARE}"}
    settings = "".join(PRICE.format(model=model, usd=usd) for model, usd in INPUT_USD.items())
    async with open_lab(tmp_path, env=env, settings=settings) as lab:
        lab.provider.script.add(unknown_model(model="gone", times=None), Step(do="error", model="down", times=None))
        run = await lab.start(FEATURE, long=False)
        await lab.ended(run)
        bill = lab.provider.bill
        refused = sum(line.step == "error" for line in read_bill(bill))
        findings = await lab.inspect(run, may_be_repeated=refused)
        assert not findings.rules - EXPECTED, findings.violations
        [evidence] = findings.evidence
        assert await _writers(lab, evidence) == Counter({SPARE: SHORT_TURNS})
    _judge_rows(evidence)
    assert paid_twice(bill) == {}
    assert repeated(read_bill(bill), [evidence], paid=True) == {}
    assert Counter(line.model for line in paid(bill)) == Counter(spare=SHORT_TURNS)
    asked = Counter(line.model for line in read_bill(bill) if line.event == "started")
    print(f"asked: {dict(asked)}")
    assert asked["gone"] == 1  # a name that is not known closes it for 5 minutes
    assert 2 <= asked["down"] <= 6  # five failures in a row do, and a turn that found it still closed probes it once


async def _writers(lab: Lab, evidence: Evidence) -> Counter[str]:
    """Who wrote the deliverables, as everybody reads it in them."""
    status = lab.stack.status().nats
    assert status is not None
    async with client_as(status, "observer") as client:
        service = DeliverableService(client, streams=STREAMS)
        stored = [
            await service.fetch_by_subject(f"{SUBJECTS[message.stream]}.{FEATURE}") for message in evidence.own_messages
        ]
    return Counter(str((item.deliverable.metadata.model_extra or {}).get("model")) for item in stored)


def _judge_rows(evidence: Evidence) -> None:
    """The turns' rows, and the costs that they and the notices state: the spare model's price for its own tokens."""
    assert [(turn["model"], turn["status"]) for turn in evidence.turns] == [(SPARE, "done")] * SHORT_TURNS
    for turn in evidence.turns:
        assert turn["tokens_in"] > 0
        assert turn["cost_usd"] == Decimal(turn["tokens_in"] * INPUT_USD[SPARE]) / 1_000_000
    costs = {turn["task_key"]: turn["cost_usd"] for turn in evidence.turns}
    stated = {task["execution_id"]: task["output_data"]["metadata"]["cost_usd"] for task in evidence.tasks}
    assert {key: Decimal(str(cost)) for key, cost in stated.items()} == costs
