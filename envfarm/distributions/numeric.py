"""Distributions of numbers: `[low, high]` narrows to inclusive bounds, a single number pins."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

from envfarm.distributions.base import Distribution, Impossible, is_number
from envfarm.distributions.discrete import Constant


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
