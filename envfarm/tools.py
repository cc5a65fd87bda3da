"""Tools: typed, documented methods of an environment, as JSON schema in MCP's shape, and the two ways to call them.

    @tool
    def move(self, direction: Literal["north", "south", "east", "west"]) -> str:
        '''Take one step.

        direction: where to go
        '''

An agent calls a tool natively (`ToolCall("move", {"direction": "north"})`) or, as small models do, in text:
the tool's name and its arguments in order, `move north`; the last string parameter takes the rest of the line.
An environment with a `text_tool` hands the whole text to that tool, so that a shell command is just typed.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

import msgspec


class ToolCall(msgspec.Struct, frozen=True):
    """A call in native form; `arguments` maps parameter names to JSON values."""

    name: str
    arguments: dict[str, Any] = {}


Action = str | ToolCall
"""What a policy does: text, or a native tool call."""


class ToolError(Exception):
    """Raised by a tool for a call that makes no sense here (no such article, a wall): becomes the observation."""


class Malformed(Exception):
    """The action is not one: unknown tool, wrong arguments. Becomes an observation and is counted, never an error of the run."""


class ToolSpec(msgspec.Struct, frozen=True):
    """One tool as shown to agents. `schema` is the JSON Schema of its arguments."""

    name: str
    description: str
    schema: dict[str, Any]

    def as_mcp(self) -> dict[str, Any]:
        return {"name": self.name, "description": self.description, "inputSchema": self.schema}

    @property
    def parameters(self) -> dict[str, Any]:
        return self.schema["properties"]

    @property
    def signature(self) -> str:
        """`move <direction: north|south>`, as it is shown in text."""
        parts = []
        for name, schema in self.parameters.items():
            kind = "|".join(map(str, schema["enum"])) if "enum" in schema else ""
            body = f"{name}: {kind}" if kind else name
            parts.append(f"<{body}>" if name in self.schema["required"] else f"[{body}]")
        return " ".join([self.name, *parts])


F = TypeVar("F", bound=Callable[..., Any])


def tool(method: F) -> F:
    """Mark a method as a tool. Its annotations and docstring become the schema when the class is first used."""
    method.__envfarm_tool__ = True  # type: ignore[attr-defined]
    return method


_PRIMITIVES: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}


def _schema_of(annotation: Any, where: str) -> dict[str, Any]:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return {"type": _PRIMITIVES[type(args[0])], "enum": list(args)}
    if origin in (Union, types.UnionType):
        inner = [a for a in args if a is not type(None)]
        if len(inner) == 1:
            return _schema_of(inner[0], where)
    if origin is list:
        return {"type": "array", "items": _schema_of(args[0], where)}
    if origin is dict:
        return {"type": "object"}
    if annotation in _PRIMITIVES:
        return {"type": _PRIMITIVES[annotation]}
    raise TypeError(f"{where}: {annotation!r} is no type of a tool argument; use str, int, float, bool, Literal, list[...], dict")


def _split_doc(doc: str, names: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The description, and `name: text` lines that document parameters."""
    lines, described = [], {}
    for line in inspect.cleandoc(doc).splitlines():
        found = re.match(r"(\w+):\s+(.*)", line.strip())
        if found and found[1] in names:
            described[found[1]] = found[2]
        else:
            lines.append(line)
    return " ".join(" ".join(lines).split()), described


def describe(method: Callable[..., Any]) -> ToolSpec:
    """The schema of one tool method. Raises: TypeError naming the parameter that lacks a type, or the missing docstring."""
    where = f"tool {method.__qualname__}"
    if not method.__doc__:
        raise TypeError(f"{where} has no docstring; agents read it as the tool's description")
    hints = typing.get_type_hints(method)
    parameters = [p for p in inspect.signature(method).parameters.values() if p.name != "self"]
    description, described = _split_doc(method.__doc__, [p.name for p in parameters])
    properties: dict[str, Any] = {}
    for p in parameters:
        if p.name not in hints:
            raise TypeError(f"{where}: parameter {p.name!r} has no type")
        properties[p.name] = _schema_of(hints[p.name], f"{where}, parameter {p.name!r}")
        if p.name in described:
            properties[p.name]["description"] = described[p.name]
        if p.default is not inspect.Parameter.empty and p.default is not None:
            properties[p.name]["default"] = p.default
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return ToolSpec(method.__name__, description, schema)


