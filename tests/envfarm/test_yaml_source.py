"""YAML 1.2 core scalars with line and column, and strict models on top of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from envfarm.errors import Location, RunFileError, SpecError
from envfarm.yaml_reader import MAX_NODES, parse_yaml
from envfarm.yaml_source import FileModel, parse_model, read_yaml


def value_of(text: str) -> Any:
    return parse_yaml(f"x: {text}", "f.yaml").data["x"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no", "no"), ("on", "on"), ("off", "off"), ("yes", "yes"), ("y", "y"), ("true", True), ("False", False),
        ("1e-4", 1e-4), ("1E3", 1000.0), (".5", 0.5), ("5.", 5.0), ("012", 12), ("0o14", 12), ("0x1F", 31), ("+3", 3),
        ("1_000", "1_000"), ("12:30", "12:30"), ("2026-01-01", "2026-01-01"), ("~", None), ("null", None), ("", None),
        ("'12'", "12"), ('"true"', "true"), ("!!str 12", "12"), ("!!int '12'", 12), (".inf", math.inf), ("-.INF", -math.inf),
        ("[1, a, no]", [1, "a", "no"]), ("{a: 1.0}", {"a": 1.0}), ("=", "="), ("0b11", "0b11"),
    ],
)  # fmt: skip
def test_core_scalars(text: str, expected: Any) -> None:
    found = value_of(text)
    assert found == expected and type(found) is type(expected)


def test_nan_is_a_number() -> None:
    assert math.isnan(value_of(".nan"))


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, 1, "duplicate key 'a': it already stands in line 1"),
        ("a: {b: 1, b: 2}\n", 1, 11, "duplicate key 'b'"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", 3, 3, "merge keys"),
        ("a: !python/object:os.system {}\n", 1, 4, "not part of YAML's core schema"),
        ("a: !!timestamp 2026-01-01\n", 1, 4, "not a valid timestamp"),
        ("a: !!int x\n", 1, 4, "not a valid int"),
        ("a: &x [*x]\n", 1, 4, "an alias inside of what it stands for"),
        ("a: [1, 2\nb: 3\n", 2, 2, "not valid YAML"),
        ("a: *nowhere\n", 1, 4, "undefined alias"),
        ("a: 1\n---\nb: 2\n", 2, 1, "expected a single document"),
        ("? [1, 2]\n: 3\n", 1, 3, "a key must be a plain value"),
        ("a: 1\nb: \x00\n", 2, 4, "control characters are not allowed"),
    ],
)
def test_what_is_refused_is_refused_at_its_place(text: str, line: int, column: int, says: str) -> None:
    with pytest.raises(SpecError, match=says.replace("(", r"\(")) as caught:
        parse_yaml(text, "f.yaml")
    place = caught.value.location
    assert place is not None and (place.file, place.line) == ("f.yaml", line)
    assert says not in ("duplicate key 'b'", "merge keys") or place.column == column


def test_aliases_that_unfold_without_end_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(SpecError, match=f"more than {MAX_NODES} values"):
        parse_yaml("\n".join(lines), "f.yaml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(RunFileError, match="is a folder"):
        read_yaml(tmp_path, RunFileError)
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(SpecError, match="not UTF-8") as caught:
        read_yaml(tmp_path / "latin.yaml")
    assert caught.value.location == Location(str(tmp_path / "latin.yaml"), 2, 7)


def test_places_of_values_keys_and_what_is_not_there() -> None:
    source = parse_yaml("a:\n  - {b: 1}\n  - c: two\n", "f.yaml")
    assert source.at("a", 0, "b") == Location("f.yaml", 2, 9)
    assert source.key_at("a", 0, "b") == Location("f.yaml", 2, 6)
    assert source.at("a", 1, "missing") == source.at("a", 1) == Location("f.yaml", 3, 5)


TEXT = st.text(st.characters(exclude_categories=["Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
@settings(max_examples=100, deadline=None)
def test_what_is_written_quoted_comes_back(value: Any) -> None:
    """JSON is YAML 1.2: whatever JSON says, we read the same."""
    assert parse_yaml(json.dumps(value, ensure_ascii=False), "f.yaml").data == value


class _Engine(FileModel):
    kind: Literal["torch", "openai"]
    slots: int = 1


class _Run(FileModel):
    name: str
    seed: int = 0
    rate: float = 0.5
    engines: dict[str, _Engine] = {}
    pairs: list[tuple[int, int]] = []
    either: _Engine | str = ""


def test_a_model_is_read() -> None:
    text = "name: x\nrate: 1\nengines: {1: {kind: torch}}\npairs: [[1, 2]]\neither: {kind: openai}\n"
    made = parse_model(parse_yaml(text, "run.yaml"), _Run)
    assert made == _Run(name="x", rate=1.0, engines={"1": _Engine(kind="torch")}, pairs=[(1, 2)], either=_Engine(kind="openai"))


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("name: x\nseeds: 3\n", "2:1", "unknown key 'seeds' (did you mean 'seed'"),
        ("seed: 1\n", "1:1", "the key 'name' is missing"),
        ("name: 3\n", "1:7", "name: expected a string, found 3"),
        ("name: x\nseed: '1'\n", "2:7", "seed: expected a whole number, found the text '1'"),
        ("name: x\nseed: true\n", "2:7", "found true"),
        ("name: x\nrate: .inf\n", "2:7", "rate: expected a number"),
        ("name: x\nengines:\n  a: {kind: torhc}\n", "3:13", "(did you mean 'torch'?)"),
        ("name: x\nengines:\n  a: {kind: torch, slot: 1}\n", "3:20", "unknown key 'slot' (did you mean 'slots'?)"),
        ("name: x\nengines: [a]\n", "2:10", "engines: expected a mapping, found a list of 1"),
        ("name: x\npairs: [[1, 2], [1, b]]\n", "2:21", "found the text 'b'"),
        ("name: x\neither: {kind: torch, slto: 2}\n", "2:23", "unknown key 'slto' (did you mean 'slots'?)"),
        ("- 1\n", "1:1", "expected keys and values, found a list of 1"),
        ("", "1:1", "expected keys and values, found nothing"),
        ("name: 1\nseed: x\n", "1:7", "name"),
    ],
)
def test_the_first_problem_of_a_model_is_explained(text: str, place: str, says: str) -> None:
    with pytest.raises(RunFileError) as caught:
        parse_model(parse_yaml(text, "run.yaml", RunFileError), _Run, RunFileError)
    assert str(caught.value).startswith(f"run.yaml:{place}: ")
    assert says in str(caught.value)


def test_both_parsers_agree() -> None:
    """Where PyYAML has no libyaml, its own parser does the same."""
    from envfarm.yaml_reader import _PythonParser

    text = "a: [1, no, 1e-4]\nb: {c: 'x'}\n"
    fast, slow = parse_yaml(text, "f.yaml"), _PythonParser(text).get_single_node()
    assert isinstance(slow, yaml.MappingNode)
    tags = [node.tag.rpartition(":")[2] for node in slow.value[0][1].value]
    assert tags == ["int", "str", "float"] and fast.data == {"a": [1, "no", 1e-4], "b": {"c": "x"}}
