"""The test of the tests: with one safety mechanism switched off, the same deaths leave what the checker must find."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from coatcheck.localstack import DEFAULT_WORKERS
from tests.chaos.checker import Rule
from tests.chaos.lab import Findings, Lab, open_lab
from tests.chaos.mutant import MUTATION_FILE


@dataclass(frozen=True)
class MutantLab:
    """A lab whose workers take their mutation from a file."""

    lab: Lab
    mutation_file: Path

    @asynccontextmanager
    async def mutated(self, member: str, mutation: str) -> AsyncIterator[None]:
        """Let `member` live with the mutation while the block runs."""
        self.mutation_file.write_text(mutation)
        await self.lab.restart(member)
        try:
            yield
        finally:
            self.mutation_file.write_text("")
            await self.lab.restart(member)


@pytest.fixture(scope="module")
async def mutants(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MutantLab]:
    """A stack of its own, started without a mutation."""
    folder = tmp_path_factory.mktemp("mutants")
    file = folder / "mutation"
    file.touch()
    workers = [
        spec.model_copy(update={"argv": (sys.executable, "-m", "tests.chaos.mutant", spec.name)})
        for spec in DEFAULT_WORKERS
    ]
    async with open_lab(folder, workers=workers, env={MUTATION_FILE: str(file)}) as lab:
        yield MutantLab(lab, file)


DEATHS = [
    ("agents", "no message id", "agent.after_publish", Rule.ONE_DELIVERABLE_PER_TASK),
    ("gateway", "no turn journal", "agent.after_turn", Rule.NOTHING_PAID_TWICE),
    ("core", "no event key", "state.after_record", Rule.EVENTS_ONCE),
]


@pytest.mark.parametrize(("member", "mutation", "point", "rule"), DEATHS)
async def test_a_mutant_is_found(mutants: MutantLab, member: str, mutation: str, point: str, rule: Rule) -> None:
    """The death that the mechanism is for breaks the rule that it upholds."""
    async with mutants.mutated(member, mutation):
        findings = await death(mutants.lab, point, mutation.replace(" ", "-"))
    print(f"{mutation}: {findings.violations}")
    assert rule in findings.rules
    assert Rule.COMPLETED not in findings.rules


async def test_without_a_mutation_the_workers_are_the_product(mutants: MutantLab) -> None:
    """What the checker finds in a mutant is the mutation's doing: the same death leaves nothing, nor does its entry."""
    assert (await death(mutants.lab, "agent.after_publish", "no-mutation")).violations == []


async def death(lab: Lab, point: str, feature: str) -> Findings:
    """A run in which somebody dies at `point`."""
    run = await lab.start(feature)
    await lab.calls(run, 2)
    member = "core" if point.startswith("state.") else "agents"
    dead = await lab.death(member, point)
    await lab.recovery(member, dead, run)
    return await lab.inspect(run)
