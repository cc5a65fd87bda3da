"""From YAML to a checked pydantic model, with one error that a person can act on: where, what was found, what was expected.

    class RunFile(FileModel):
        run: str
        seed: int = 0

    run = parse_model(read_yaml("run.yaml", RunFileError), RunFile, RunFileError)

Values are taken strictly (a string is no number, `true` is no integer); keys that the model does not know are refused
with the nearest known name. Of several problems the first in the file is reported.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, TypeVar, Union

import pydantic
from pydantic_core import ErrorDetails

from envfarm.errors import Location, SpecError, UserError, did_you_mean
from envfarm.yaml_reader import Source, parse_yaml, read_yaml

__all__ = ["FileModel", "Source", "found", "parse_model", "parse_yaml", "read_yaml"]


class FileModel(pydantic.BaseModel):
    """Base of what stands in YAML files: frozen, unknown keys refused, infinite numbers refused."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


M = TypeVar("M", bound=pydantic.BaseModel)


def parse_model(source: Source, model: type[M], error: type[UserError] = SpecError) -> M:
    """The file as an instance of `model`. Raises `error` for the first problem in the file."""
    if not isinstance(source.data, dict):
        raise error(f"expected keys and values, found {found(source.data)}", source.at())
    try:
        return model.model_validate_json(json.dumps(_string_keys(source.data)), strict=True)
    except pydantic.ValidationError as problem:
        located = [_explain(source, model, detail) for detail in _likely(source, problem.errors(include_url=False))]
    place, message = min(located, key=lambda item: (item[0].line, item[0].column))
    raise error(message, place)


def found(value: Any) -> str:
    """A value and its kind, as messages show it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping (" + _short(", ".join(map(str, value))) + ")"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"{value!r}" if isinstance(value, (int, float)) else f"the text {_short(value)!r}"


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _string_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {k if isinstance(k, str) else json.dumps(k): _string_keys(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_string_keys(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "NaN"}.get(str(value), "Infinity")  # JSON has no such number: reported as text, where a number is due
    return value


def _real_path(source: Source, loc: tuple[Any, ...]) -> tuple[Any, ...]:
    """`loc` without the parts that pydantic adds (names of union members), as far as the file has them."""
    path: list[Any] = []
    here = source.data
    for part in loc:
        if isinstance(here, dict):
            key = next((k for k in here if k == part or (not isinstance(k, str) and json.dumps(k) == part)), None)
            if key is None:
                continue
            here = here[key]
            path.append(key)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
            path.append(part)
    return tuple(path)


def _likely(source: Source, details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without the complaints of union members that were not meant: where one member takes issue with the inside of a
    value, another one's "not of my type" says nothing. Nor does a missing key say more than an unknown one beside it."""
    misspelt = {d["loc"][:-1] for d in details if d["type"] == "extra_forbidden"}
    details = [d for d in details if d["type"] != "missing" or d["loc"][:-1] not in misspelt]
    paths = [_real_path(source, d["loc"]) for d in details]
    inside = [p for p, d in zip(paths, details, strict=True) if not d["type"].endswith("_type")]
    kept = [
        d
        for p, d in zip(paths, details, strict=True)
        if not d["type"].endswith("_type") or not any(other[: len(p)] == p for other in inside)
    ]
    return kept or details


def _explain(source: Source, model: type[pydantic.BaseModel], detail: ErrorDetails) -> tuple[Location, str]:
    loc, kind, context = detail["loc"], detail["type"], detail.get("ctx", {})
    path = _real_path(source, loc)
    name = ".".join(map(str, path))
    if kind == "extra_forbidden":
        owner = next(iter(_models(model, loc[:-1])), model)
        known = [f.alias or n for n, f in owner.model_fields.items()]
        hint = did_you_mean(str(loc[-1]), known)
        return source.key_at(*path), f"unknown key {str(loc[-1])!r}{hint}; known here: {', '.join(known)}"
    if kind == "missing":
        inside = f" in {'.'.join(map(str, path))}" if path else ""
        return source.at(*path), f"the key {str(loc[-1])!r} is missing{inside}"
    if kind in ("value_error", "assertion_error"):
        return source.at(*path), f"{name}: {context['error']}" if name else str(context["error"])
    expected = str(context.get("expected") or detail["msg"].removeprefix("Input should be ").rstrip("."))
    expected = expected.replace("a valid ", "a ").replace("dictionary", "mapping").replace("an object", "a mapping")
    expected = expected.replace("a integer", "a whole number").replace("String should match pattern", "text that matches")
    value = detail["input"]
    hint = ""
    if kind == "literal_error" and isinstance(value, str):
        hint = did_you_mean(value, [w.strip(" '") for w in expected.replace(" or ", ",").split(",")])
    return source.at(*path), f"{name}: expected {expected}, found {found(value)}{hint}"


def _models(annotation: Any, loc: tuple[Any, ...]) -> Iterator[type[pydantic.BaseModel]]:
    """The models that `annotation` holds at `loc`, most likely first."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from _models(args[0], loc)
    elif origin in (Union, types.UnionType):
        for arg in args:
            if isinstance(arg, type) and loc and loc[0] == arg.__name__:
                yield from _models(arg, loc[1:])
        for arg in args:
            yield from _models(arg, loc)
    elif origin is not None and origin is not Literal and loc:
        for arg in args:
            yield from _models(arg, loc[1:])
    elif isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        if not loc:
            yield annotation
            return
        for name, model_field in annotation.model_fields.items():
            if loc[0] in (name, model_field.alias):
                yield from _models(model_field.annotation, loc[1:])
