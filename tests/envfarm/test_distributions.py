"""Distributions: bounds, narrowing, shape."""

from __future__ import annotations

import math
import statistics
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envfarm.distributions import (
    AnyDistribution,
    Bernoulli,
    Choice,
    Constant,
    Distribution,
    Impossible,
    LogNormal,
    LogUniform,
    Normal,
    Uniform,
    UniformInt,
    Weighted,
)
from envfarm.distributions.numeric import truncated_normal

U = st.floats(0, 1, exclude_max=True)
FINITE = st.floats(-1e6, 1e6)
POSITIVE = st.floats(1e-6, 1e6)


def ordered(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.tuples(values, values).map(sorted)


NUMERIC = st.one_of(
    ordered(FINITE).map(lambda r: Uniform(*r)),
    ordered(st.integers(-(10**9), 10**9)).map(lambda r: UniformInt(*r)),
    ordered(POSITIVE).map(lambda r: LogUniform(*r)),
    st.builds(Normal, mu=st.floats(-100, 100), sigma=st.floats(0.01, 100)),
    st.builds(LogNormal, mu=st.floats(-3, 3), sigma=st.floats(0.01, 2)),
)
VALUES = st.lists(st.one_of(st.integers(), st.text(max_size=3), st.booleans()), min_size=1, max_size=6, unique_by=repr)
DISCRETE = st.one_of(
    VALUES.map(lambda v: Choice(tuple(v))),
    VALUES.map(lambda v: Weighted(tuple(v), tuple(1.0 + i for i in range(len(v))))),
    st.floats(0, 1).map(Bernoulli),
    st.integers().map(Constant),
)


@given(NUMERIC, U)
def test_draws_stay_in_bounds(distribution: Any, u: float) -> None:
    low, high = distribution.bounds()
    assert low <= distribution.draw(u) <= high


@given(NUMERIC, ordered(st.floats(-200, 1e6)), U)
@settings(max_examples=200)
def test_narrowed_numbers_stay_in_both_bounds(distribution: Any, bounds: list[float], u: float) -> None:
    low, high = distribution.bounds()
    try:
        narrowed = distribution.narrow(bounds)
    except Impossible:
        # Nothing in common; or no whole number in between; or a tail too thin for floating point.
        apart = max(low, bounds[0]) > min(high, bounds[1])
        gap = isinstance(distribution, UniformInt) and math.ceil(max(low, bounds[0])) > math.floor(min(high, bounds[1]))
        assert apart or gap or isinstance(distribution, (Normal, LogNormal))
        return
    value = narrowed.draw(u)
    assert max(low, bounds[0]) <= value <= min(high, bounds[1])
    assert distribution.meets(value, bounds) and distribution.allows(value) and narrowed.allows(value)


@given(DISCRETE, st.data(), U)
def test_subsets_and_pins(distribution: Any, data: st.DataObject, u: float) -> None:
    members = list(distribution.members())
    wanted = data.draw(st.lists(st.sampled_from(members), min_size=1, max_size=4))
    value = distribution.narrow(wanted).draw(u)
    assert any(value == w and type(value) is type(w) for w in wanted) and distribution.meets(value, wanted)
    assert distribution.narrow(members).draw(u) == distribution.draw(u), "narrowing to everything changes nothing"
    pinned = data.draw(st.sampled_from(members))
    assert distribution.narrow(pinned).draw(u) == pinned


@given(st.one_of(NUMERIC, DISCRETE))
def test_distributions_survive_json(distribution: Distribution) -> None:
    assert msgspec.json.decode(msgspec.json.encode(distribution), type=AnyDistribution) == distribution


def grid(distribution: Distribution, count: int = 20_000) -> list[Any]:
    """Draws at even steps of `u`: the distribution itself, without sampling noise."""
    return [distribution.draw((i + 0.5) / count) for i in range(count)]


def test_moments_and_shares() -> None:
    normal = grid(Normal(3.0, 2.0))
    assert statistics.fmean(normal) == pytest.approx(3.0, abs=1e-3) and statistics.pstdev(normal) == pytest.approx(2.0, rel=2e-3)
    assert statistics.median(grid(LogNormal(0.5, 0.7))) == pytest.approx(math.exp(0.5), rel=1e-3)
    assert statistics.median(grid(LogUniform(0.01, 100.0))) == pytest.approx(1.0, rel=1e-2)
    weighted = grid(Weighted(("a", "b"), (3.0, 1.0)))
    assert weighted.count("a") / len(weighted) == pytest.approx(0.75, abs=1e-3)
    assert grid(Bernoulli(0.3)).count(True) / 20_000 == pytest.approx(0.3, abs=1e-3)
    dice = grid(UniformInt(1, 6), 6_000)
    assert {dice.count(i) for i in range(1, 7)} == {1000}


def test_truncation_conditions_and_does_not_clip() -> None:
    """Of a standard normal above 1 the mean is pdf(1) / P(above 1); a clipped one would have a mass at the bound."""
    above = grid(Normal(0.0, 1.0).narrow([1, 1e9]))
    pdf, mass = math.exp(-0.5) / math.sqrt(2 * math.pi), 0.5 * math.erfc(1 / math.sqrt(2))
    assert statistics.fmean(above) == pytest.approx(pdf / mass, rel=1e-3)
    assert sum(v == 1.0 for v in above) <= 1


def test_far_tails_keep_their_shape() -> None:
    values = [truncated_normal((i + 0.5) / 1000, 20.0, math.inf) for i in range(1000)]
    assert values == sorted(values) and len(set(values)) == 1000
    assert statistics.fmean(values) == pytest.approx(20.05, abs=0.01)  # 1/20 above the bound, as Mills' ratio has it
    with pytest.raises(Impossible, match="too small to represent"):
        Normal(0.0, 1.0).narrow([50, 51])


@pytest.mark.parametrize(
    ("distribution", "condition", "says"),
    [
        (UniformInt(1, 4), [5, 9], "leaves nothing"),
        (UniformInt(1, 4), 2.5, "is not within"),
        (UniformInt(1, 4), [1.2, 1.8], "no whole number"),
        (UniformInt(1, 4), [4, 1], "the wrong way round"),
        (UniformInt(1, 4), [1, 2, 3], "expected inclusive bounds"),
        (UniformInt(1, 4), True, "expected inclusive bounds"),
        (Choice(("a", "b")), ["a", "c"], "'c' is not among 'a', 'b'"),
        (Choice((1, 2)), [True], "True is not among"),
        (Choice(("a",)), [], "nothing is left"),
        (Bernoulli(1.0), False, "False is not among"),
        (Constant(3), [4, 5], "does not meet"),
    ],
)
def test_impossible_narrowings_say_why(distribution: Distribution, condition: Any, says: str) -> None:
    with pytest.raises(Impossible, match=says):
        distribution.narrow(condition)
