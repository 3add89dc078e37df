"""Whether an event is the one that a matcher means. Pure functions."""

from typing import Any, Final

import re2  # type: ignore[import-untyped]

from coatcheck.bench.recording import Recorded
from schemas.scenario import Condition, EventMatcher

MISSING: Final = object()
"""No value at a path, which is not the same as `null` to our reader but is to a condition."""


def value_at(payload: Any, path: str) -> Any:
    """The value at a dotted path, or `MISSING`."""
    value = payload
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


def matches(matcher: EventMatcher, message: Recorded) -> bool:
    """Whether the message is an event that the matcher means."""
    event = message.event
    if event is None or matcher.event not in ("*", event.event_type):
        return False
    payload = message.payload
    about = (
        (matcher.stage, payload.get("stage")),
        (matcher.round, payload.get("round")),
        (matcher.agent, event.agent),
        (matcher.source, event.source),
    )
    if any(wanted is not None and wanted != found for wanted, found in about):
        return False
    return all(holds(test, value_at(payload, path)) for path, test in matcher.where.items())


def holds(test: Condition, value: Any) -> bool:
    """Whether a value passes every test that is given."""
    is_absent = value is MISSING or value is None
    given = test.model_fields_set
    number = _number(value)
    return (
        ("equals" not in given or _same(test.equals, None if is_absent else value))
        and (test.one_of is None or any(_same(option, value) for option in test.one_of))
        and (test.at_least is None or (number is not None and number >= test.at_least))
        and (test.at_most is None or (number is not None and number <= test.at_most))
        and (test.matches is None or (isinstance(value, str) and re2.search(test.matches, value) is not None))
        and (test.exists is None or test.exists is not is_absent)
    )


def _same(wanted: Any, value: Any) -> bool:
    """Equal, and `true` is not 1."""
    return wanted == value and isinstance(wanted, bool) is isinstance(value, bool)


def _number(value: Any) -> float | None:
    """A number, also one that travels as text, as money does."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
