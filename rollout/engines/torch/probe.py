"""Is this engine batch-invariant on this machine? Measured when it starts, not believed.

One sequence is scored as decode would (token by token), in pieces of several sizes, and beside other sequences, also
much longer ones; every logprob must agree to the last bit. A library that picks another kernel for another number of
rows or keys is found out here.
"""

from __future__ import annotations

import msgspec
import numpy as np
import torch
from torch import Tensor

from envfarm.seeding import generator
from rollout.engines.torch.cache import Lanes
from rollout.engines.torch.config import ModelConfig
from rollout.engines.torch.kernels import Weights, forward
from rollout.engines.torch.planning import decode, plan, prefill

LENGTH = 19  # not a multiple of anything
LONGEST = 400
LAYERS = 2  # all layers have the same shapes, and a library's choice depends on these alone


def batch_invariant(config: ModelConfig, weights: Weights) -> bool:
    """Whether logits of a row agreed bit for bit in every arrangement tried (some twenty milliseconds for a small model;
    of a deep one the first layers are tried)."""
    if config.layers > LAYERS + 1:
        config, weights = msgspec.structs.replace(config, layers=LAYERS), weights.first_layers(LAYERS)
    length = min(LENGTH, config.max_len - 1)
    rng = generator("engine", "probe", config.vocab)
    tokens = rng.integers(0, config.vocab, size=(64, length))
    reference = _decoded(config, weights, tokens[:1])[0]
    for others in (7, 64):
        if not torch.equal(_decoded(config, weights, tokens[:others])[0], reference):
            return False
    if not all(torch.equal(_prefilled(config, weights, tokens[:n], piece), reference)
               for n, piece in ((1, 7), (1, 64), (7, 16), (64, 19))):  # fmt: skip
        return False
    longest = min(LONGEST, config.max_len - 1, len(weights.rotary) - 1)
    tokens = rng.integers(0, config.vocab, size=(2, longest))
    return all(torch.equal(_continued(config, weights, tokens, [n, longest]), _continued(config, weights, tokens[:1], [n]))
               for n in (longest // 3, longest // 2))  # fmt: skip


def _decoded(config: ModelConfig, weights: Weights, tokens: np.ndarray) -> Tensor:
    """Logits `[lanes, length, V]`, one token of every lane at a time."""
    cache = Lanes(config, len(tokens), tokens.shape[1])
    lanes, out = np.arange(len(tokens)), []
    cache.tokens[:, : tokens.shape[1]] = tokens
    for n in range(1, tokens.shape[1] + 1):
        part = decode(cache, lanes, np.full(len(tokens), n))
        out.append(forward(weights, cache, plan([part], wanted=1))[torch.from_numpy(part.rows)])
    return torch.stack(out, dim=1)


def _prefilled(config: ModelConfig, weights: Weights, tokens: np.ndarray, piece: int) -> Tensor:
    """Logits `[length, V]` of the first sequence, `piece` tokens of every lane at a time."""
    cache = Lanes(config, len(tokens), tokens.shape[1])
    lanes, out = np.arange(len(tokens)), []
    cache.tokens[:, : tokens.shape[1]] = tokens
    for start in range(0, tokens.shape[1], piece):
        count = min(piece, tokens.shape[1] - start)
        # The others lag behind or lead by what their number says, so that rows of many lengths meet.
        counts = np.maximum(1, count - lanes % count)
        parts = prefill(cache, lanes, np.full(len(lanes), start), counts)
        assert len(parts) == 1  # so short a sequence is not cut
        out.append(forward(weights, cache, plan(parts, wanted=1))[:count])
    return torch.cat(out)


def _continued(config: ModelConfig, weights: Weights, tokens: np.ndarray, lengths: list[int]) -> Tensor:
    """Logits `[V]` of the first sequence's last token, decoded beside the others'; `lengths` counts each one's tokens."""
    cache = Lanes(config, len(tokens), tokens.shape[1])
    lanes, ends = np.arange(len(tokens)), np.array(lengths)
    cache.tokens[:, : tokens.shape[1]] = tokens
    forward(weights, cache, plan(prefill(cache, lanes, np.zeros_like(ends), ends - 1), wanted=0))
    part = decode(cache, lanes, ends)
    return forward(weights, cache, plan([part], wanted=1))[part.rows[0]]
