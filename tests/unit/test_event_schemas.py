"""The committed JSON schemas are those of the registry."""

import json
from pathlib import Path

from coatcheck.cli.event_schemas import event_schemas, union_schema
from schemas.events import EVENT_TYPES

FOLDER = Path(__file__).parents[2] / "docs/reference/events"


def test_the_committed_schemas_are_current() -> None:
    """`make schema` writes them; one per type, and none of a type that is no more."""
    committed = {path.name: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
    assert committed == {f"{name}.schema.json": schema for name, schema in event_schemas().items()}


def test_the_union_knows_every_type() -> None:
    """By its discriminator."""
    families = union_schema()["anyOf"]
    assert {name for family in families for name in family["discriminator"]["mapping"]} == set(EVENT_TYPES)


def test_what_is_left_out_on_the_wire_is_not_required() -> None:
    """A stored event has no absent values, so no reader may insist on them."""
    for schema in event_schemas().values():
        assert not {"causation_id", "traceparent", "agent_id"} & set(schema["required"])
        assert {"event_id", "correlation_id", "occurred_at", "payload"} <= set(schema["required"])
