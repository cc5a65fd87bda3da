"""`splits:` - by seeds, by rows of a file of its own, or by rows of `instances`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envfarm.errors import did_you_mean
from envfarm.spec import Axis, RowsFile, Split
from envfarm.spec_file import Seeds, SplitFile
from envfarm.spec_reader import Reader

DEFAULT_SPLITS = {
    "train": Split(start=0, count=1_000_000),
    "validation": Split(start=1_000_000, count=1_000),
    "heldout": Split(start=2_000_000, count=1_000),
}
"""What a file without `splits:` has."""


class SplitReader(Reader):
    def read(self, given: Mapping[str, SplitFile], axes: Mapping[str, Axis], instances: RowsFile | None) -> dict[str, Split]:
        """All splits, disjoint in their seeds where `where` is the same, and in their rows. Raises: SpecError."""
        if not given:
            return dict(DEFAULT_SPLITS)
        splits = {name: self._split(name, part, axes, instances) for name, part in given.items()}
        names = list(splits)
        for i, name in enumerate(names):
            for other in names[:i]:
                self._disjoint(name, splits[name], other, splits[other])
        return splits

    def _disjoint(self, name: str, one: Split, other_name: str, other: Split) -> None:
        if one.where != other.where:
            return
        if one.by_seed and other.by_seed and one.start < other.start + other.count and other.start < one.start + one.count:
            raise self.fail(f"shares seeds with the split {other_name!r} under the same `where`", "splits", name, "seeds")
        shared = set(one.row_keys or ()) & set(other.row_keys or ())
        if shared:
            raise self.fail(f"shares the row {min(shared)!r} with the split {other_name!r}", "splits", name, "rows")

    def _split(self, name: str, given: SplitFile, axes: Mapping[str, Axis], instances: RowsFile | None) -> Split:
        path = ("splits", name)
        where = self.narrowing(self.raw("splits", {})[name].get("where", {}), axes, *path, "where")
        if (given.seeds is None) == (given.rows is None):
            raise self.fail("expected either `seeds` or `rows`", *path)
        if given.key is not None and not isinstance(given.rows, str):
            raise self.fail("`key` belongs to a file of rows", *path, "key")
        if given.seeds is not None:
            if instances is not None:
                self._reachable(instances.file, instances.key, None, axes, where, *path)
            return Split(start=given.seeds.start, count=given.seeds.count, where=where)
        if isinstance(given.rows, str):
            if given.key is None:
                raise self.fail("the key 'key' is missing: which column names a row", *path)
            made = Split(rows=self.rows_file(given.rows, given.key, *path, "rows"), where=where)
            self._reachable(given.rows, given.key, None, axes, where, *path)
            return made
        if instances is None:
            raise self.fail("keys or positions of rows need `instances:`; here is none", *path, "rows")
        keys = self._keys(given.rows, instances, *path, "rows")
        self._reachable(instances.file, instances.key, keys, axes, where, *path)
        return Split(row_keys=keys, where=where)

    def _keys(self, rows: list[Any] | Seeds | None, instances: RowsFile, *path: Any) -> tuple[str, ...]:
        keys = self.table(instances.file, instances.key, *path).keys
        if isinstance(rows, Seeds):
            if rows.start + rows.count > len(keys):
                raise self.fail(f"{instances.file} has {len(keys)} rows; {rows.start} + {rows.count} is beyond them", *path)
            return keys[rows.start : rows.start + rows.count]
        wanted = tuple(map(str, rows or []))
        for i, key in enumerate(wanted):
            if key not in keys:
                raise self.fail(f"{instances.file} has no row {key!r}{did_you_mean(key, keys)}", *path, i)
            if key in wanted[:i]:
                raise self.fail(f"the row {key!r} stands there twice", *path, i)
        if not wanted:
            raise self.fail("expected at least one row", *path)
        return wanted

    def _reachable(
        self, file: str, key: str, keys: tuple[str, ...] | None, axes: Mapping[str, Axis], where: dict[str, Any], *path: Any
    ) -> None:
        """Raises: SpecError where `where` leaves no row."""
        table = self.table(file, key, *path, "rows")
        rows = [table.rows[k] for k in (table.keys if keys is None else keys)]
        meets = [all(axes[n].distribution.meets(row[n], c) for n, c in where.items() if n in row) for row in rows]
        if not any(meets):
            raise self.fail(f"leaves no row of {file}", *path, "where")
