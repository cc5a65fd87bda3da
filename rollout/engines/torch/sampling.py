"""From logits to tokens, row by row: nothing here depends on which rows are sampled together.

Each token's uniform number is a hash of (the request's seed, the token's index in the reply): no generator has a
state, so neither batching nor a resumed or recomputed request can shift it. Tokens are drawn by inverting the
cumulative distribution in float64. Logprobs are of the distribution that was really drawn from, temperature and
top-p applied; a greedy token (temperature 0) comes from a point mass and has logprob 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seeds: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """One float64 in [0, 1) for each (seed, index): the SplitMix64 finalizer over both, twice.

    `seeds` uint64 `[n]`, `indices` int64 `[n]`. Steele, Lea, Flood: "Fast splittable pseudorandom number generators".
    """
    with np.errstate(over="ignore"):
        bits = _mix(_mix(seeds + _GOLDEN) ^ (indices.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)) * 2.0**-53


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@dataclass
class Rows:
    """The sampling parameters of n rows, as arrays."""

    temperature: np.ndarray  # float32 [n]; 0 is greedy
    top_p: np.ndarray  # float32 [n]
    seed: np.ndarray  # uint64 [n]
    index: np.ndarray  # int64 [n]: how many tokens the reply has already


def sample(logits: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """`logits` `[n, V]` float32 -> token ids `[n]` int64 and their logprobs `[n]` float32."""
    greedy = rows.temperature <= 0
    if not (rows.temperature == 1.0).all():
        logits = logits / torch.from_numpy(np.where(greedy, np.float32(1), rows.temperature))[:, None]
    logprobs = torch.log_softmax(logits, dim=-1)
    if (rows.top_p < 1).any():
        logprobs = _nucleus(logprobs, rows.top_p)
    cumulative = torch.cumsum(logprobs.exp(), dim=-1, dtype=torch.float64)
    drawn = torch.from_numpy(uniforms(rows.seed, rows.index))[:, None] * cumulative[:, -1:]
    # right=True: the first token whose cumulative mass exceeds the draw, so tokens of mass 0 are never taken.
    tokens = torch.searchsorted(cumulative, drawn, right=True).clamp_(max=logits.shape[-1] - 1)
    if greedy.any():
        point = torch.from_numpy(greedy)
        tokens = torch.where(point[:, None], logits.argmax(dim=-1, keepdim=True), tokens)
        chosen = logprobs.gather(-1, tokens).masked_fill(point[:, None], 0.0)
    else:
        chosen = logprobs.gather(-1, tokens)
    return tokens[:, 0], chosen[:, 0]


def _nucleus(logprobs: Tensor, top_p: np.ndarray) -> Tensor:
    """Keep the smallest set of most probable tokens whose mass reaches `top_p`, renormalised; other rows untouched."""
    index = torch.from_numpy(np.flatnonzero(top_p < 1))
    limit = torch.from_numpy(top_p)[index, None].double()
    ordered, order = torch.sort(logprobs[index], dim=-1, descending=True, stable=True)
    mass = ordered.exp().double()
    before = torch.cumsum(mass, dim=-1) - mass
    outside = before >= limit
    outside[:, 0] = False  # the most probable token always stays
    kept = ordered.masked_fill(outside, -torch.inf)
    total = mass.masked_fill(outside, 0.0).cumsum(dim=-1)[:, -1:]
    kept = kept - total.log().float()
    return logprobs.index_copy(0, index, torch.empty_like(kept).scatter_(-1, order, kept))
