"""Training rows as arrays, and how they are laid side by side for one pass.

A `Datum` is pre-shifted as in Tinker's API: position t of `tokens` predicts `targets[t]`. `weights` say what each
prediction counts; everything about normalisation is in them. `micro_batches` sorts rows by length, cuts them into
blocks of bounded size and packs each block end to end; rows never attend to one another, so the same row gives the
same terms in any company. Rows that begin alike for long (the description of an environment's tools, at the head of
each of its episodes) are packed together and their common beginning once: most of what a chat model reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


@dataclass(frozen=True)
class Datum:
    """One row; all arrays have the length of `tokens`."""

    tokens: np.ndarray  # int64 [T]
    targets: np.ndarray  # int64 [T], tokens one further
    weights: np.ndarray  # float32 [T]; 0 where nothing is trained
    logprobs: np.ndarray | None = None  # float32 [T], of the distribution that was sampled from
    advantages: np.ndarray | None = None  # float32 [T]
    old_logprobs: np.ndarray | None = None  # float32 [T], the trainer's own before the step's first update
    temperature: np.ndarray | None = None  # float32 [T], as recorded; None is 1 everywhere

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def trained(self) -> int:
        """How many tokens carry a weight."""
        return int(np.count_nonzero(self.weights))

    def scaled(self, factor: float) -> Datum:
        return replace(self, weights=(self.weights * np.float32(factor)).astype(np.float32))


def datum(
    token_ids: ArrayLike,
    mask: ArrayLike,
    *,
    weight: float = 1.0,
    logprobs: ArrayLike | None = None,
    advantage: float | None = None,
    temperature: ArrayLike | None = None,
) -> Datum:
    """A row of n tokens as n - 1 predictions; what `mask` marks is trained with `weight`.

    The first token predicts nothing and is never trained. Raises: ValueError where lengths differ or nothing remains.
    """
    ids = np.asarray(token_ids, dtype=np.int64)
    if len(ids) < 2:
        raise ValueError(f"a row of {len(ids)} token(s) predicts nothing")

    def shifted(name: str, values: ArrayLike, dtype: type) -> np.ndarray:
        array: np.ndarray = np.asarray(values, dtype=dtype)
        if len(array) != len(ids):
            raise ValueError(f"{name} has {len(array)} entries for {len(ids)} tokens")
        return array[1:]

    chosen = shifted("mask", mask, bool)
    return Datum(
        tokens=ids[:-1],
        targets=ids[1:],
        weights=np.where(chosen, np.float32(weight), np.float32(0)).astype(np.float32),
        logprobs=None if logprobs is None else shifted("logprobs", logprobs, np.float32),
        advantages=None if advantage is None else np.where(chosen, np.float32(advantage), np.float32(0)),
        temperature=None if temperature is None else shifted("temperature", temperature, np.float32),
    )


@dataclass(frozen=True)
class MicroBatch:
    """B rows end to end behind what they have in common: P positions, of which N are trained (at `picks_N`)."""

    rows: list[int]  # places in the data that it was made from
    tokens_P: Tensor
    cu_seqlens: Tensor  # [B + 1], bounds of the rows in P; the first is the length of their common beginning
    picks_N: Tensor
    targets_N: Tensor
    weights_N: Tensor
    temperature_N: Tensor
    sampled_N: Tensor | None
    advantages_N: Tensor | None
    old_N: Tensor | None
    bounds: list[tuple[int, int, np.ndarray]]  # per row: its slice of N, and the positions that these are


def micro_batches(data: Sequence[Datum], *, max_tokens: int, dtype: torch.dtype = torch.float32) -> Iterator[MicroBatch]:
    """Blocks of rows of like length, longest first; number of rows times the longest is at most `max_tokens`
    (attention pads to the longest of a block; one row may be longer than that alone). A common beginning counts once.

    Positions after a row's last trained one are dropped: nothing there is computed. Rows without any are left out.
    """
    lengths = [_last_trained(d) for d in data]
    for shared, family in _families(data, lengths):
        block: list[int] = []
        for i in family:
            if block and (lengths[block[0]] - shared) * (len(block) + 1) + shared > max_tokens:
                yield _lay_out(data, block, lengths, shared, dtype)
                block = []
            block.append(i)
        yield _lay_out(data, block, lengths, shared, dtype)


WORTH_SHARING = 128
"""Tokens that rows must have in common at their beginning to be packed by that."""


def _families(data: Sequence[Datum], lengths: list[int]) -> list[tuple[int, list[int]]]:
    """Rows by their beginning, each family with the length of what all of it has in common; longest rows first."""
    order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: (-lengths[i], i))
    families: dict[bytes, list[int]] = {}
    for i in order:
        begins = data[i].tokens[:WORTH_SHARING].tobytes() if lengths[i] > WORTH_SHARING else b""
        families.setdefault(begins, []).append(i)
    alone = [i for begins, family in families.items() if not begins or len(family) == 1 for i in family]
    several = [family for begins, family in families.items() if begins and len(family) > 1]
    plain = [(0, sorted(alone, key=lambda i: (-lengths[i], i)))] if alone else []
    return plain + [(_in_common([data[i].tokens for i in f], lengths[f[-1]] - 1), f) for f in several]


def _in_common(rows: Sequence[np.ndarray], most: int) -> int:
    """How many leading tokens all rows share, at most `most`."""
    alike = np.logical_and.reduce([row[:most] == rows[0][:most] for row in rows])
    return most if alike.all() else int(alike.argmin())


def _last_trained(d: Datum) -> int:
    where = np.flatnonzero(d.weights)
    return int(where[-1]) + 1 if len(where) else 0


def _lay_out(data: Sequence[Datum], block: list[int], lengths: list[int], shared: int, dtype: torch.dtype) -> MicroBatch:
    cu_seqlens = shared + np.concatenate([[0], np.cumsum([lengths[i] - shared for i in block])])
    picks, bounds, start = [], [], 0
    for offset, i in zip(cu_seqlens, block, strict=False):
        where = np.flatnonzero(data[i].weights)
        picks.append(np.where(where < shared, where, where - shared + offset))
        bounds.append((start, start + len(where), where))
        start += len(where)

    def gather(name: str, default: float | None = None) -> Tensor | None:
        columns = [getattr(data[i], name) for i in block]
        missing = sum(c is None for c in columns)
        if missing and default is None:
            if missing < len(columns):
                raise ValueError(f"some rows of the batch carry {name}, others do not")
            return None
        parts = [
            np.full(len(w), default, dtype=np.float32) if c is None else c[w]
            for c, (_, _, w) in zip(columns, bounds, strict=True)
        ]
        return torch.from_numpy(np.concatenate(parts)).to(dtype)

    targets = np.concatenate([data[i].targets[w] for i, (_, _, w) in zip(block, bounds, strict=True)])
    weights, temperature = gather("weights"), gather("temperature", 1.0)
    assert weights is not None and temperature is not None
    return MicroBatch(
        rows=block,
        tokens_P=torch.from_numpy(
            np.concatenate([data[block[0]].tokens[:shared], *(data[i].tokens[shared : lengths[i]] for i in block)])
        ),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        picks_N=torch.from_numpy(np.concatenate(picks)),
        targets_N=torch.from_numpy(targets),
        weights_N=weights,
        temperature_N=temperature,
        sampled_N=gather("logprobs"),
        advantages_N=gather("advantages"),
        old_N=gather("old_logprobs"),
        bounds=bounds,
    )
