"""What the readers of an environment's file share: the source, the folder, and errors at their place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envfarm.distributions import Impossible
from envfarm.errors import SpecError, did_you_mean
from envfarm.rows import RowTable, load_rows
from envfarm.settings import narrow_axes
from envfarm.spec import Axis, RowsFile
from envfarm.yaml_source import Source, found


class Reader:
    """Base of what reads a part of the file."""

    def __init__(self, source: Source, folder: Path):
        self.source, self.folder = source, folder

    def raw(self, key: str, default: Any) -> Any:
        """The value as it stands in the file: pydantic's copy has text where a key was a number."""
        return self.source.data.get(key, default)

    def fail(self, message: str, *keys: Any) -> SpecError:
        """An error at a value."""
        return SpecError(f"{'.'.join(map(str, keys))}: {message}" if keys else message, self.source.at(*keys))

    def fail_key(self, message: str, *keys: Any) -> SpecError:
        """An error at a key."""
        above = ".".join(map(str, keys[:-1]))
        return SpecError(f"{above}: {message}" if above else message, self.source.key_at(*keys))

    def existing(self, name: str, *path: Any) -> None:
        """Raises: SpecError where the folder has no such file."""
        if not (self.folder / name).is_file():
            suffix = Path(name).suffix
            files = [p.relative_to(self.folder).as_posix() for p in self.folder.rglob(f"*{suffix}") if p.is_file()]
            raise self.fail(f"no such file: {self.folder / name}{did_you_mean(Path(name).as_posix(), files)}", *path)

    def table(self, pattern: str, key: str | None, *path: Any) -> RowTable:
        """`load_rows`, with the place in the YAML where the error has none of its own."""
        try:
            return load_rows(self.folder, pattern, key)
        except SpecError as problem:
            if problem.location is not None:
                raise
            raise self.fail(problem.message, *path) from None

    def rows_file(self, pattern: str, key: str, *path: Any) -> RowsFile:
        table = self.table(pattern, key, *path)
        return RowsFile(file=pattern, key=key, sha256=table.sha256, count=len(table.rows))

    def narrowing(self, raw: Any, axes: Mapping[str, Axis], *path: Any) -> dict[str, Any]:
        """A mapping of axes to what narrows them: each checked against its axis, then all of them together."""
        if not isinstance(raw, dict):
            raise self.fail(f"expected a mapping of axes to values, found {found(raw)}", *path)
        for name, condition in raw.items():
            if name not in axes:
                listed = ", ".join(axes) or "none"
                raise self.fail_key(f"unknown axis {name!r}{did_you_mean(str(name), axes)}; axes: {listed}", *path, name)
            try:
                axes[name].distribution.narrow(condition)
            except Impossible as problem:
                raise self.fail(f"leaves no instance: {problem}", *path, name) from None
        try:
            narrow_axes(axes, raw)
        except Impossible as problem:
            raise self.fail(f"leaves no instance: {problem}", *path) from None
        return dict(raw)
