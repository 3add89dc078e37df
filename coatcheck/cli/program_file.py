"""A program as a file: TOML, JSON or JSON lines, by its ending; stdin may be any of them.

Everything that is wrong is told at once, each mistake with its place and key, before anything connects or starts.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from coatcheck.cli.request import STDIN, nearest_slug, read_text
from coatcheck.cli.voice import MisuseError
from coatcheck.config.mistakes import Mistake, nearest, told, unknown_key
from coatcheck.config.places import Key, Places
from coatcheck.config.prompts import UnreadableError
from coatcheck.config.prompts import read_text as read_regular
from schemas.config import Config
from schemas.pipeline import MAX_BRIEF_BYTES, FeatureRequest, Pipeline
from schemas.program import MAX_FEATURES, ProgramRequest
from workers.temporal import DATA_CONVERTER

MAX_REQUEST_BYTES: Final = 2 * 1024**2
"""Temporal's limit for one payload; over it the start is refused with a text that helps nobody."""
LINES: Final = frozenset({".jsonl", ".ndjson"})
FEATURE_KEYS: Final = (*FeatureRequest.model_fields, "brief_file")
PROGRAM_KEYS: Final = tuple(ProgramRequest.model_fields)
_PLACEHOLDER: Final = "(a brief)"
"""Stands for a brief that could not be read, so that the feature's other mistakes are found too."""


class _NotJson(str):
    """Why a line is none; it stands for the feature that the line should have been."""

    __slots__ = ()


@dataclass(frozen=True)
class _Document:
    """What a file holds, and how its places are called."""

    fields: Mapping[str, Any]
    """As `ProgramRequest` has them, unchecked."""
    place: Callable[[Key], str]
    """Key → `spring.toml:12`."""
    path: Callable[[Mistake], str] = lambda mistake: mistake.path
    folder: Path = field(default_factory=Path)
    """What `brief_file` is relative to."""


def read_program(source: str, *, name: str | None, max_concurrent: int | None, config: Config) -> ProgramRequest:
    """The program in a file.

    Args:
        source: The file, or `-` for stdin.
        name: What the program is called; `None`: as the file says, else as the file is called.
        max_concurrent: Beats what the file says.
        config: The pipelines that a feature can name, and the shares of tenants of which the file says nothing.

    Raises:
        MisuseError: it cannot be read, is wrong (one line per mistake), or is too large.
    """
    text = read_text(source).removeprefix("\ufeff")
    document = _parse(text, source)
    given = {"name": name, "max_concurrent": max_concurrent}
    fields = {**document.fields, **{key: value for key, value in given.items() if value is not None}}
    if "name" not in fields and source != STDIN and (stem := nearest_slug(Path(source).stem)):
        fields["name"] = stem
    reading = _Reading(document, config.pipelines)
    request = reading.program(fields)
    if request is None:
        raise _misuse(reading.mistakes, document, source)
    request = _with_shares(request, config)
    _check_size(request)
    return request


def _with_shares(request: ProgramRequest, config: Config) -> ProgramRequest:
    """The file's shares, and the configured ones of other tenants that have a feature in it."""
    used = {feature.tenant for feature in request.features}
    configured = {name: tenant for name, tenant in config.tenants.items() if name in used}
    return request.model_copy(update={"tenants": {**configured, **request.tenants}}) if configured else request


# --- the forms ------------------------------------------------------------------------------------------------------


def _parse(text: str, source: str) -> _Document:
    ending = Path(source).suffix.lower() if source != STDIN else _ending_of(text)
    folder = Path(source).parent if source != STDIN else Path()
    shown = source if source != STDIN else "stdin"
    if ending == ".toml":
        return _toml(text, shown, folder)
    if ending == ".json":
        return _json(text, shown, folder)
    if ending in LINES:
        return _lines(text, shown, folder)
    raise MisuseError(f"{source} is none of .toml, .json, .jsonl", hint="the ending says how the file is read")


