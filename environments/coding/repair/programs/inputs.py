"""Draws of arguments: each maker returns a function from a numpy Generator to one JSON value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

Draw = Callable[[np.random.Generator], Any]
F = TypeVar("F", bound=Callable[..., Any])

WORDS = ("apple", "bread", "cedar", "delta", "ember", "flint", "grape", "hazel", "ivory", "jade")


def takes(*draws: Draw) -> Callable[[F], F]:
    """Say how the arguments of a program are drawn, in order."""

    def mark(function: F) -> F:
        function.__takes__ = draws  # type: ignore[attr-defined]
        return function

    return mark


def number(low: int, high: int) -> Draw:
    """An integer of [low, high]."""
    return lambda rng: int(rng.integers(low, high + 1))


def word() -> Draw:
    return lambda rng: WORDS[int(rng.integers(len(WORDS)))]


def many(item: Draw, least: int, most: int) -> Draw:
    """A list of `least` to `most` values."""
    return lambda rng: [item(rng) for _ in range(int(rng.integers(least, most + 1)))]


def together(*items: Draw) -> Draw:
    """A list with one value of each kind: a record."""
    return lambda rng: [item(rng) for item in items]


def text(least: int, most: int, letters: str = "abc") -> Draw:
    return lambda rng: "".join(letters[int(i)] for i in rng.integers(len(letters), size=int(rng.integers(least, most + 1))))
