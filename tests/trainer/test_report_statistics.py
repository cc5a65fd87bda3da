"""The report's intervals and effect sizes, against known values and what must always hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.report.statistics import chance_p, difference, explained, holm, mean_interval, t95

counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


def test_known_values() -> None:
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert mean_interval([0.5]) == (0.5, None, None)
    # Newcombe 1998, table II, method 10: 56/70 against 48/80.
    assert difference(56, 70, 48, 80) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    # Pearson's chi-square 4.0 on one degree of freedom, 0.0455 in tables.
    assert chance_p([(50, 30), (50, 20)]) == pytest.approx(0.0455, abs=0.005)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert [t95(v) for v in (1, 10, 30, 120)] == pytest.approx([12.706, 2.228, 2.042, 1.980], abs=1e-3)


@given(counts, counts)
def test_a_difference_lies_in_its_interval_and_turns_around(a: tuple[int, int], b: tuple[int, int]) -> None:
    (n1, s1), (n2, s2) = a, b
    mean, low, high = difference(s1, n1, s2, n2)
    assert -1 - 1e-9 <= low <= mean + 1e-9 and mean - 1e-9 <= high <= 1 + 1e-9
    assert difference(s2, n2, s1, n1) == pytest.approx((-mean, -high, -low))


@given(st.lists(counts, max_size=8))
def test_effects_are_shares_and_equal_bins_have_none(bins: list[tuple[int, int]]) -> None:
    assert 0.0 <= explained(bins) <= 1.0 and 0.0 <= chance_p(bins) <= 1.0
    assert explained([(40, 10)] * len(bins)) == 0.0


def test_a_bin_that_decides_everything_explains_nearly_everything() -> None:
    assert explained([(100, 100), (100, 0)]) > 0.98 and chance_p([(100, 100), (100, 0)]) < 1e-6
    assert explained([(100, 51), (100, 49)]) == 0.0 and chance_p([(100, 51), (100, 49)]) > 0.5


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_adjusted_ps_are_no_smaller_and_keep_their_order(ps: list[float]) -> None:
    adjusted = holm(ps)
    assert all(a >= p for a, p in zip(adjusted, ps, strict=True))
    assert sorted(range(len(ps)), key=lambda i: (adjusted[i], ps[i])) == sorted(range(len(ps)), key=lambda i: (ps[i], ps[i]))
