"""YAML with line and column: YAML 1.2 core scalars, no surprises, no Python objects.

`no`, `on`, `off` and dates stay strings, `1e-4` is a float, `012` is twelve. Duplicate keys, merge keys, tags beyond the
core schema, several documents and aliases that unfold without end are refused, each at its place.
PyYAML parses; the scalars are resolved here, because its own rules are those of YAML 1.1.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.resolver import BaseResolver

from envfarm.errors import Location, SpecError, UserError

MAX_NODES = 200_000
"""Values in one file after aliases are unfolded; more is taken for an attack or a mistake (data belongs into `rows`)."""

_CORE = "tag:yaml.org,2002:"
_SCALARS: dict[str, str] = {
    "null": r"null|Null|NULL|~|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


class _Core(BaseResolver):
    """Tags of plain scalars."""


for _name, _pattern in _SCALARS.items():
    _Core.add_implicit_resolver(_CORE + _name, re.compile(rf"(?:{_pattern})\Z"), None)


class _PythonParser(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser, yaml.composer.Composer, _Core):
    """PyYAML's own parser with our scalars, where there is no libyaml."""

    def __init__(self, text: str):
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        yaml.composer.Composer.__init__(self)
        _Core.__init__(self)


_Parser: Any = _PythonParser

if yaml.__with_libyaml__:
    from yaml._yaml import CParser

    class _FastParser(CParser, _Core):
        """libyaml's parser with our scalars: ten times as fast."""

        def __init__(self, text: str):
            CParser.__init__(self, text)
            _Core.__init__(self)

    _Parser = _FastParser


@dataclass
class Source:
    """One YAML file: its data, and where each value and key stands."""

    path: str
    data: Any
    _values: dict[tuple[Any, ...], tuple[int, int]] = field(default_factory=dict, repr=False)
    _keys: dict[tuple[Any, ...], tuple[int, int]] = field(default_factory=dict, repr=False)

    def at(self, *keys: Any) -> Location:
        """Where the value at that path stands; where there is no such value, its nearest ancestor."""
        return self._find(self._values, keys)

    def key_at(self, *keys: Any) -> Location:
        """Where the key at the end of that path stands."""
        return self._find(self._keys, keys)

    def _find(self, marks: dict[tuple[Any, ...], tuple[int, int]], keys: tuple[Any, ...]) -> Location:
        for end in range(len(keys), -1, -1):
            mark = marks.get(keys[:end]) or self._values.get(keys[:end])
            if mark is not None:
                return Location(self.path, *mark)
        return Location(self.path, 1, 1)


def read_yaml(path: str | Path, error: type[UserError] = SpecError) -> Source:
    """Read one file. Raises `error` with the place of whatever is no YAML 1.2 of the kind described above."""
    name = str(path)
    try:
        raw = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"no such file: {name}") from None
    except IsADirectoryError:
        raise error(f"{name} is a folder; a YAML file was expected") from None
    except PermissionError:
        raise error(f"{name} cannot be read: permission denied") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        before = raw[: problem.start]
        column = problem.start - (before.rfind(b"\n") + 1) + 1
        raise error("not UTF-8 text", Location(name, before.count(b"\n") + 1, column)) from None
    return parse_yaml(text, name, error)


def parse_yaml(text: str, name: str, error: type[UserError] = SpecError) -> Source:
    """As `read_yaml`, from text; `name` is what locations show."""
    try:
        parser = _Parser(text)
        node = parser.get_single_node()
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        place = Location(name, mark.line + 1, mark.column + 1) if mark else Location(name, 1, 1)
        what = "; ".join(part for part in (problem.problem, problem.context) if part)
        raise error(f"not valid YAML: {what}", place) from None
    except yaml.reader.ReaderError as problem:
        before = text[: problem.position]
        place = Location(name, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
        raise error(f"not valid YAML: {problem.reason}", place) from None
    source = Source(name, None)
    if node is not None:
        source.data = _Builder(source, error).build(node, ())
    return source


class _Builder:
    """Nodes to plain values, filling in `source`'s marks on the way."""

    def __init__(self, source: Source, error: type[UserError]):
        self.source, self.error = source, error
        self.open: set[int] = set()
        self.count = 0

    def fail(self, node: yaml.Node, message: str) -> UserError:
        return self.error(message, Location(self.source.path, *_mark(node)))

    def build(self, node: yaml.Node, path: tuple[Any, ...]) -> Any:
        self.count += 1
        if self.count > MAX_NODES:
            raise self.fail(node, f"more than {MAX_NODES} values after aliases are unfolded")
        if id(node) in self.open:
            raise self.fail(node, "an alias inside of what it stands for")
        self.source._values[path] = _mark(node)
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _CORE + "map":
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode) and node.tag == _CORE + "seq":
                return [self.build(child, (*path, i)) for i, child in enumerate(node.value)]
            if isinstance(node, yaml.ScalarNode) and node.tag.startswith(_CORE):
                return self._scalar(node)
        finally:
            self.open.discard(id(node))
        raise self.fail(node, f"the tag {node.tag!r} is not part of YAML's core schema; write a plain value")

    def _mapping(self, node: yaml.MappingNode, path: tuple[Any, ...]) -> dict[Any, Any]:
        built: dict[Any, Any] = {}
        first: dict[Any, yaml.Node] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.fail(key_node, "a key must be a plain value, not a list or a mapping")
            key = self._scalar(key_node)
            if key == "<<" and not key_node.style:
                raise self.fail(key_node, "merge keys (<<) are not part of YAML 1.2; write the keys out")
            if key in built:
                line = _mark(first[key])[0]
                raise self.fail(key_node, f"duplicate key {key!r}: it already stands in line {line}")
            first[key] = key_node
            self.source._keys[(*path, key)] = _mark(key_node)
            built[key] = self.build(value_node, (*path, key))
        return built

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        kind, text = node.tag.removeprefix(_CORE), node.value
        if kind == "str":
            return text
        if kind not in _SCALARS or not re.fullmatch(_SCALARS[kind], text):
            raise self.fail(node, f"{text!r} is not a valid {kind}")
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if text.lower().lstrip("+-") in (".inf", ".nan"):
            return math.nan if text.lower() == ".nan" else (-math.inf if text[0] == "-" else math.inf)
        return float(text)


def _mark(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1
