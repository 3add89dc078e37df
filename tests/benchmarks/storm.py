"""A storm: a provider gives a third of what three tenants ask. What each policy makes of it, in value and in floors.

`python -m tests.benchmarks.storm [seeds]` prints the table; nothing is measured in real time, so it is the same each
time. Three shapes, chosen before the first result was seen and not changed since:

    by agent     urgent, normal and batch work are done by agents of their own; priority keys tell the truth
    mixed        the same work, but each agent does some of all three
    a shouter    as `by agent`, and one tenant brings five times as much batch work and calls all of it urgent

Work is worth 50, 10 or 2 credits (exponentially varied) and due after 2, 5 or 10 minutes (evenly varied by half), for
20, 40 and 40% of the jobs. A job is four calls of 1,500 tokens on average, 2 s each, and worth nothing when the last
one is late. Load is 0.6 of the limit, 3 times the limit from minute 2 to 8, and 0.6 again until minute 12. Each of a
tenant's three agents has a floor of 5%.
"""

import asyncio
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.table import Table

from tests.benchmarks.storm_gates import INTERVAL_SECONDS, Gate, Job, Market, first_come, temporal
from tests.virtual_time import run_virtually

SHAPES: Final = ("by agent", "mixed", "a shouter")
POLICIES: Final = ("FIFO", "Temporal, fairness", "Temporal, priorities and fairness", "market")
TENANTS: Final = ("ant", "bee", "cat")
FLOOR: Final = 500
"""Basis points of each of a tenant's three agents."""
MICRO: Final = 10**6
CALLS: Final = 4
CALL_SECONDS: Final = 2.0
MEAN_TOKENS: Final = 1500


@dataclass(frozen=True)
class Kind:
    """A kind of work."""

    name: str
    credits: int
    deadline_seconds: int
    priority: int
    part: float
    """Of all jobs."""


KINDS: Final = (Kind("urgent", 50, 120, 1, 0.2), Kind("normal", 10, 300, 3, 0.4), Kind("batch", 2, 600, 5, 0.4))


@dataclass(frozen=True)
class Weather:
    """How large and how long the storm is."""

    per_minute: int = 360_000
    """The provider's limit, in tokens."""
    calm: float = 0.6
    storm: float = 3.0
    begins: float = 120
    ends: float = 480
    over: float = 720


@dataclass(frozen=True)
class Outcome:
    """What a policy made of it."""

    completed: float
    """Value of the jobs that ended in time, of the value of all."""
    least: float
    """Of any tenant and minute: tokens that it was given, of the floors of its agents that waited throughout."""
    short: float
    """The most that was missing to such floors, in the largest calls per agent; below 2 where they are kept."""


def jobs(shape: str, seed: int, weather: Weather) -> list[Job]:
    """Everything that comes, the same for each policy."""
    chance = random.Random(f"{shape}/{seed}")
    per_second = weather.per_minute / 60 / (CALLS * MEAN_TOKENS)
    found: list[Job] = []
    for tenant in TENANTS:
        for kind in KINDS:
            rate = per_second * kind.part / len(TENANTS)
            is_shouted = shape == "a shouter" and (tenant, kind.name) == (TENANTS[-1], "batch")
            now = 0.0
            while (now := now + chance.expovariate(rate * weather.storm * (5 if is_shouted else 1))) < weather.over:
                in_storm = weather.begins <= now < weather.ends
                if not in_storm and chance.random() > weather.calm / weather.storm:
                    continue  # thinned out
                number = chance.randrange(len(KINDS)) if shape == "mixed" else KINDS.index(kind)
                found.append(
                    Job(
                        number=0,
                        agent=f"{tenant}-{number + 1}",
                        tenant=tenant,
                        arrives=now,
                        value=max(int(chance.expovariate(1 / kind.credits) * MICRO), 1),
                        deadline=now + kind.deadline_seconds * chance.uniform(0.5, 1.5),
                        calls=[int(chance.uniform(0.2, 1.8) * MEAN_TOKENS) for _ in range(CALLS)],
                        priority=1 if is_shouted else kind.priority,
                    )
                )
    found.sort(key=lambda job: job.arrives)
    for number, job in enumerate(found):
        job.number = number
    return found


def play(shape: str, policy: str, seed: int, weather: Weather = Weather()) -> Outcome:
    """One storm under one policy."""
    return run_virtually(_play(jobs(shape, seed, weather), policy, weather))


