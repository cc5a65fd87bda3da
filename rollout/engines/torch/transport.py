"""Weights as plain arrays, for shared memory: what travels between processes without being copied or pickled.

    packed = pack(state)        # here: NumPy views of the tensors' bytes
    state = unpack(packed)      # there: tensors over the same bytes, read-only in spirit

Bytes, since NumPy has no bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rollout.engines.base import Adapter


@dataclass(frozen=True)
class PackedTensor:
    dtype: str  # as torch calls it, without `torch.`
    shape: tuple[int, ...]
    data: np.ndarray  # uint8 [bytes]


def pack(state: Any) -> Any:
    """What a trainer publishes (a state dict or an `Adapter`), its tensors packed. They are views where a tensor lies
    contiguous in this machine's memory."""
    if isinstance(state, Adapter):
        return replace(state, tensors=pack(state.tensors))
    return {name: _pack(value) if isinstance(value, Tensor) else value for name, value in state.items()}


def unpack(packed: Any) -> Any:
    """The inverse. The tensors share the arrays' memory, which may be read-only: engines copy what they are given."""
    if isinstance(packed, Adapter):
        return replace(packed, tensors=unpack(packed.tensors))
    assert isinstance(packed, Mapping)
    return {name: _unpack(value) if isinstance(value, PackedTensor) else value for name, value in packed.items()}


def _pack(tensor: Tensor) -> PackedTensor:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return PackedTensor(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), flat.numpy())


def _unpack(packed: PackedTensor) -> Tensor:
    dtype = getattr(torch, packed.dtype)
    if packed.data.size == 0:
        return torch.empty(packed.shape, dtype=dtype)
    return torch.frombuffer(packed.data, dtype=dtype).reshape(packed.shape)
