"""From a file to a `Config`: read, completed by our defaults, checked.

Each table is checked by itself, so that one mistake does not hide the others; what refers to a table that is wrong is
only checked once that is mended. Values are checked strictly, as JSON: TOML has types, and "12" is not 12.
"""

import re
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from coatcheck.config.mistakes import Mistake, told, unknown_key
from coatcheck.config.places import Key, Places
from coatcheck.config.prompts import UnreadableError, read_prompt, read_text
from coatcheck.errors import ConfigError
from coatcheck.messaging.accounts import check_agent_name
from schemas.config import DEFAULT_CONFIG, Config, disagreements, misjudged, unknown_callers, unknown_spenders
from schemas.pipeline import Pipeline, Stage, StageKind, graph_faults
from schemas.roles import DEFAULT_ROLES, Role
from schemas.subjects import check_slug

MAX_CONFIG_BYTES: Final = 1024 * 1024
"""A thousand roles have 200 KB."""
NOT_IN_ROLES: Final = frozenset({"agent", "instructions"})
"""Fields of `Role` that are no keys: the table's name, and what `prompt` names."""
NO_TABLE: Final = "should be a table"
NO_TABLES: Final = "should be an array of tables"
_TABLES: Final = frozenset({"roles", "pipelines"})
"""Sections of the file with a form of their own; the others are as in `Config`."""
_PLACE: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")

M = TypeVar("M", bound=BaseModel)


def load_config(path: Path | None) -> Config:
    """The configuration in `path`, completed by the defaults; the defaults alone for `None`.

    Prompt files are read here, so what is returned needs no file any more.

    Raises:
        ConfigError: the file cannot be read, or is wrong; one line per mistake, in the order of the file.
    """
    if path is None:
        return DEFAULT_CONFIG
    shown = _shown(path)
    try:
        text = read_text(path, MAX_CONFIG_BYTES)
    except UnreadableError as error:
        raise ConfigError(str(error), hint="COATCHECK_CONFIG or --config names the file") from error
    document = _parsed(text, shown)
    reading = _Reading(path.parent)
    config = reading.config(document)
    if config is None:
        places = Places(text)
        lines = sorted((places.line(item.key), f"{item.path}: {item.message}") for item in reading.mistakes)
        raise ConfigError("\n".join(f"{shown}:{line}: {said}" for line, said in dict.fromkeys(lines)))
    return config


