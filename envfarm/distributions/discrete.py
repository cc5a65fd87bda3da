"""Distributions with members: a list narrows to a subset, a single value pins."""

from __future__ import annotations

import math
from typing import Any

from envfarm.distributions.base import Distribution, Impossible, is_number, same


class Discrete(Distribution, frozen=True):
    """What has members: a list narrows to a subset, a single value pins."""

    def members(self) -> tuple[Any, ...]:
        raise NotImplementedError

    def keep(self, members: tuple[Any, ...]) -> Distribution:
        raise NotImplementedError

    def examples(self) -> tuple[Any, ...]:
        return self.members()

    def allows(self, value: Any) -> bool:
        return any(same(value, member) for member in self.members())

    def narrow(self, condition: Any) -> Distribution:
        wanted = condition if isinstance(condition, list) else [condition]
        for value in wanted:
            if not any(same(value, member) for member in self.members()):
                raise Impossible(f"{value!r} is not among {self.describe()}")
        kept = tuple(m for m in self.members() if any(same(m, w) for w in wanted))
        if not kept:
            raise Impossible(f"nothing is left of {self.describe()}")
        return self.keep(kept)

    def meets(self, value: Any, condition: Any) -> bool:
        return any(same(value, w) for w in (condition if isinstance(condition, list) else [condition]))


class Constant(Discrete, frozen=True, tag="constant"):
    value: Any

    def draw(self, u: float) -> Any:
        return self.value

    def members(self) -> tuple[Any, ...]:
        return (self.value,)

    def keep(self, members: tuple[Any, ...]) -> Distribution:
        return self

    def narrow(self, condition: Any) -> Distribution:
        """A constant meets the bounds or list that it lies in."""
        if not self.meets(self.value, condition):
            raise Impossible(f"the constant {self.value!r} does not meet {condition!r}")
        return self

    def meets(self, value: Any, condition: Any) -> bool:
        if is_number(value) and isinstance(condition, list) and len(condition) == 2 and all(map(is_number, condition)):
            return bool(condition[0] <= value <= condition[1])
        return same(value, condition) or super().meets(value, condition)

    def describe(self) -> str:
        return repr(self.value)


class Choice(Discrete, frozen=True, tag="choice"):
    values: tuple[Any, ...]

    def draw(self, u: float) -> Any:
        return self.values[min(int(u * len(self.values)), len(self.values) - 1)]

    def members(self) -> tuple[Any, ...]:
        return self.values

    def keep(self, members: tuple[Any, ...]) -> Distribution:
        return Choice(members)

    def describe(self) -> str:
        return ", ".join(map(repr, self.values))


class Weighted(Discrete, frozen=True, tag="weighted"):
    values: tuple[Any, ...]
    weights: tuple[float, ...]

    def draw(self, u: float) -> Any:
        target, passed = u * math.fsum(self.weights), 0.0
        for value, weight in zip(self.values, self.weights, strict=True):
            passed += weight
            if target < passed:
                return value
        return self.values[-1]

    def members(self) -> tuple[Any, ...]:
        return self.values

    def keep(self, members: tuple[Any, ...]) -> Distribution:
        kept = [(v, w) for v, w in zip(self.values, self.weights, strict=True) if any(same(v, m) for m in members)]
        return Weighted(tuple(v for v, _ in kept), tuple(w for _, w in kept))

    def describe(self) -> str:
        return ", ".join(map(repr, self.values))


class Bernoulli(Discrete, frozen=True, tag="bernoulli"):
    p: float

    def draw(self, u: float) -> bool:
        return u < self.p

    def members(self) -> tuple[Any, ...]:
        return (*([True] if self.p > 0 else []), *([False] if self.p < 1 else []))

    def keep(self, members: tuple[Any, ...]) -> Distribution:
        return self if len(members) == len(self.members()) else Bernoulli(1.0 if members[0] else 0.0)

    def describe(self) -> str:
        return f"bernoulli {self.p}: " + " or ".join(str(m).lower() for m in self.members())


class Rows(Discrete, frozen=True, tag="rows"):
    """A row of a data file. `keys` name the rows; the rows themselves are looked up when an instance is made."""

    file: str
    key: str | None
    keys: tuple[str, ...]
    sha256: str

    def draw(self, u: float) -> str:
        """The key of the row."""
        return self.keys[min(int(u * len(self.keys)), len(self.keys) - 1)]

    def members(self) -> tuple[Any, ...]:
        return self.keys

    def keep(self, members: tuple[Any, ...]) -> Distribution:
        return Rows(self.file, self.key, members, self.sha256)

    def narrow(self, condition: Any) -> Distribution:
        wanted = condition if isinstance(condition, list) else [condition]
        return super().narrow([str(w) for w in wanted])

    def meets(self, value: Any, condition: Any) -> bool:
        key = str(value.get(self.key)) if isinstance(value, dict) and self.key else None
        return key is not None and key in [str(w) for w in (condition if isinstance(condition, list) else [condition])]

    def describe(self) -> str:
        return f"the {len(self.keys)} rows of {self.file}"