def tools_of(cls: type) -> dict[str, ToolSpec]:
    """All tools of a class, in the order of their last definition (base classes first)."""
    found: dict[str, ToolSpec] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if getattr(value, "__envfarm_tool__", False):
                found.pop(name, None)
                found[name] = describe(value)
    return found


def check_arguments(spec: ToolSpec, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments`, coerced where text stands for a number or truth. Raises: Malformed, saying what was expected."""
    unknown = [a for a in arguments if a not in spec.parameters]
    missing = [r for r in spec.schema["required"] if r not in arguments]
    if unknown or missing:
        what = f"has no parameter {unknown[0]!r}" if unknown else f"needs {missing[0]!r}"
        raise Malformed(f"{spec.name} {what}. Usage: {spec.signature}")
    return {name: _coerce(spec, name, value) for name, value in arguments.items()}


def _coerce(spec: ToolSpec, name: str, value: Any) -> Any:
    schema = spec.parameters[name]
    kind = schema["type"]
    try:
        if kind == "integer" and not isinstance(value, bool):
            if isinstance(value, float) and value != int(value):
                raise ValueError
            value = int(value)
        elif kind == "number" and not isinstance(value, bool):
            value = float(value)
        elif kind == "boolean" and isinstance(value, str):
            value = {"true": True, "false": False}[value.lower()]
        expected = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list, "object": dict}[kind]
        if not isinstance(value, expected) or (kind in ("integer", "number") and isinstance(value, bool)):
            raise ValueError
    except (ValueError, KeyError, TypeError, OverflowError):
        raise Malformed(f"{spec.name}: {name} must be {kind}, not {value!r}. Usage: {spec.signature}") from None
    if "enum" in schema and value not in schema["enum"]:
        raise Malformed(f"{spec.name}: {name} must be one of {', '.join(map(str, schema['enum']))}, not {value!r}")
    return value


def check_encodable(action: Action) -> None:
    """Raises: Malformed where the action holds half a surrogate pair, which no file, wire or store can carry as text."""
    try:
        for text in (action,) if isinstance(action, str) else _texts([action.name, action.arguments]):
            text.encode()
    except UnicodeEncodeError:
        raise Malformed("An action that is no text: it holds half a character.") from None


def _texts(value: Any) -> Iterator[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from (*_texts(key), *_texts(inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def parse_text(text: str, tools: Mapping[str, ToolSpec], text_tool: str | None = None) -> ToolCall:
    """The call that `text` spells. Raises: Malformed with the usage.

    With a `text_tool`, a text that is exactly the name of a tool without required parameters calls that tool, any
    other text is the only argument of `text_tool`.
    """
    text = text.strip()
    word, _, rest = text.partition(" ")
    if text_tool is not None:
        bare = tools.get(text)
        if bare is not None and not bare.schema["required"]:
            return ToolCall(text, {})
        if not text:
            raise Malformed("An empty action. Type a command.")
        target = tools[text_tool]
        return ToolCall(text_tool, {next(iter(target.parameters)): text})
    spec = tools.get(word)
    if spec is None:
        raise Malformed(f"Unknown action {word!r}. Actions: {'; '.join(t.signature for t in tools.values())}")
    names = list(spec.parameters)
    words: list[str] = rest.split(None, len(names) - 1) if names else rest.split()
    if len(words) > len(names):
        raise Malformed(f"{spec.name} takes no more than {len(names)} argument(s). Usage: {spec.signature}")
    return ToolCall(word, check_arguments(spec, dict(zip(names, words, strict=False))))


def as_call(action: Action, tools: Mapping[str, ToolSpec], text_tool: str | None = None) -> ToolCall:
    """The call of a visible tool, with right arguments, that `action` is, as text or natively. Raises: Malformed."""
    check_encodable(action)
    if isinstance(action, str):
        return parse_text(action, tools, text_tool)
    spec = tools.get(action.name)
    if spec is None:
        raise Malformed(f"Unknown action {action.name!r}. Actions: {'; '.join(t.signature for t in tools.values())}")
    return ToolCall(action.name, check_arguments(spec, action.arguments))


def to_text(call: ToolCall, tools: Mapping[str, ToolSpec], text_tool: str | None = None) -> str:
    """The text that `parse_text` reads back as `call`; arguments in the order that is shown."""
    if call.name == text_tool:
        return str(next(iter(call.arguments.values())))
    values = [call.arguments[n] for n in tools[call.name].parameters if n in call.arguments]
    return " ".join([call.name, *(str(v).lower() if isinstance(v, bool) else str(v) for v in values)])
