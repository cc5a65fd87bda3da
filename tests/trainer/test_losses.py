"""Losses against what can be worked out by hand, and against autograd."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.losses import LossConfig, awr_weights, clipped, cross_entropy, importance_sampling

values = st.lists(st.floats(-5, -0.01), min_size=1, max_size=8)


def tensor(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_cross_entropy_counts_each_token_by_its_weight() -> None:
    terms = cross_entropy(tensor(-1.0, -2.0, -3.0), weights_N=tensor(1.0, 0.5, 0.0))
    assert terms.loss_N.tolist() == [1.0, 1.0, 0.0]


@settings(deadline=None)
@given(values)
def test_on_policy_the_gradient_is_reinforce(logprobs: list[float]) -> None:
    current = tensor(*logprobs).requires_grad_()
    advantages = torch.linspace(-1, 1, len(logprobs), dtype=torch.float64)
    weights = torch.full_like(advantages, 0.25)
    sampled = current.detach().clone()
    for loss in (
        importance_sampling(current, sampled_N=sampled, advantages_N=advantages, weights_N=weights),
        clipped(current, sampled_N=sampled, advantages_N=advantages, weights_N=weights, config=LossConfig()),
    ):
        (gradient,) = torch.autograd.grad(loss.loss_N.sum(), current)
        torch.testing.assert_close(gradient, -weights * advantages)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.5, 1.0, 1.3),  # grown beyond 1 + clip_high: no more reward for it
        (1.5, -1.0, -1.5),  # grown although bad: the full penalty, so that it comes back
        (0.5, 1.0, 0.5),  # shrunk although good: the full pull
        (0.5, -1.0, -0.9),  # shrunk beyond 1 - clip_low
        (1.1, 1.0, 1.1),
    ],
)
def test_clipping_is_one_sided(ratio: float, advantage: float, expected: float) -> None:
    config = LossConfig(clip_low=0.1, clip_high=0.3)
    terms = clipped(
        tensor(math.log(ratio) - 1), sampled_N=tensor(-1), advantages_N=tensor(advantage), weights_N=tensor(1), config=config
    )
    assert -float(terms.loss_N) == pytest.approx(expected)
    assert int(terms.statistics["clipped"]) == (expected not in (ratio * advantage,))


def test_truncation_bounds_the_engines_mismatch_once() -> None:
    arguments = {"sampled_N": tensor(-5.0, -2.0), "old_N": tensor(-1.0, -2.5), "advantages_N": tensor(1.0, 1.0)}
    current = tensor(-1.0, -2.5)  # equal to `old`: the ratio of the update is 1
    terms = clipped(current, weights_N=tensor(1.0, 1.0), config=LossConfig(truncate=2.0), **arguments)
    assert (-terms.loss_N).tolist() == pytest.approx([2.0, math.exp(-0.5)])
    terms = clipped(current, weights_N=tensor(1.0, 1.0), config=LossConfig(truncate=0.0), **arguments)
    assert (-terms.loss_N).tolist() == pytest.approx([1.0, 1.0])


def test_an_impossible_token_gives_a_finite_loss() -> None:
    terms = importance_sampling(tensor(-0.1), sampled_N=tensor(-1e4), advantages_N=tensor(1.0), weights_N=tensor(1.0))
    assert math.isfinite(float(terms.loss_N))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=6), st.floats(0.05, 2))
def test_awr_weights_rise_with_the_advantage_and_are_bounded(advantages: list[float], beta: float) -> None:
    ordered = torch.tensor(sorted(advantages), dtype=torch.float64)
    weights = awr_weights(ordered, beta=beta)
    assert bool((weights[1:] >= weights[:-1]).all()) and float(weights.max()) <= 20 and float(weights.min()) > 0
