"""Distributions: frozen records that turn one uniform number into a value, and that can be narrowed.

Every draw takes exactly one `u` in [0, 1) (inverse of the distribution function). Narrowing conditions the
distribution itself, so nothing is sampled and rejected, and the same `u` moves smoothly when bounds move.
What `where`, `ladder`, `set` and `if` may say: on a numeric distribution `[a, b]` are inclusive bounds, on `choice`
and `weighted` a list is a subset; a single value pins.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import msgspec


class Impossible(ValueError):
    """A narrowing that leaves nothing, or that this kind of distribution does not understand. The text says which."""


def same(a: Any, b: Any) -> bool:
    """Equality without Python's `True == 1`."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class Distribution(msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True):
    """Base of all. Values are JSON values."""

    def draw(self, u: float) -> Any:
        raise NotImplementedError

    def narrow(self, condition: Any) -> Distribution:
        """The distribution under the condition. Raises: Impossible."""
        raise NotImplementedError

    def meets(self, value: Any, condition: Any) -> bool:
        """Whether a drawn value satisfies what narrows this distribution."""
        raise NotImplementedError

    def allows(self, value: Any) -> bool:
        """Whether the value could be drawn."""
        raise NotImplementedError

    def describe(self) -> str:
        raise NotImplementedError


class Discrete(Distribution, frozen=True):
    """What has members: a list narrows to a subset, a single value pins."""

    def members(self) -> tuple[Any, ...]:
        raise NotImplementedError

    def keep(self, members: tuple[Any, ...]) -> Distribution:
        raise NotImplementedError

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


class Numeric(Distribution, frozen=True):
    """What has bounds. A pinned value becomes a constant of the distribution's own kind of number."""

    def bounds(self) -> tuple[float, float]:
        """Inclusive; infinite where there is none."""
        raise NotImplementedError

    def within(self, low: float, high: float) -> Distribution:
        """Conditioned on `[low, high]`, which lies within the bounds."""
        raise NotImplementedError

    def allows(self, value: Any) -> bool:
        low, high = self.bounds()
        return is_number(value) and low <= value <= high

    def cast(self, value: float) -> float:
        return float(value)

    def narrow(self, condition: Any) -> Distribution:
        low, high = self.bounds()
        if is_number(condition):
            if not low <= condition <= high or self.cast(condition) != condition:
                raise Impossible(f"{condition!r} is not within {self.describe()}")
            return Constant(self.cast(condition))
        a, b = _pair(condition)
        if max(a, low) > min(b, high):
            raise Impossible(f"[{a}, {b}] leaves nothing of {self.describe()}")
        return self.within(max(a, low), min(b, high))

    def meets(self, value: Any, condition: Any) -> bool:
        if is_number(condition):
            return bool(value == condition)
        low, high = _pair(condition)
        return is_number(value) and low <= value <= high


def _pair(condition: Any) -> tuple[float, float]:
    if isinstance(condition, list) and len(condition) == 2 and all(map(is_number, condition)):
        if condition[0] <= condition[1]:
            return condition[0], condition[1]
        raise Impossible(f"the bounds [{condition[0]}, {condition[1]}] are the wrong way round")
    raise Impossible(f"expected inclusive bounds [low, high] or one number, found {condition!r}")


class UniformInt(Numeric, frozen=True, tag="uniform_int"):
    low: int
    high: int

    def draw(self, u: float) -> int:
        return min(self.low + int(u * (self.high - self.low + 1)), self.high)

    def bounds(self) -> tuple[float, float]:
        return self.low, self.high

    def within(self, low: float, high: float) -> Distribution:
        if math.ceil(low) > math.floor(high):
            raise Impossible(f"no whole number lies in [{low}, {high}]")
        return UniformInt(math.ceil(low), math.floor(high))

    def cast(self, value: float) -> int:
        return int(value)

    def describe(self) -> str:
        return f"uniform_int [{self.low}, {self.high}]"


class Uniform(Numeric, frozen=True, tag="uniform"):
    low: float
    high: float

    def draw(self, u: float) -> float:
        return min(max(self.low + u * (self.high - self.low), self.low), self.high)

    def bounds(self) -> tuple[float, float]:
        return self.low, self.high

    def within(self, low: float, high: float) -> Distribution:
        return Uniform(float(low), float(high))

    def describe(self) -> str:
        return f"uniform [{self.low}, {self.high}]"


