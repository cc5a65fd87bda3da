"""Which tokens a forward takes: decode (the last token of each lane) and prefill (ragged pieces of several lanes)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rollout.engines.torch.cache import KEY_STEP, Lanes
from rollout.engines.torch.kernels import ROWS, Attend, Plan

PIECE = 64  # positions that attend together in a prefill


@dataclass
class Part:
    """One `Attend` and its tokens, still as arrays. All int64 `[n]`, n a multiple of `ROWS`."""

    tokens: np.ndarray
    positions: np.ndarray
    write: np.ndarray
    attend: Attend
    rows: np.ndarray  # where the tokens asked for are; the others are padding


def decode(cache: Lanes, lanes: np.ndarray, lengths: np.ndarray) -> Part:
    """Feed the last token of each of `lanes` (ascending); `lengths` counts each lane's tokens, that one included.

    Where most lanes up to the highest take part, they are attended to in place and idle ones ride along on scratch
    rows; where few do, their keys are gathered.
    """
    top = int(lanes[-1]) + 1
    dense = 2 * len(lanes) > top
    attended = top if dense else len(lanes)
    rows = lanes if dense else np.arange(len(lanes))
    tokens, positions, write = _blank(cache, attended)
    tokens[rows] = cache.tokens[lanes, lengths - 1]
    positions[rows] = lengths - 1
    write[rows] = lanes * cache.capacity + lengths - 1
    keys = _padded(int(lengths.max()), KEY_STEP)
    attend = Attend(
        start=0,
        stop=len(tokens),
        lanes=top if dense else torch.from_numpy(lanes),
        keys=keys,
        columns=1,
        mask=_mask(cache, positions[:attended, None], keys),
    )
    return Part(tokens, positions, write, attend, rows)


def prefill(cache: Lanes, lanes: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> list[Part]:
    """Compute `counts[i]` tokens of `lanes[i]` from position `starts[i]` on.

    Cut where positions cross multiples of `PIECE`, one part for the pieces between the same two: so no piece is
    shown many keys that come after it, and short prompts are not padded to long ones.
    """
    stops, parts = starts + counts, []
    for low in range(int(starts.min()) // PIECE * PIECE, int(stops.max()), PIECE):
        first, last = np.maximum(starts, low), np.minimum(stops, low + PIECE)
        here = np.flatnonzero(first < last)
        if len(here):
            parts.append(_rectangle(cache, lanes[here], first[here], (last - first)[here]))
    return parts


def _rectangle(cache: Lanes, lanes: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> Part:
    widest, total = int(counts.max()), int(counts.sum())
    first = np.cumsum(counts) - counts
    owner = np.repeat(np.arange(len(lanes)), counts)
    offset = np.arange(total) - first[owner]
    tokens, positions, write = _blank(cache, total)
    positions[:total] = starts[owner] + offset
    tokens[:total] = cache.tokens[lanes[owner], positions[:total]]
    write[:total] = lanes[owner] * cache.capacity + positions[:total]
    unpad = np.zeros(len(tokens), dtype=np.int64)
    unpad[:total] = owner * widest + offset
    column = np.minimum(np.arange(widest), counts[:, None] - 1)  # behind its tokens a lane repeats the last one
    keys = _padded(int((starts + counts).max()), KEY_STEP)
    attend = Attend(
        start=0,
        stop=len(tokens),
        lanes=torch.from_numpy(lanes),
        keys=keys,
        columns=widest,
        mask=_mask(cache, starts[:, None] + column, keys),
        pad=torch.from_numpy((first[:, None] + column).reshape(-1)),
        unpad=torch.from_numpy(unpad),
    )
    return Part(tokens, positions, write, attend, np.arange(total))


def plan(parts: list[Part], wanted: int) -> Plan:
    """Parts one behind the other; logits of the first `wanted` parts."""
    start = 0
    for part in parts:
        part.attend.start, part.attend.stop = start, start + len(part.tokens)
        start = part.attend.stop
    return Plan(
        tokens=_joined([p.tokens for p in parts]),
        positions=_joined([p.positions for p in parts]),
        write=_joined([p.write for p in parts]),
        parts=[p.attend for p in parts],
        wanted=parts[wanted - 1].attend.stop if wanted else 0,
    )


def _joined(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))


def _blank(cache: Lanes, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = _padded(tokens, ROWS)
    return np.zeros(n, np.int64), np.zeros(n, np.int64), np.full(n, cache.scratch, np.int64)


def _padded(n: int, step: int) -> int:
    return -(-n // step) * step


def _mask(cache: Lanes, positions: np.ndarray, keys: int) -> Tensor:
    """`[S, Q]` positions -> `[S, 1, G * Q, keys]`: a token sees the keys up to its own position."""
    groups = cache.config.heads // cache.config.kv_heads
    hidden = torch.arange(keys) > torch.from_numpy(positions)[:, None, :, None]
    mask = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
    return mask if positions.shape[1] == 1 else mask.repeat(1, 1, groups, 1)
