"""Agents and pipelines of a configuration as tables, and as JSON."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from coatcheck.cli.output import columns, emit, emit_json
from coatcheck.cli.voice import tell
from coatcheck.config import load_config
from schemas.config import Config
from schemas.pipeline import Pipeline
from schemas.roles import Role
from schemas.task_queues import agent_queue


def show(file: Path | None, *, as_json: bool) -> None:
    """Print the configuration in `file`, or the defaults for `None`.

    Raises:
        ConfigError: the file is wrong.
    """
    team = load_config(file)
    tell(f"{file}" if file else "no coatcheck.toml: these are the defaults")
    if as_json:
        emit_json({"file": file, **team.model_dump(mode="json")})
        return
    emit(columns(("agent", "task type", "reports", "kind", "models", "prompt", "queue"), _roles(team)))
    for pipeline in team.pipelines.values():
        table = columns(("stage", "agent", "kind", "needs", "sends back", "gate"), _stages(pipeline))
        emit(f"\npipeline {pipeline.name}\n{table}")
    if limits := _limits(team):
        emit("\n" + columns(("what", "which", "setting"), limits))


def _roles(team: Config) -> list[list[str]]:
    return [
        [
            role.agent,
            role.task_type,
            role.reports,
            role.kind,
            ", ".join(role.models or team.models) or "-",
            _work(role),
            agent_queue(role.agent),
        ]
        for role in team.roles.values()
    ]


def _work(role: Role) -> str:
    return role.command[0] if role.kind == "command" else role.prompt or "-"


def _stages(pipeline: Pipeline) -> list[list[str]]:
    return [
        [
            stage.name,
            stage.agent,
            stage.kind,
            ", ".join(stage.needs),
            ", ".join(stage.sends_back),
            "a person decides" if stage.gate else "",
        ]
        for stage in pipeline.stages
    ]


def _limits(team: Config) -> list[list[str]]:
    """What is set in the three sections of plain tables, one line per table."""
    sections: dict[str, Mapping[str, BaseModel]] = {
        "provider": team.providers,
        "price": team.prices,
        "tenant": team.tenants,
    }
    return [
        [section, name, " ".join(f"{key}={value}" for key, value in table.model_dump(exclude_unset=True).items())]
        for section, tables in sections.items()
        for name, table in tables.items()
    ]
