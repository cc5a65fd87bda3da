"""From a spec, a split and a seed to an instance: a pure function.

Every axis and every channel draws from a generator of its own, derived from (spec id, split, name, seed or row key).
So a new axis, a narrowed one or another setting leaves all other values as they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from envfarm.distributions import Distribution, Rows
from envfarm.errors import UserError, did_you_mean
from envfarm.rows import RowTable, cached_rows
from envfarm.seeding import generator, stable_hash
from envfarm.settings import axes_under, channels_under, checked
from envfarm.spec import Axis, EnvSpec, Instance, RowsFile, Split

__all__ = ["keys_of", "sample"]


def sample(spec: EnvSpec, split: str, seed_or_row_key: int | str, setting: Mapping[str, Any] | None = None) -> Instance:
    """The instance of a seed (an `int`) or of a row (a `str`) under a setting.

    Raises: UserError for a split, seed, row or setting that the spec does not have.
    """
    part, made = spec.split(split), checked(spec, setting)
    axes = axes_under(spec, split, made)
    key, row = _row_for(spec, split, part, seed_or_row_key, axes)
    seed = None if isinstance(seed_or_row_key, str) else int(seed_or_row_key)
    params = _draw_axes(spec, split, seed_or_row_key, axes, row or {})
    perturbation = {
        name: _draw(spec, channel, "channel", split, name, seed_or_row_key)
        for name, channel in channels_under(spec, made).items()
    }
    return Instance(
        env=spec.id, spec_hash=spec.hash, split=split, seed=seed, row_key=key,
        row_hash=None if row is None else stable_hash(row), setting=made, params=params,
        row=None if row is None else {c: v for c, v in row.items() if c not in spec.axes}, perturbation=perturbation,
    )  # fmt: skip


def keys_of(spec: EnvSpec, split: str) -> tuple[str, ...]:
    """The rows of a split that is made of rows, in file order, `where` applied. Empty for splits by seeds."""
    part = spec.split(split)
    if part.by_seed:
        return ()
    return _matching(spec, split)


@lru_cache(maxsize=256)
def _matching(spec: EnvSpec, split: str) -> tuple[str, ...]:
    part = spec.splits[split]
    table = _table(spec, part.rows or _instances(spec))
    keys = table.keys if part.row_keys is None else part.row_keys
    return tuple(k for k in keys if _row_meets(spec, table.rows[k], part.where))


def _instances(spec: EnvSpec) -> RowsFile:
    assert spec.instances is not None, "a split without seeds and file draws from `instances`; spec_load checks it"
    return spec.instances


def _table(spec: EnvSpec, rows: RowsFile) -> RowTable:
    return cached_rows(str(spec.folder), rows.file, rows.key, rows.sha256)


def _row_meets(spec: EnvSpec, row: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    return all(spec.axes[n].distribution.meets(row[n], c) for n, c in where.items() if n in row)


def _row_for(
    spec: EnvSpec, split: str, part: Split, chosen: int | str, axes: Mapping[str, Axis]
) -> tuple[str | None, dict[str, Any] | None]:
    """Key and row, or two Nones where no data is involved."""
    if isinstance(chosen, bool) or not isinstance(chosen, (int, str)):
        raise UserError(f"{spec.id}: expected a seed (a whole number) or a row key (text), found {chosen!r}")
    if part.by_seed:
        if isinstance(chosen, str) or not part.start <= chosen < part.start + part.count:
            last = part.start + part.count - 1
            raise UserError(f"{spec.id}: split {split!r} has the seeds {part.start} to {last}; {chosen!r} is not one of them")
        if spec.instances is None:
            return None, None
        keys = _rows_under(spec, axes)
        if not keys:
            raise UserError(f"{spec.id}: no row of {spec.instances.file} is left in split {split!r} under this setting")
        key = keys[(chosen - part.start) % len(keys)]
        return key, _table(spec, spec.instances).rows[key]
    keys = keys_of(spec, split)
    if not isinstance(chosen, str) or chosen not in keys:
        hint = did_you_mean(str(chosen), keys)
        raise UserError(f"{spec.id}: split {split!r} has no row {chosen!r}{hint}; it has {len(keys)} rows")
    return chosen, _table(spec, part.rows or _instances(spec)).rows[chosen]


def _rows_under(spec: EnvSpec, axes: Mapping[str, Axis]) -> tuple[str, ...]:
    """Rows of `instances` whose axis columns lie in the narrowed distributions."""
    table = _table(spec, _instances(spec))
    narrowed = {n: a.distribution for n, a in axes.items() if a.distribution != spec.axes[n].distribution}
    return tuple(k for k, row in table.rows.items() if all(d.allows(row[n]) for n, d in narrowed.items() if n in row))


def _draw_axes(spec: EnvSpec, split: str, chosen: int | str, axes: Mapping[str, Axis], row: Mapping[str, Any]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name, axis in axes.items():
        if name in row:
            if row[name] is not None:
                params[name] = row[name]
        elif all(_meets(spec, params, other, wanted) for other, wanted in axis.condition.items()):
            params[name] = _draw(spec, axis.distribution, "axis", split, name, chosen)
    return params


def _meets(spec: EnvSpec, params: Mapping[str, Any], other: str, wanted: Any) -> bool:
    return other in params and spec.axes[other].distribution.meets(params[other], wanted)


def _draw(spec: EnvSpec, distribution: Distribution, kind: str, split: str, name: str, chosen: int | str) -> Any:
    value = distribution.draw(float(generator(kind, spec.id, split, name, chosen).random()))
    if isinstance(distribution, Rows):
        return cached_rows(str(spec.folder), distribution.file, distribution.key, distribution.sha256).rows[value]
    return value
