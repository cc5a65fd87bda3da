"""Data that environments draw from: JSONL, Parquet, a glob of files, or folders (`tasks/*/`), read once and checked line by
line.

A row is a JSON object. With a key column every row must have it, and no two may share a value. The file's checksum
stands in the spec: a file that changed after the spec was loaded is refused, because instances would change silently.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envfarm.errors import Location, SpecError, did_you_mean
from envfarm.spec_hash import hash_folder


@dataclass(frozen=True)
class RowTable:
    """Rows by key, in file order. Without a key column rows are numbered from "0"."""

    rows: dict[str, dict[str, Any]]
    sha256: str

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.rows)


def files_of(folder: Path, pattern: str) -> list[Path]:
    """The files that a `rows:` value names, or the folders where it ends with a slash, sorted. Empty where there is none."""
    if pattern.endswith("/"):
        return sorted(p for p in folder.glob(pattern) if p.is_dir() and not p.name.startswith((".", "__")))
    if any(c in pattern for c in "*?["):
        return sorted(p for p in folder.glob(pattern) if p.is_file())
    path = folder / pattern
    return [path] if path.is_file() else []


def checksum(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        content = bytes.fromhex(hash_folder(path)) if path.is_dir() else hashlib.sha256(path.read_bytes()).digest()
        digest.update(f"{path.name}\0".encode() + content)
    return digest.hexdigest()


def load_rows(folder: Path, pattern: str, key: str | None, *, expect: str | None = None) -> RowTable:
    """Read and check. `expect` is the checksum that the spec knows.

    Raises: SpecError for no such file, a malformed, duplicated or keyless row (which line), or another checksum.
    """
    paths = files_of(folder, pattern)
    if not paths:
        raise SpecError(f"no such rows: {folder / pattern}")
    sha256 = checksum(paths)
    if expect is not None and sha256 != expect:
        raise SpecError(f"{folder / pattern} changed after the environment was loaded; load it again")
    return _load(tuple(paths), folder, pattern, key, sha256)


@functools.lru_cache(maxsize=32)
def cached_rows(folder: str, pattern: str, key: str | None, sha256: str) -> RowTable:
    """What sampling uses: read once per process, checked against the spec's checksum."""
    return load_rows(Path(folder), pattern, key, expect=sha256)


def _load(paths: tuple[Path, ...], folder: Path, pattern: str, key: str | None, sha256: str) -> RowTable:
    rows: dict[str, dict[str, Any]] = {}
    places: dict[str, Location] = {}
    single = paths[0].suffix if len(paths) == 1 and paths[0] == folder / pattern else ""
    if pattern.endswith("/"):
        found = [({"name": path.name}, Location(str(path), 1, 1)) for path in paths]
    elif single == ".jsonl":
        found = _jsonl(paths[0])
    elif single == ".parquet":
        found = _parquet(paths[0])
    elif single:
        raise SpecError(f"{paths[0]}: rows are read from .jsonl, .parquet or a glob of files, not from {single!r}")
    else:
        found = [(_whole_file(path, folder), Location(str(path), 1, 1)) for path in paths]
    for row, place in found:
        name = str(len(rows)) if key is None else _key_of(row, key, place)
        if name in rows:
            raise SpecError(f"duplicate key {name!r}: already in {places[name]}", place)
        rows[name], places[name] = row, place
    if not rows:
        raise SpecError(f"{folder / pattern} has no rows")
    return RowTable(rows, sha256)


def _key_of(row: dict[str, Any], key: str, place: Location) -> str:
    if row.get(key) is None:
        raise SpecError(f"the row has no {key!r}{did_you_mean(key, row)}; its columns: {', '.join(row)}", place)
    if isinstance(row[key], (dict, list)):
        raise SpecError(f"the key {key!r} must be a plain value", place)
    return str(row[key])


def _jsonl(path: Path) -> list[tuple[dict[str, Any], Location]]:
    found = []
    for number, raw in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not raw.strip():
            continue
        found.append((_json_object(raw, path, number), Location(str(path), number, 1)))
    return found


def _json_object(raw: bytes, path: Path, number: int) -> dict[str, Any]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(items)
        if len(built) != len(items):
            raise SpecError("the row names a column twice", Location(str(path), number, 1))
        return built

    def constant(name: str) -> Any:
        raise SpecError(f"{name} is not a JSON number", Location(str(path), number, 1))

    try:
        row = json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except UnicodeDecodeError as problem:
        raise SpecError("the row is not UTF-8 text", Location(str(path), number, problem.start + 1)) from None
    except json.JSONDecodeError as problem:
        place = Location(str(path), number, problem.colno)
        raise SpecError(f"the row is not valid JSON: {problem.msg}", place) from None
    if not isinstance(row, dict):
        raise SpecError(f"a row must be a JSON object, not {type(row).__name__}", Location(str(path), number, 1))
    return row


def _parquet(path: Path) -> list[tuple[dict[str, Any], Location]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as problem:
        raise SpecError(f"{path} is not a Parquet file: {problem}") from None
    found = []
    for number, row in enumerate(table.to_pylist(), start=1):
        place = Location(str(path), number, 1)
        for name, value in row.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError):
                raise SpecError(f"column {name!r} holds {value!r}, which is no JSON value", place) from None
        found.append((row, place))
    return found


def _whole_file(path: Path, folder: Path) -> dict[str, Any]:
    """One file of a glob: a JSON object as it is, anything else as its name and text."""
    if path.suffix == ".json":
        raw = path.read_bytes()
        return _json_object(b" ".join(raw.splitlines()), path, 1)
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise SpecError(f"{path} is not UTF-8 text") from None
    return {"name": path.relative_to(folder).as_posix(), "text": text}
