"""The sequence of a scenario as an expression, and its derivatives: what is left to expect after an event.

An expression is a regular one with a shuffle (things that happen at the same time, in any mixture). Its partial
derivative by an event is the list of expressions that may be left when the event is taken by a step, which is all that
a matcher needs: no automaton is built, and the shuffle of n things costs no n! states (Antimirov 1996).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from schemas.scenario import AnyOfStep, EventStep, SequenceStep, Step, UnorderedStep


@dataclass(frozen=True)
class Take:
    """One event, by the step of that number."""

    step: int


@dataclass(frozen=True)
class Then:
    """One after the other; nothing at all when empty."""

    parts: "tuple[Expression, ...]" = ()


@dataclass(frozen=True)
class Mixed:
    """All of them, each in its own order; nothing at all when empty."""

    parts: "tuple[Expression, ...]"


@dataclass(frozen=True)
class Either:
    """One of them."""

    parts: "tuple[Expression, ...]"


@dataclass(frozen=True)
class Times:
    """The part, so often."""

    part: "Expression"
    least: int
    most: int | None


Expression: TypeAlias = Take | Then | Mixed | Either | Times
NOTHING: Final = Then()
Left: TypeAlias = list[tuple[int, Expression]]
"""The step that took the event, and what is left to expect."""


def compile_steps(steps: Sequence[Step]) -> tuple[Expression, list[EventStep]]:
    """The expression of a sequence, and its steps by number."""
    table: list[EventStep] = []
    return _then([_compile(step, table) for step in steps]), table


def _compile(step: Step, table: list[EventStep]) -> Expression:
    expression: Expression
    match step:
        case EventStep():
            table.append(step)
            expression = Take(len(table) - 1)
        case SequenceStep():
            expression = _then([_compile(item, table) for item in step.steps])
        case UnorderedStep():
            expression = _mixed([_compile(item, table) for item in step.unordered])
        case AnyOfStep():
            expression = Either(tuple(_compile(item, table) for item in step.any_of))
    if step.repeat is not None:
        expression = Times(expression, step.repeat.min, step.repeat.max)
    return Either((expression, NOTHING)) if step.optional else expression


def may_end(expression: Expression) -> bool:
    """Whether nothing more has to come."""
    match expression:
        case Take():
            return False
        case Then(parts) | Mixed(parts):
            return all(map(may_end, parts))
        case Either(parts):
            return any(map(may_end, parts))
        case Times(part, least, _):
            return least == 0 or may_end(part)


def expected(expression: Expression) -> set[int]:
    """The steps that may come next."""
    match expression:
        case Take(step):
            return {step}
        case Then(parts):
            found: set[int] = set()
            for part in parts:
                found |= expected(part)
                if not may_end(part):
                    break
            return found
        case Mixed(parts) | Either(parts):
            return set().union(*map(expected, parts))
        case Times(part, _, _):
            return expected(part)


def after(expression: Expression, takes: Callable[[int], bool]) -> Left:
    """What may be left after an event, given which steps can take it; those of earlier steps first."""
    match expression:
        case Take(step):
            return [(step, NOTHING)] if takes(step) else []
        case Then(parts):
            return _after_then(parts, takes)
        case Mixed(parts):
            return [
                (step, _mixed([*parts[:index], left, *parts[index + 1 :]]))
                for index, part in enumerate(parts)
                for step, left in after(part, takes)
            ]
        case Either(parts):
            return [pair for part in parts for pair in after(part, takes)]
        case Times(part, least, most):
            rest = _times(part, max(least - 1, 0), None if most is None else most - 1)
            return [(step, _then([left, rest])) for step, left in after(part, takes)]


def _after_then(parts: tuple[Expression, ...], takes: Callable[[int], bool]) -> Left:
    found: Left = []
    for index, part in enumerate(parts):
        found += [(step, _then([left, *parts[index + 1 :]])) for step, left in after(part, takes)]
        if not may_end(part):
            break
    return found


# The constructors keep what is left small and of one form, so that equal expectations are equal expressions.


def _then(parts: Sequence[Expression]) -> Expression:
    flat = [item for part in parts for item in (part.parts if isinstance(part, Then) else (part,))]
    return flat[0] if len(flat) == 1 else Then(tuple(flat))


def _mixed(parts: Sequence[Expression]) -> Expression:
    left = [part for part in parts if part != NOTHING]
    if len(left) <= 1:
        return left[0] if left else NOTHING
    return Mixed(tuple(left))


def _times(part: Expression, least: int, most: int | None) -> Expression:
    return NOTHING if most == 0 else Times(part, least, most)
