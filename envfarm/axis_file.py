"""Distributions as they stand in YAML: `{uniform_int: [1, 4]}`, `{choice: [a, b], if: {n: [2, 4]}}`, `0.5`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from envfarm.distributions import (
    AnyDistribution,
    Bernoulli,
    Choice,
    Constant,
    Impossible,
    LogNormal,
    LogUniform,
    Normal,
    Rows,
    Uniform,
    UniformInt,
    Weighted,
    is_number,
    same,
)
from envfarm.errors import SpecError, did_you_mean
from envfarm.seeding import canonical_json
from envfarm.spec_file import DISTRIBUTIONS
from envfarm.spec_reader import Reader
from envfarm.yaml_source import Source, found

Path_ = tuple[Any, ...]


class AxisReader(Reader):
    """Reads distributions of one file."""

    def __init__(self, source: Source, folder: Path):
        super().__init__(source, folder)
        self._readers: dict[str, Callable[[Path_, Any], AnyDistribution]] = {
            "choice": self._choice,
            "weighted": self._weighted,
            "uniform": lambda path, value: Uniform(*map(float, self._range(path, value))),
            "uniform_int": self._uniform_int,
            "loguniform": self._loguniform,
            "normal": self._normal,
            "lognormal": self._lognormal,
            "bernoulli": self._bernoulli,
            "constant": self._constant,
        }

    def read(self, path: Path_, raw: Any, *, also: tuple[str, ...] = ()) -> AnyDistribution:
        """The distribution at `path`. `also` are keys that may stand beside it. Raises: SpecError at its place."""
        if isinstance(raw, list):
            raise self._wrong(path, f"expected a distribution, found {found(raw)}; write {{choice: [...]}} to draw one of them")
        if not isinstance(raw, dict):
            return self._constant(path, raw)
        names = [key for key in raw if key in DISTRIBUTIONS]
        for key in raw:
            if key not in DISTRIBUTIONS and key not in also and not (key == "key" and "rows" in raw):
                hint = did_you_mean(str(key), [*DISTRIBUTIONS, *also])
                raise self.fail_key(f"unknown distribution {key!r}{hint}; known: {', '.join(DISTRIBUTIONS)}", *path, key)
        if len(names) != 1:
            what = "two distributions, " + " and ".join(names) if names else "no distribution"
            raise self._wrong(path, f"expected one distribution, found {what}; known: {', '.join(DISTRIBUTIONS)}")
        if names[0] == "rows":
            return self._rows((*path, "rows"), raw)
        return self._readers[names[0]]((*path, names[0]), raw[names[0]])

    def _wrong(self, path: Path_, message: str) -> SpecError:
        return self.fail(message, *path)

    def _value(self, path: Path_, value: Any) -> Any:
        try:
            canonical_json(value)
        except ValueError:
            raise self._wrong(path, f"expected a finite value, found {value!r}") from None
        return value

    def _constant(self, path: Path_, value: Any) -> AnyDistribution:
        return Constant(self._value(path, value))

    def _choice(self, path: Path_, value: Any) -> AnyDistribution:
        if not isinstance(value, list) or not value:
            raise self._wrong(path, f"expected a list of at least one value, found {found(value) if value != [] else 'none'}")
        for i, item in enumerate(value):
            self._value((*path, i), item)
            if any(same(item, earlier) for earlier in value[:i]):
                raise self._wrong((*path, i), f"{item!r} stands there twice; use weighted to make a value likelier")
        return Choice(tuple(value))

    def _weighted(self, path: Path_, value: Any) -> AnyDistribution:
        if not isinstance(value, dict) or not value:
            raise self._wrong(path, f"expected a mapping of values to weights, found {found(value)}")
        for key, weight in value.items():
            if not is_number(weight) or weight <= 0:
                raise self._wrong((*path, key), f"expected a weight above 0, found {found(weight)}")
        return Weighted(tuple(value), tuple(float(w) for w in value.values()))

    def _range(self, path: Path_, value: Any) -> tuple[float, float]:
        if not isinstance(value, list) or len(value) != 2 or not all(map(is_number, value)):
            raise self._wrong(path, f"expected [low, high], two finite numbers, found {found(value)}")
        if value[0] > value[1]:
            raise self._wrong(path, f"the range is empty: {value[0]} is above {value[1]}")
        return value[0], value[1]

    def _uniform_int(self, path: Path_, value: Any) -> AnyDistribution:
        low, high = self._range(path, value)
        if not isinstance(low, int) or not isinstance(high, int):
            raise self._wrong(path, f"expected whole numbers, found [{low}, {high}]; use uniform for others")
        if high - low >= 1 << 53:
            raise self._wrong(path, "the range is wider than 2**53 values")
        return UniformInt(low, high)

    def _loguniform(self, path: Path_, value: Any) -> AnyDistribution:
        low, high = self._range(path, value)
        if low <= 0:
            raise self._wrong(path, f"loguniform needs bounds above 0, found {low}")
        return LogUniform(float(low), float(high))

    def _bell(self, path: Path_, value: Any) -> tuple[float, float, float, float]:
        keys = ("mu", "sigma", "min", "max")
        if not isinstance(value, dict):
            raise self._wrong(path, f"expected {{mu: ..., sigma: ...}}, found {found(value)}")
        for key in value:
            if key not in keys:
                raise self._wrong((*path, key), f"unknown key {key!r}{did_you_mean(str(key), keys)}; known: {', '.join(keys)}")
            if not is_number(value[key]):
                raise self._wrong((*path, key), f"expected a finite number, found {found(value[key])}")
        for key in keys[:2]:
            if key not in value:
                raise self._wrong(path, f"the key {key!r} is missing")
        if value["sigma"] <= 0:
            raise self._wrong((*path, "sigma"), f"expected a number above 0, found {value['sigma']}")
        return value["mu"], value["sigma"], value.get("min", -math.inf), value.get("max", math.inf)

    def _normal(self, path: Path_, value: Any) -> AnyDistribution:
        mu, sigma, low, high = self._bell(path, value)
        return self._bounded(path, Normal(float(mu), float(sigma)), low, high)

    def _lognormal(self, path: Path_, value: Any) -> AnyDistribution:
        mu, sigma, low, high = self._bell(path, value)
        if high <= 0:
            raise self._wrong((*path, "max"), f"a lognormal number is above 0, never at most {high}")
        return self._bounded(path, LogNormal(float(mu), float(sigma)), max(low, 0.0), high)

    def _bounded(self, path: Path_, made: Normal | LogNormal, low: float, high: float) -> AnyDistribution:
        if (low, high) == made.bounds():
            return made
        if low > high:
            raise self._wrong(path, f"the range is empty: min {low} is above max {high}")
        try:
            return made.within(low, high)  # type: ignore[return-value]
        except Impossible as problem:
            raise self._wrong(path, str(problem)) from None

    def _bernoulli(self, path: Path_, value: Any) -> AnyDistribution:
        if not is_number(value) or not 0 <= value <= 1:
            raise self._wrong(path, f"expected a probability from 0 to 1, found {found(value)}")
        return Bernoulli(float(value))

    def _rows(self, path: Path_, raw: dict[Any, Any]) -> AnyDistribution:
        pattern, key = raw["rows"], raw.get("key")
        if not isinstance(pattern, str):
            raise self._wrong(path, f"expected a file name or a glob, found {found(pattern)}")
        if key is not None and not isinstance(key, str):
            raise self._wrong((*path[:-1], "key"), f"expected a column's name, found {found(key)}")
        table = self.table(pattern, key, *path)
        return Rows(pattern, key, table.keys, table.sha256)