def _ending_of(text: str) -> str:
    """Which form a text without a name has: JSON when all of it is, lines when it begins as JSON does, else TOML."""
    try:
        whole = from_json(text)
    except ValueError:
        return ".jsonl" if text.lstrip().startswith("{") else ".toml"
    return ".jsonl" if isinstance(whole, dict) and "feature" in whole else ".json"


def _toml(text: str, shown: str, folder: Path) -> _Document:
    try:
        fields = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise MisuseError(f"{shown}: {error}") from error
    places = Places(text)
    return _Document(fields, place=lambda key: f"{shown}:{places.line(key)}", folder=folder)


def _json(text: str, shown: str, folder: Path) -> _Document:
    try:
        whole = from_json(text)
    except ValueError as error:
        raise MisuseError(f"{shown}: {error}") from error
    fields = {"features": whole} if isinstance(whole, list) else whole
    if not isinstance(fields, dict):
        raise MisuseError(
            f"{shown}: a program is a list of features or an object that has one",
            hint='[{"feature": "customer-search", "brief": "…"}]',
        )
    return _Document(fields, place=lambda _: shown, folder=folder)


def _lines(text: str, shown: str, folder: Path) -> _Document:
    """One feature per line; what is no JSON is kept as it is, so that it is told with the other mistakes."""
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    features: list[Any] = []
    for _, line in numbered:
        try:
            features.append(from_json(line))
        except ValueError as error:
            features.append(_NotJson(str(error).replace(" at line 1 column", " at column")))

    def place(key: Key) -> str:
        index = key[1] if len(key) > 1 else None
        return f"{shown}:{numbered[index][0]}" if isinstance(index, int) else shown

    def path(mistake: Mistake) -> str:
        return Mistake(mistake.key[2:], "").path if mistake.key[:1] == ("features",) else mistake.path

    return _Document({"features": features}, place=place, path=path, folder=folder)


# --- the checks -----------------------------------------------------------------------------------------------------


