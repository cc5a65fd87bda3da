"""The KV cache: lanes, each the keys and values of one token sequence.

A lane is both the place where a request computes and an entry of the prefix cache: after a reply its keys and values
stay, with the token ids that made them, until the lane is needed. A request that continues a conversation goes on in
its own lane without copying; one that shares a prefix with any lane (the siblings of a group) copies those rows.
Matching compares token ids one by one, so there are no hash collisions. New weights empty every lane: no row made by
older weights is ever matched.

Layout: `[layers, lanes * capacity, 2 * kv_heads * head_dim]`, keys then values, one row per token, so that writing is
one `index_copy_` and a lane's keys are a strided view.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rollout.engines.torch.config import ModelConfig

KEY_STEP = 32  # attention looks at a multiple of this many keys; what lies beyond a row's own is masked


class Lanes:
    """`count` lanes of `capacity` tokens. The last row of each lane is scratch: idle rows of a batch write there."""

    def __init__(self, config: ModelConfig, count: int, context: int):
        self.config, self.count = config, count
        self.capacity = -(-(context + 1) // KEY_STEP) * KEY_STEP
        self.scratch = self.capacity - 1
        self.row = 2 * config.kv_heads * config.head_dim
        self.kv = torch.zeros(config.layers, count * self.capacity, self.row)
        self.tokens = np.full((count, self.capacity), -1, dtype=np.int64)
        self.resident = np.zeros(count, dtype=np.int64)
        """How many leading tokens of each lane have their keys and values there."""

    def clear(self) -> None:
        """Forget everything; also whatever a diverged model may have left, since masked rows are still multiplied."""
        self.resident[:] = 0
        used = np.flatnonzero((self.tokens >= 0).any(axis=0))
        rows = self.kv.view(self.config.layers, self.count, self.capacity, self.row)
        rows[:, :, : used[-1] + 1 if len(used) else 0].zero_()
        rows[:, :, self.scratch].zero_()

    def matches(self, prompt: np.ndarray, resident: np.ndarray) -> np.ndarray:
        """How many leading tokens of `prompt` each lane shares, at most `resident` of it. int64 `[lanes]`."""
        n = min(len(prompt), int(resident.max(initial=0)))
        if n == 0:
            return np.zeros(self.count, dtype=np.int64)
        differs = self.tokens[:, :n] != prompt[:n]
        first = np.where(differs.any(axis=1), differs.argmax(axis=1), n)
        return np.minimum(first, resident)

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        """Rows `start..stop` of one lane into another, all layers."""
        a, b = source * self.capacity, target * self.capacity
        self.kv[:, b + start : b + stop] = self.kv[:, a + start : a + stop]

    def views(self, layer: int, lanes: Tensor | int, keys: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[S, kv_heads, keys, head_dim]` of the first S lanes (a view), or of the given lanes."""
        c = self.config
        rows = self.kv[layer].view(self.count, self.capacity, self.row)[:, :keys]
        rows = rows[:lanes] if isinstance(lanes, int) else rows.index_select(0, lanes)
        split = rows.unflatten(-1, (2, c.kv_heads, c.head_dim)).permute(2, 0, 3, 1, 4)
        return split[0], split[1]