async def _play(work: Sequence[Job], policy: str, weather: Weather) -> Outcome:
    watch = _Watch()
    agents = sorted({job.agent for job in work})
    clearing: asyncio.Task[None] | None = None
    gate: Gate
    if policy == "market":
        worth: defaultdict[str, int] = defaultdict(int)
        for job in work:
            worth[job.agent] += job.value
        gate = market = Market(weather.per_minute, dict.fromkeys(agents, FLOOR), worth)
        clearing = asyncio.create_task(market.clear_for_ever())
    elif policy == "FIFO":
        gate = first_come(weather.per_minute)
    else:
        weights = dict.fromkeys(TENANTS, 1.0)
        gate = temporal(weather.per_minute, weights, with_priorities="priorities" in policy)
    await asyncio.gather(*(_run(job, gate, watch) for job in work))
    if clearing is not None:
        clearing.cancel()
    completed = sum(job.value for job in work if job.ended is not None) / sum(job.value for job in work)
    floor = weather.per_minute * INTERVAL_SECONDS / 60 * FLOOR / 10_000
    largest = max(max(job.calls) for job in work)
    kept = list(watch.floors())
    least = min((got / (count * floor) for got, count in kept), default=1.0)
    short = max(((count * floor - got) / (count * largest) for got, count in kept), default=0.0)
    return Outcome(completed, least, max(short, 0.0))


async def _run(job: Job, gate: Gate, watch: "_Watch") -> None:
    clock = asyncio.get_running_loop().time
    await asyncio.sleep(job.arrives)
    for tokens in job.calls:
        began = clock()
        try:
            place = await gate.enter(job, tokens=int(0.6 * tokens))
        except TimeoutError:
            watch.waited(job.agent, began, clock())
            return
        watch.waited(job.agent, began, clock())
        watch.given(job.agent, clock(), tokens)
        await asyncio.sleep(CALL_SECONDS)
        gate.leave(place, tokens=tokens)
        job.done += 1
    if clock() <= job.deadline:
        job.ended = clock()


class _Watch:
    """Notes who waited when, and who was given how much."""

    def __init__(self) -> None:
        self._waited: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        self._given: defaultdict[tuple[str, int], int] = defaultdict(int)

    def waited(self, agent: str, began: float, ended: float) -> None:
        """A call of that agent waited from then to then."""
        if ended > began:
            self._waited[agent].append((began, ended))

    def given(self, agent: str, at: float, tokens: int) -> None:
        """A call of that agent was let in."""
        self._given[agent, int(at // INTERVAL_SECONDS)] += tokens

    def floors(self) -> Iterator[tuple[int, int]]:
        """Of each tenant and interval: tokens of its agents that waited throughout, and how many these are."""
        throughout: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
        for agent, spans in sorted(self._waited.items()):
            covered: list[list[float]] = []
            for began, ended in sorted(spans):
                if covered and began <= covered[-1][1]:
                    covered[-1][1] = max(covered[-1][1], ended)
                else:
                    covered.append([began, ended])
            for began, ended in covered:
                for number in range(int(-(-began // INTERVAL_SECONDS)), int(ended // INTERVAL_SECONDS)):
                    throughout[agent.partition("-")[0], number].append(agent)
        for (_, number), agents in throughout.items():
            yield sum(self._given[agent, number] for agent in agents), len(agents)


Outcomes = Mapping[tuple[str, str], list[Outcome]]
"""Shape and policy → one for each seed."""


def play_all(seeds: int) -> Outcomes:
    """All shapes and policies over so many seeds."""
    return {
        (shape, policy): [play(shape, policy, seed) for seed in range(seeds)] for shape in SHAPES for policy in POLICIES
    }


def table(outcomes: Outcomes) -> Table:
    """As people read it."""
    shown = Table(
        "storm",
        "policy",
        "value completed",
        "range",
        "least of a floor",
        "range",
        "missing calls",
    )
    for (shape, policy), found in outcomes.items():
        completed, least = ([getattr(one, name) for one in found] for name in ("completed", "least"))
        shown.add_row(shape, policy, *_percent(completed), *_percent(least), f"{max(one.short for one in found):.1f}")
    return shown


def against(outcomes: Outcomes, shape: str, policy: str) -> tuple[float, str]:
    """What a policy completes of what the market does, and the two means in words."""
    theirs, ours = (
        statistics.mean(one.completed for one in outcomes[shape, which]) for which in (policy, POLICIES[-1])
    )
    return theirs / ours, f"{theirs:.0%} against {ours:.0%} of the value, {len(outcomes[shape, policy])} seeds"


def _percent(values: Sequence[float]) -> tuple[str, str]:
    return f"{statistics.mean(values):.0%}", f"{min(values):.0%}-{max(values):.0%}"


if __name__ == "__main__":
    Console(width=140).print(table(play_all(int(sys.argv[1]) if len(sys.argv) > 1 else 10)))
