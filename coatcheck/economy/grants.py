"""What a share of this machine means for one check: how nice it is to others, and how much memory it may have.

Only what can be kept without privileges, and nothing that would make a check fail because its agent was outbid: a check
that fails is held against the work. So niceness divides the CPU while several want it and lends it at once while not,
and memory is what is configured at least, and more for those with more than an equal share.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from schemas.market import WHOLE

NICENESS_STEP: Final = 1.25
"""What one step is worth in Linux's scheduler (`sched_prio_to_weight`)."""
MOST_NICENESS: Final = 19


@dataclass(frozen=True)
class Grant:
    """What a check has of the machine."""

    niceness: int = 0
    """0 to 19."""
    memory: float = 1.0
    """Times what is configured, at least 1."""


PLAIN: Final = Grant()
"""Where nothing is shared out."""


def grant(agent: str, *, cpu: Mapping[str, int], memory: Mapping[str, int]) -> Grant:
    """What an agent's check has.

    Args:
        agent: Whose check it is.
        cpu: Agent → basis points of `check_cpu`. The largest share runs as any process does, the others so much nicer
            that they get CPU in proportion; who has none has what the shares leave. Nobody named: all are equal.
        memory: The same of `check_memory`.
    """
    return Grant(_niceness(agent, cpu), max(_share(agent, memory) * max(len(memory), 1) / WHOLE, 1.0))


def _niceness(agent: str, shares: Mapping[str, int]) -> int:
    largest, own = max([*shares.values(), 0]), _share(agent, shares)
    if own >= largest:
        return 0
    return min(round(math.log(largest / max(own, 1), NICENESS_STEP)), MOST_NICENESS)


def _share(agent: str, shares: Mapping[str, int]) -> int:
    return shares.get(agent) or max(WHOLE - sum(shares.values()), 0)
