"""Distributions: frozen records that turn one uniform number into a value, and that can be narrowed.

Every draw takes exactly one `u` in [0, 1) (inverse of the distribution function). Narrowing conditions the
distribution itself, so nothing is sampled and rejected, and the same `u` moves smoothly when bounds move.
What `where`, `ladder`, `set` and `if` may say: on a numeric distribution `[a, b]` are inclusive bounds, on `choice`
and `weighted` a list is a subset; a single value pins.
"""

from __future__ import annotations

from envfarm.distributions.base import Distribution, Impossible, is_number, same
from envfarm.distributions.discrete import Bernoulli, Choice, Constant, Rows, Weighted
from envfarm.distributions.numeric import LogNormal, LogUniform, Normal, Uniform, UniformInt

AnyDistribution = Constant | Choice | Weighted | Bernoulli | UniformInt | Uniform | LogUniform | Normal | LogNormal | Rows
"""All of them, as a tagged union for JSON."""

__all__ = [
    "AnyDistribution", "Bernoulli", "Choice", "Constant", "Distribution", "Impossible", "LogNormal", "LogUniform", "Normal",
    "Rows", "Uniform", "UniformInt", "Weighted", "is_number", "same",
]  # fmt: skip
