"""A feature request as people give it: slug and brief, or a whole JSON document. Checked before anything connects."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from slugify import slugify

from coatcheck.cli.voice import MisuseError
from schemas.budget import Budget
from schemas.pipeline import FeatureRequest
from schemas.subjects import MAX_SLUG_LENGTH

STDIN: Final = "-"
_MAX_READ_BYTES: Final = 16 * 1024**2
"""Far above what a brief (256 KB) and a pipeline may have, so that the complaint can name the real size; bounded,
since a pipe may never end."""
_SHOWN_PROBLEMS: Final = 3
_NO_OBJECT: Final = frozenset({"json_invalid", "model_type", "missing"})


def read_text(source: str) -> str:
    """Read a file, or stdin for `-`, as UTF-8.

    Raises:
        MisuseError: it cannot be read or is not UTF-8.
    """
    try:
        if source == STDIN:
            return _decode(sys.stdin.buffer, "stdin")
        with Path(source).open("rb") as file:
            return _decode(file, source)
    except OSError as error:
        raise MisuseError(f"cannot read {source}: {error.strerror or error}") from error


def _decode(file: IO[bytes], name: str) -> str:
    try:
        return file.read(_MAX_READ_BYTES).decode()
    except UnicodeDecodeError as error:
        raise MisuseError(
            f"{name} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
        ) from error


def build_request(fields: Mapping[str, Any]) -> FeatureRequest:
    """A request from options; a value of `None` means that the option was not given.

    Raises:
        MisuseError: a rule of `FeatureRequest` is broken; a wrong slug comes with the nearest valid one.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return FeatureRequest.model_validate(given)
    except ValidationError as error:
        raise _misuse(error, given) from error


def parse_request(text: str) -> FeatureRequest:
    """A request from JSON, as the workflow itself takes it.

    Raises:
        MisuseError: it is not JSON, or breaks a rule of `FeatureRequest`.
    """
    try:
        return FeatureRequest.model_validate_json(text)
    except ValidationError as error:
        values = {item["loc"][0]: item["input"] for item in error.errors() if item["loc"]}
        raise _misuse(error, values) from error


def budget_from(
    *, usd: str | None = None, tokens: int | None = None, calls: int | None = None, agents: Sequence[str] = ()
) -> Budget:
    """A budget from options; `None` means not limited.

    Args:
        usd: Like `2.50`.
        tokens: Of model calls.
        calls: Model calls.
        agents: `AGENT=USD`, what single agents may spend of it.

    Raises:
        MisuseError: nothing is limited, or an amount is none.
    """
    shares = {}
    for text in agents:
        agent, separator, amount = text.partition("=")
        if not separator:
            raise MisuseError(f"{text!r} is no agent's limit", hint="it is like roy=0.50")
        shares[agent] = {"usd": amount.removeprefix("$")}
    given = {"usd": usd and usd.removeprefix("$"), "tokens": tokens, "calls": calls, "agents": shares}
    try:
        return Budget.model_validate(given)
    except ValidationError as error:
        problems = "; ".join(_problem(item["loc"], item["msg"]) for item in error.errors(include_url=False))
        raise MisuseError(problems, hint="an amount in US dollars is like 2.50") from error


def nearest_slug(name: str) -> str | None:
    """The valid slug that is nearest to `name`, or `None` when nothing of it can be kept."""
    return slugify(name, max_length=MAX_SLUG_LENGTH) or None


def _misuse(error: ValidationError, values: Mapping[Any, Any]) -> MisuseError:
    problems = error.errors(include_url=False)
    lines = [_problem(item["loc"], item["msg"]) for item in problems[:_SHOWN_PROBLEMS]]
    if len(problems) > _SHOWN_PROBLEMS:
        lines.append(f"and {len(problems) - _SHOWN_PROBLEMS} more")
    return MisuseError("; ".join(lines), hint=_hint(problems, values))


def _problem(location: tuple[int | str, ...], message: str) -> str:
    """`gates.0: …`; pydantic's own prefix says nothing to a person."""
    where = ".".join(str(part) for part in location) or "the request"
    return f"{where}: {message.removeprefix('Value error, ')}"


def _hint(problems: Sequence[ErrorDetails], values: Mapping[Any, Any]) -> str | None:
    for name in ("feature", "tenant"):
        value = values.get(name)
        if (
            any(item["loc"] == (name,) for item in problems)
            and isinstance(value, str)
            and (slug := nearest_slug(value))
        ):
            return f"try {slug!r}"
    if any(item["type"] in _NO_OBJECT for item in problems):
        return 'a request is one JSON object: {"feature": "customer-search", "brief": "…"}'
    return None
