"""What a model turn may cost at most, before it is made.

A turn's prompt is the conversation so far, whose tokens the provider has counted, and what is new, whose tokens nobody
has: they are taken to be more than they will be. Its answer is bounded, since the provider is told so. After each turn
a last small one must still fit, in which the agent hands in what it has.
"""

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

BYTES_PER_TOKEN: Final = 2
"""English has about 4, code 3, Chinese 2 to 3: a prompt of text has fewer tokens than this says."""
ANSWER_TOKENS: Final = 16_384
"""Most of an answer where the request names no bound: a report of 15,000 tokens (seed 003) fits."""
TIGHT_ANSWER_TOKENS: Final = 4_096
"""Of an answer when a longer one does not fit: most of what is left is used before the agent has to wrap up."""
OVERHEAD_TOKENS: Final = 500
"""What providers add to each message and tool."""
WRAP_UP_ANSWER_TOKENS: Final = 2_048
"""Of the last turn: a short report."""
WRAP_UP_PROMPT_TOKENS: Final = 2_000
"""New in the last turn: what the agent is told, and the ends of the answers of its tools."""


@dataclass(frozen=True)
class Rates:
    """Micro-credits of a token; the same number as US dollars of a million tokens."""

    prompt: Decimal
    answer: Decimal


@dataclass(frozen=True)
class Quote:
    """The worst case of a turn, but for the conversation before it, which the journal knows.

    With `said` tokens before it the turn costs at most `said * rate + fixed` micro-credits, and
    `said * rate + keep` must be left besides; in tokens `said + tokens` and `said + keep_tokens`.
    """

    rate: Decimal | None
    """`None` when no price is known."""
    fixed: int
    keep: int
    tokens: int
    keep_tokens: int
    answer_tokens: int
    """What the provider is to be told."""


def quote(rates: Rates | None, *, new_bytes: int, answer_tokens: int | None = None, is_last: bool = False) -> Quote:
    """The worst case of a turn.

    Args:
        rates: The highest price that may apply; `None` when none is known.
        new_bytes: Of the messages since the last answer, with everything that is claimed in them.
        answer_tokens: The request's own bound.
        is_last: Whether the agent wraps up: nothing has to be left after it.
    """
    most = WRAP_UP_ANSWER_TOKENS if is_last else ANSWER_TOKENS
    answer = min(answer_tokens or most, most)
    prompt = math.ceil(new_bytes / BYTES_PER_TOKEN) + OVERHEAD_TOKENS
    last_prompt, last_answer = prompt + answer + WRAP_UP_PROMPT_TOKENS, WRAP_UP_ANSWER_TOKENS
    return Quote(
        rate=None if rates is None else rates.prompt,
        fixed=_cost(rates, prompt, answer),
        keep=0 if is_last else _cost(rates, last_prompt, last_answer),
        tokens=prompt + answer,
        keep_tokens=0 if is_last else last_prompt + last_answer,
        answer_tokens=answer,
    )


def _cost(rates: Rates | None, prompt: int, answer: int) -> int:
    return 0 if rates is None else math.ceil(prompt * rates.prompt + answer * rates.answer)