def _parsed(text: str, shown: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        said = str(error)
        place = _PLACE.search(said)
        line = int(place[1]) if place and place[1] else text.rstrip("\n").count("\n") + 1
        message = said[: place.start()] if place else said
        raise ConfigError(f"{shown}:{line}: {message[:1].lower()}{message[1:]}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, arrays in arrays without end
        raise ConfigError(f"{shown}: {error}") from error


class _Reading:
    """One pass over a document, which collects every mistake."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.mistakes: list[Mistake] = []
        self._stages: dict[str, Sequence[Stage]] = {}
        """Of the file's pipelines, also of those whose graph is wrong."""

    def config(self, document: Mapping[str, Any]) -> Config | None:
        """The configuration, or `None` when there are mistakes."""
        for name in document.keys() - Config.model_fields.keys():
            self.mistakes.append(unknown_key((name,), list(Config.model_fields)))
        given = self._tables(document, "roles", self._role)
        unclear = {agent for agent, role in given.items() if role is None}
        roles = {agent: role for agent, role in {**DEFAULT_ROLES, **given}.items() if role is not None}
        own = self._tables(document, "pipelines", partial(self._pipeline, roles=roles))
        pipelines = {name: it for name, it in {**DEFAULT_CONFIG.pipelines, **own}.items() if it is not None}
        self._compare(roles, {name: it.stages for name, it in pipelines.items()} | self._stages, own, unclear)
        rest = {name: value for name, value in document.items() if name in Config.model_fields and name not in _TABLES}
        checked = self._checked(Config, (), rest)
        if checked is None or self.mistakes:
            return None
        wrong = [
            *misjudged(checked.criteria, checked.judges),
            *unknown_callers(checked.mcp, roles),
            *unknown_spenders(checked.budgets, roles),
        ]
        self.mistakes += [Mistake(item.key, item.message) for item in wrong]
        if self.mistakes:
            return None
        return Config.model_validate({**vars(checked), "roles": roles, "pipelines": pipelines})

    def _tables(
        self, document: Mapping[str, Any], section: str, read: Callable[[str, Mapping[str, Any]], M | None]
    ) -> dict[str, M | None]:
        """The tables of a section by name; `None` for one with mistakes."""
        tables = document.get(section, {})
        if not isinstance(tables, dict):
            self.mistakes.append(Mistake((section,), NO_TABLE))
            return {}
        made: dict[str, M | None] = {}
        for name, table in tables.items():
            before = len(self.mistakes)
            if isinstance(table, dict):
                made[name] = read(name, table)
            else:
                self.mistakes.append(Mistake((section, name), NO_TABLE))
            if len(self.mistakes) > before:
                made[name] = None
        return made

    def _role(self, agent: str, table: Mapping[str, Any]) -> Role | None:
        key: Key = ("roles", agent)
        if not self._named(key, check_agent_name):
            return None
        default = DEFAULT_ROLES.get(agent)
        fields = {**(default.model_dump(exclude_unset=True) if default else {}), **table, "agent": agent}
        keys = [name for name in Role.model_fields if name not in NOT_IN_ROLES]
        self.mistakes += [unknown_key((*key, name), keys) for name in table.keys() & NOT_IN_ROLES]
        prompt = table.get("prompt")
        if isinstance(prompt, str) and prompt.endswith(".md"):
            try:
                fields["instructions"] = read_prompt(prompt, self._folder)
            except UnreadableError as error:
                self.mistakes.append(Mistake((*key, "prompt"), str(error)))
        return self._checked(Role, key, fields, besides=NOT_IN_ROLES)

    def _pipeline(self, name: str, table: Mapping[str, Any], *, roles: Mapping[str, Role]) -> Pipeline | None:
        key: Key = ("pipelines", name)
        self.mistakes += [unknown_key((*key, other), ["stages"]) for other in table.keys() - {"stages"}]
        tables = table.get("stages", [])
        if not self._named(key, check_slug) or not isinstance(tables, list):
            self.mistakes += [] if isinstance(tables, list) else [Mistake((*key, "stages"), NO_TABLES)]
            return None
        made = [self._stage((*key, "stages", index), stage, roles) for index, stage in enumerate(tables)]
        stages = [stage for stage in made if stage is not None]
        if len(stages) < len(made):
            return None
        self._stages[name] = stages
        faults = graph_faults(stages)
        self.mistakes += [Mistake((*key, "stages", at, field), message) for at, field, message in faults]
        if faults:
            return None
        try:
            # Not through JSON, which would set every field: what is unset stays out of the histories of runs.
            return Pipeline(name=name, stages=tuple(stages))
        except ValidationError as error:
            self.mistakes += told(error, key, Pipeline)
            return None

    def _stage(self, key: Key, table: Any, roles: Mapping[str, Role]) -> Stage | None:
        """A stage with the task type and the kind of its agent's role; where that is not known, with likely ones."""
        if not isinstance(table, dict):
            self.mistakes.append(Mistake(key, NO_TABLE))
            return None
        agent = table.get("agent")
        role = roles.get(agent) if isinstance(agent, str) else None
        likely = StageKind.REVIEW if "reviews" in table else StageKind.TEST if "reworks" in table else StageKind.WORK
        implied = {"task_type": role.task_type if role else "unknown", "kind": role.reports if role else likely}
        return self._checked(Stage, key, implied | table)

    def _compare(
        self,
        roles: Mapping[str, Role],
        pipelines: Mapping[str, Sequence[Stage]],
        own: Collection[str],
        unclear: Collection[str],
    ) -> None:
        """Note disagreements where the file can be mended: with a pipeline of ours it is the role that differs."""
        for item in disagreements(roles, pipelines):
            section, name, *rest = item.key
            agent = pipelines[str(name)][int(rest[1])].agent if section == "pipelines" else ""
            if agent in unclear:
                continue
            if section == "pipelines" and name not in own:
                field = {"kind": "reports"}.get(str(rest[2]), str(rest[2]))
                self.mistakes.append(Mistake(("roles", agent, field), f"in the pipeline {name!r} {item.message}"))
            else:
                self.mistakes.append(Mistake(item.key, item.message))

    def _named(self, key: Key, check: Callable[[str], str]) -> bool:
        try:
            check(str(key[-1]))
        except ValueError as error:
            self.mistakes.append(Mistake(key, str(error)))
            return False
        return True

    def _checked(
        self, model: type[M], key: Key, fields: Mapping[str, Any], *, besides: Collection[str] = ()
    ) -> M | None:
        try:
            return model.model_validate_json(to_json(fields), strict=True)
        except ValidationError as error:
            self.mistakes += told(error, key, model, besides=besides)
            return None


def _shown(path: Path) -> str:
    """The path as a person would type it here."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)