class LogUniform(Numeric, frozen=True, tag="loguniform"):
    low: float
    high: float

    def draw(self, u: float) -> float:
        low, high = math.log(self.low), math.log(self.high)
        return min(max(math.exp(low + u * (high - low)), self.low), self.high)

    def bounds(self) -> tuple[float, float]:
        return self.low, self.high

    def within(self, low: float, high: float) -> Distribution:
        return LogUniform(float(low), float(high))

    def describe(self) -> str:
        return f"loguniform [{self.low}, {self.high}]"


class Normal(Numeric, frozen=True, tag="normal"):
    mu: float
    sigma: float
    low: float | None = None
    high: float | None = None

    def draw(self, u: float) -> float:
        return _clamp(self.mu + self.sigma * truncated_normal(u, *self._standard()), self.low, self.high)

    def _standard(self) -> tuple[float, float]:
        low, high = self.bounds()
        return (low - self.mu) / self.sigma, (high - self.mu) / self.sigma

    def bounds(self) -> tuple[float, float]:
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high

    def within(self, low: float, high: float) -> Distribution:
        made = Normal(self.mu, self.sigma, *_finite(low, high))
        _check_mass(made._standard(), made)
        return made

    def describe(self) -> str:
        return f"normal (mu {self.mu}, sigma {self.sigma}{_bounds_text(self.low, self.high)})"


class LogNormal(Numeric, frozen=True, tag="lognormal"):
    mu: float  # of the logarithm: the median is exp(mu)
    sigma: float
    low: float | None = None
    high: float | None = None

    def draw(self, u: float) -> float:
        return _clamp(math.exp(self.mu + self.sigma * truncated_normal(u, *self._standard())), self.low, self.high)

    def _standard(self) -> tuple[float, float]:
        low, high = (-math.inf if b <= 0 else (math.log(b) - self.mu) / self.sigma for b in self.bounds())
        return low, high

    def bounds(self) -> tuple[float, float]:
        return 0.0 if self.low is None else self.low, math.inf if self.high is None else self.high

    def within(self, low: float, high: float) -> Distribution:
        made = LogNormal(self.mu, self.sigma, *_finite(low, high))
        _check_mass(made._standard(), made)
        return made

    def describe(self) -> str:
        return f"lognormal (mu {self.mu}, sigma {self.sigma}{_bounds_text(self.low, self.high)})"


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


AnyDistribution = Constant | Choice | Weighted | Bernoulli | UniformInt | Uniform | LogUniform | Normal | LogNormal | Rows
"""All of them, as a tagged union for JSON."""


def truncated_normal(u: float, low: float, high: float) -> float:
    """A standard normal number conditioned on `[low, high]`, by the inverse distribution function.

    Works in the lower tail (by symmetry), where the distribution function keeps its precision. `u` is in [0, 1).
    """
    if low > 0:
        return -truncated_normal(1.0 - u, -high, -low)
    p_low, p_high = _below(low), _below(high)
    p = p_low + u * (p_high - p_low)
    if p <= 0.0:
        return low if math.isfinite(low) else -38.0
    if p >= 1.0:
        return high if math.isfinite(high) else 8.3
    return min(max(NormalDist().inv_cdf(p), low), high)


def _below(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def _check_mass(standard: tuple[float, float], made: Distribution) -> None:
    low, high = standard
    if low > 0:
        low, high = -high, -low
    if low < high and _below(high) - _below(low) <= 0.0:
        raise Impossible(f"the probability of {made.describe()} is too small to represent")


def _finite(low: float, high: float) -> tuple[float | None, float | None]:
    return float(low) if math.isfinite(low) else None, float(high) if math.isfinite(high) else None


def _clamp(value: float, low: float | None, high: float | None) -> float:
    value = value if low is None else max(value, low)
    return value if high is None else min(value, high)


def _bounds_text(low: float | None, high: float | None) -> str:
    return "" if low is None and high is None else f", within [{low}, {high}]"