class _Reading:
    """One pass over a document, which collects every mistake."""

    def __init__(self, document: _Document, pipelines: Mapping[str, Pipeline]) -> None:
        self._folder = document.folder
        self._pipelines = pipelines
        self.mistakes: list[Mistake] = []

    def program(self, fields: Mapping[str, Any]) -> ProgramRequest | None:
        """The program, or `None` when there are mistakes."""
        self.mistakes += [unknown_key((name,), PROGRAM_KEYS) for name in fields if name not in PROGRAM_KEYS]
        features = self._features(fields.get("features"))
        head = {name: value for name, value in fields.items() if name in PROGRAM_KEYS and name != "features"}
        stand_in = FeatureRequest(feature="x", brief=_PLACEHOLDER)
        checked: ProgramRequest | None = None
        try:
            document = to_json({**head, "features": [stand_in.model_dump(exclude_unset=True)]})
            checked = ProgramRequest.model_validate_json(document, strict=True)
        except ValidationError as error:
            self.mistakes += told(error, (), ProgramRequest)
        if checked is None or self.mistakes:
            return None
        return ProgramRequest.model_validate({**_set_fields(checked), "features": features})

    def _features(self, tables: Any) -> list[FeatureRequest]:
        if not isinstance(tables, list) or not tables:
            self.mistakes.append(Mistake(("features",), "should be a list of features, and not empty"))
            return []
        if len(tables) > MAX_FEATURES:
            self.mistakes.append(
                Mistake(("features",), f"has {len(tables)} features, at most {MAX_FEATURES} are taken")
            )
        first: dict[str, int] = {}
        features: list[FeatureRequest] = []
        for index, table in enumerate(tables):
            feature = self._feature(("features", index), table)
            slug = table.get("feature") if isinstance(table, dict) else None
            if isinstance(slug, str) and (other := first.setdefault(slug, index)) != index:
                key = ("features", index, "feature")
                self.mistakes.append(Mistake(key, f"{slug!r} is feature {other + 1} already, and this is {index + 1}"))
            features += [feature] if feature is not None else []
        return features

    def _feature(self, key: Key, table: Any) -> FeatureRequest | None:
        if not isinstance(table, dict):
            said = (
                f"is not JSON: {table}" if isinstance(table, _NotJson) else "should be an object with feature and brief"
            )
            self.mistakes.append(Mistake(key, said))
            return None
        unknown = [name for name in table if name not in FEATURE_KEYS]
        self.mistakes += [unknown_key((*key, name), FEATURE_KEYS) for name in unknown]
        fields = {name: value for name, value in table.items() if name not in {*unknown, "brief_file"}}
        if "brief_file" in table:
            fields["brief"] = self._brief((*key, "brief_file"), table)
        if isinstance(fields.get("pipeline"), str):
            fields |= self._pipeline((*key, "pipeline"), fields.pop("pipeline"))
        try:
            return FeatureRequest.model_validate_json(to_json(fields), strict=True)
        except ValidationError as error:
            self.mistakes += [_with_slug(item, table) for item in told(error, key, FeatureRequest)]
            return None

    def _brief(self, key: Key, table: Mapping[str, Any]) -> str:
        name = table["brief_file"]
        if "brief" in table:
            self.mistakes.append(Mistake(key, "the brief is given twice: here and as brief"))
        elif not isinstance(name, str) or not name.strip() or "\0" in name:
            self.mistakes.append(Mistake(key, "should be the name of a file"))
        else:
            try:
                return read_regular(self._folder / name, MAX_BRIEF_BYTES)
            except UnreadableError as error:
                self.mistakes.append(Mistake(key, str(error)))
        return _PLACEHOLDER

    def _pipeline(self, key: Key, name: str) -> dict[str, Any]:
        """The pipeline of that name; the default one is left out, as every run's history is to stay small."""
        if (pipeline := self._pipelines.get(name)) is None:
            known = list(self._pipelines)
            self.mistakes.append(Mistake(key, f"there is no pipeline {name!r}{nearest(name, known, others=True)}"))
            return {}
        if pipeline == FeatureRequest.model_fields["pipeline"].default:
            return {}
        return {"pipeline": pipeline.model_dump(mode="json", exclude_unset=True)}


def _set_fields(request: ProgramRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.model_fields_set}


def _with_slug(mistake: Mistake, table: Mapping[str, Any]) -> Mistake:
    """A wrong slug comes with the nearest valid one."""
    name = mistake.key[-1]
    value = table.get(str(name))
    if name not in ("feature", "tenant") or not isinstance(value, str) or not (slug := nearest_slug(value)):
        return mistake
    return Mistake(mistake.key, f"{mistake.message}; try {slug!r}")


def _misuse(mistakes: list[Mistake], document: _Document, source: str) -> MisuseError:
    lines = []
    for item in mistakes:
        path = document.path(item)
        lines.append(
            f"{document.place(item.key)}: {path}: {item.message}"
            if path
            else f"{document.place(item.key)}: {item.message}"
        )
    hint = "nothing was started"
    if source == STDIN and any(item.key == ("name",) for item in mistakes):
        hint = "--name NAME names the program; nothing was started"
    return MisuseError("\n".join(dict.fromkeys(lines)), hint=hint)


def _check_size(request: ProgramRequest) -> None:
    payloads = DATA_CONVERTER.payload_converter.to_payloads([request])
    size = sum(payload.ByteSize() for payload in payloads)
    if size <= MAX_REQUEST_BYTES:
        return
    longest = max(request.features, key=lambda feature: len(feature.brief))
    raise MisuseError(
        f"the program has {size:,} bytes, at most {MAX_REQUEST_BYTES:,} can be started at once",
        hint=f"make it several programs; the longest brief is that of {longest.feature}, {len(longest.brief):,} "
        "characters",
    )
