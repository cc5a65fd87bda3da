"""What is drawn, how often, and what its logprob says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rollout.engines.torch.sampling import Rows, sample, uniforms


def rows(n: int, temperature: float = 1.0, top_p: float = 1.0, seed: int = 0) -> Rows:
    return Rows(
        np.full(n, temperature, np.float32),
        np.full(n, top_p, np.float32),
        np.full(n, seed, np.uint64),
        np.arange(n),
    )


def logits(n: int, vocab: int = 12) -> torch.Tensor:
    return (torch.arange(vocab) % 5 * 0.9).float().expand(n, -1).contiguous()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_tokens_come_as_often_as_they_are_probable(temperature: float) -> None:
    n = 40_000
    tokens, logprobs = sample(logits(n), rows(n, temperature))
    expected = torch.softmax(logits(1)[0] / temperature, -1)
    counts = torch.bincount(tokens, minlength=12) / n
    # Five standard errors of a share.
    assert ((counts - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt() + 1e-9).all()
    assert torch.allclose(logprobs, expected.log()[tokens], atol=1e-5)


def test_top_p_keeps_the_smallest_set_that_reaches_it_and_says_what_it_drew_from() -> None:
    n, row = 5_000, torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
    tokens, logprobs = sample(row.expand(n, -1).contiguous(), rows(n, top_p=0.7))
    assert set(tokens.tolist()) == {0, 1}
    assert torch.allclose(logprobs.exp(), torch.tensor([2 / 3, 1 / 3])[tokens], atol=1e-5)
    only, certain = sample(row.expand(n, -1).contiguous(), rows(n, top_p=0.01))
    assert set(only.tolist()) == {0} and certain.abs().max() < 1e-6


def test_greedy_takes_the_best_from_a_point_mass() -> None:
    x = torch.randn(50, 33, generator=torch.Generator().manual_seed(0))
    tokens, logprobs = sample(x, rows(50, temperature=0.0))
    assert torch.equal(tokens, x.argmax(-1)) and (logprobs == 0).all()


def test_a_row_does_not_see_the_parameters_of_others() -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    mixed = Rows(
        np.array([1, 0, 0.6], np.float32), np.array([1, 1, 0.5], np.float32), np.arange(3, dtype=np.uint64), np.arange(3)
    )
    tokens, logprobs = sample(x, mixed)
    for i in range(3):
        one = Rows(mixed.temperature[i : i + 1], mixed.top_p[i : i + 1], mixed.seed[i : i + 1], mixed.index[i : i + 1])
        token, logprob = sample(x[i : i + 1], one)
        assert token[0] == tokens[i] and logprob[0] == logprobs[i]


def test_uniforms_are_a_pure_function_of_seed_and_index_and_look_uniform() -> None:
    seeds = np.arange(200, dtype=np.uint64).repeat(100)
    drawn = uniforms(seeds, np.tile(np.arange(100), 200))
    assert len(np.unique(drawn)) == len(drawn) and drawn.min() >= 0 and drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=20, range=(0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 60  # chi-square, 19 degrees of freedom
    grid = drawn.reshape(200, 100)
    for a, b in ((grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:])):  # neighbours by index, by seed
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.03
    assert uniforms(np.array([7], np.uint64), np.array([3]))[0] == drawn[7 * 100 + 3]
