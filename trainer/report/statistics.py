"""Intervals and effect sizes for the report, from counts alone. Pure functions; shares and intervals are in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rollout.evaluate import Z95, wilson

_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t, two-sided 95 %, for 1 to 10 degrees of freedom."""

Interval = tuple[float, float, float]
"""Estimate, low, high."""


def t95(freedom: int) -> float:
    """The 97.5 % point of Student's t; beyond the table by its series in 1/freedom (Abramowitz and Stegun 26.7.5)."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z, v = Z95, freedom
    return z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The mean with its 95 % interval; no interval from fewer than two values.

    Values are to be independent: means of groups, not the episodes of one instance."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None, None
    half = t95(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def difference(s1: int, n1: int, s2: int, n2: int) -> Interval:
    """Share 1 minus share 2 of independent samples with a 95 % interval (Newcombe 1998, method 10)."""
    p1, p2 = s1 / n1, s2 / n2
    (low1, high1), (low2, high2) = wilson(s1, n1), wilson(s2, n2)
    delta = p1 - p2
    return delta, delta - math.hypot(p1 - low1, high2 - p2), delta + math.hypot(high1 - p1, p2 - low2)


def chance_p(counts: Sequence[tuple[int, int]]) -> float:
    """How probable bins (episodes, successes) differ at least this much where success does not depend on the bin.

    Pearson's chi-square with the cube-root approximation of its tail (Wilson and Hilferty 1931); 1 where there is
    nothing to compare."""
    counts = [(n, s) for n, s in counts if n]
    total, solved = sum(n for n, _ in counts), sum(s for _, s in counts)
    if len(counts) < 2 or solved in (0, total):
        return 1.0
    share = solved / total
    statistic = sum((s - n * share) ** 2 / (n * share * (1 - share)) for n, s in counts)
    k = len(counts) - 1
    z = ((statistic / k) ** (1 / 3) - (1 - 2 / (9 * k))) / math.sqrt(2 / (9 * k))
    return 0.5 * math.erfc(z / math.sqrt(2))


def explained(counts: Sequence[tuple[int, int]]) -> float:
    """Of the variance of success, the share that the bins explain beyond chance (Kelley's epsilon squared), at least 0."""
    counts = [(n, s) for n, s in counts if n]
    total, solved = sum(n for n, _ in counts), sum(s for _, s in counts)
    if len(counts) < 2 or total <= len(counts) or solved in (0, total):
        return 0.0
    share = solved / total
    whole = total * share * (1 - share)
    within = sum(s * (1 - s / n) for n, s in counts)
    mean_square = within / (total - len(counts))
    return max(0.0, (whole - within - (len(counts) - 1) * mean_square) / whole)


def holm(ps: Sequence[float]) -> list[float]:
    """The p values, adjusted for how many there are (Holm 1979)."""
    adjusted, highest = [1.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = highest
    return adjusted
