"""What an OpenEnv server calls actions, as tools of ours: its MCP tools, or one tool `step` with its action's fields.

Servers describe fields as pydantic writes JSON Schema (`$ref`, `anyOf` with null, `const`); ours is plainer: each parameter
has one type. A field of no one type that may be left out is left out; one that is required cannot be played.
"""

from __future__ import annotations

from typing import Any

import msgspec

from envfarm.errors import CapabilityError
from envfarm.tools import ToolSpec

STEP = "step"


class Arguments(msgspec.Struct, frozen=True):
    """JSON Schema of an object, as far as it is looked at."""

    properties: dict[str, dict[str, Any]] = {}
    required: list[str] = []
    definitions: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict, name="$defs")


_TYPES = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list, "object": dict}


def step_tool(schema: dict[str, Any]) -> ToolSpec:
    """An action without tools, as one. Raises: CapabilityError."""
    made = plain(schema, STEP)
    made["properties"].pop("metadata", None)
    return ToolSpec(STEP, schema.get("description", "").strip(), made)


def mcp_tool(found: dict[str, Any]) -> ToolSpec:
    """Raises: CapabilityError."""
    name = found.get("name")
    if not isinstance(name, str):
        raise CapabilityError(f"the OpenEnv server lists a tool without a name: {found!r:.200}")
    schema = found.get("inputSchema") or found.get("input_schema") or {}
    return ToolSpec(name, (found.get("description") or "").strip(), plain(schema, name))


def plain(schema: dict[str, Any], tool: str) -> dict[str, Any]:
    """The schema of a tool's arguments. Raises: CapabilityError for a required field that has no one type."""
    try:
        given = msgspec.convert(schema, Arguments)
    except msgspec.ValidationError as error:
        raise CapabilityError(f"the OpenEnv server's tool {tool!r} has no JSON Schema of arguments: {error}") from None
    properties = {}
    for name, field in given.properties.items():
        made = _field(field, given.definitions)
        if made is not None:
            properties[name] = made
        elif name in given.required:
            raise CapabilityError(
                f"the OpenEnv server's tool {tool!r} needs {name!r}, whose type is not one of ours: {field!r:.200}"
            )
    return {"type": "object", "properties": properties, "required": given.required, "additionalProperties": False}


def _field(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any] | None:
    """One parameter with one `type`, or None where it has no such form."""
    about = {key: field[key] for key in ("description", "default") if field.get(key) is not None}
    if "$ref" in field:
        target = definitions.get(field["$ref"].rpartition("/")[2])
        return None if target is None else _merged(_field(target, definitions), about)
    members = [m for m in field.get("anyOf", field.get("oneOf", [])) if m.get("type") != "null"]
    if len(members) == 1:
        return _merged(_field(members[0], definitions), about)
    values = [field["const"]] if "const" in field else field.get("enum")
    kind = field.get("type") or (_type_of(values) if values else None)
    if kind not in _TYPES:
        return None
    made: dict[str, Any] = {"type": kind, **about}
    if values:
        made["enum"] = values
    if kind == "array":
        made["items"] = _field(field.get("items", {}), definitions) or {"type": "string"}
    return made


def _merged(made: dict[str, Any] | None, about: dict[str, Any]) -> dict[str, Any] | None:
    return None if made is None else {**made, **about}


def _type_of(values: list[Any]) -> str | None:
    kinds = {name for value in values for name, python in _TYPES.items() if type(value) is python}
    return kinds.pop() if len(kinds) == 1 else None
