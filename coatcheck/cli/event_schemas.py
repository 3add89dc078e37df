"""JSON schemas of the events, for readers that are not ours: generated from the registry, never written by hand."""

from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from schemas.events import EVENT_TYPES, SCHEMA, AgentEvent, JudgeEvent, SystemEvent

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_MODE: Final[JsonSchemaMode] = "validation"
"""What a reader may find: absent values are left out on the wire."""


def event_schemas() -> dict[str, dict[str, Any]]:
    """Event type → schema of the whole event."""
    return {
        name: {"$schema": _DIALECT, "$id": f"{SCHEMA}/{name}", **kind.model_json_schema(mode=_MODE)}
        for name, kind in EVENT_TYPES.items()
    }


def union_schema() -> dict[str, Any]:
    """One schema for any event that this release knows."""
    adapter: TypeAdapter[Any] = TypeAdapter(SystemEvent | AgentEvent | JudgeEvent)
    return {"$schema": _DIALECT, "$id": SCHEMA, **adapter.json_schema(mode=_MODE)}
