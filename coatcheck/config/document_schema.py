"""The JSON schema of `coatcheck.toml`, for editors that complete and check while one types.

Made from the models, so that one sentence under a field serves the code and the file; then changed where the file's
form is shorter than the model. References between tables are checked by loading only.
"""

from collections.abc import Collection
from typing import Any, Final

from coatcheck.config.loading import NOT_IN_ROLES
from schemas.config import Config
from schemas.roles import DEFAULT_ROLES

_SLUG: Final = {"type": "string", "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$", "maxLength": 64}


def document_schema() -> dict[str, Any]:
    """The schema, draft 2020-12."""
    schema = Config.model_json_schema()
    definitions = schema["$defs"]
    _shorten(definitions["Role"], without=NOT_IN_ROLES, needs=())
    _shorten(definitions["Stage"], without=(), needs=("name", "agent"))
    _shorten(definitions["Pipeline"], without=("name",), needs=("stages",))
    del definitions["Stage"]["properties"]["kind"]["default"]  # as the role reports
    # What is left out of an own role's table has no default of ours to come from.
    own = {"$ref": "#/$defs/Role", "required": ["task_type"]}
    sections = schema["properties"]
    sections["roles"] |= {
        "properties": {agent: {"$ref": "#/$defs/Role"} for agent in DEFAULT_ROLES},
        "additionalProperties": own,
        "propertyNames": _SLUG,
    }
    for name in ("pipelines", "judges", "criteria"):
        sections[name]["propertyNames"] = _SLUG
    for name in ("roles", "pipelines"):
        del sections[name]["default"]
    for definition in (schema, *definitions.values()):
        definition.pop("title")
        if "properties" not in definition:  # an enumeration
            continue
        definition["properties"] = {name: _plain(value) for name, value in definition["properties"].items()}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "coatcheck.toml"}


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """A property without what says nothing about a TOML file: titles made of names, and null."""
    value = {name: part for name, part in value.items() if name != "title" and part is not None}
    kinds = [kind for kind in value.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) == 1:
        del value["anyOf"]
        value |= kinds[0]
    elif kinds:
        value["anyOf"] = kinds
    return value


def _shorten(definition: dict[str, Any], *, without: Collection[str], needs: tuple[str, ...]) -> None:
    for name in without:
        definition["properties"].pop(name)
    definition.pop("required", None)
    if needs:
        definition["required"] = list(needs)
