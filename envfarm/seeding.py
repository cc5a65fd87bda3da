"""Randomness by name. Each concern has its own numpy Generator, derived by hashing names; nothing touches global state.

`generator("sample", spec_hash, "train", 7)` is the same stream on every machine, process and hash seed.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np


def canonical_json(value: Any) -> str:
    """One spelling for equal values: sorted keys, no spaces, no NaN. Raises ValueError on NaN or infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def stable_hash(value: Any) -> str:
    """64 hex digits of SHA-256 over `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def derive_seed(*names: str | int) -> int:
    """A 63-bit seed for the concern that `names` spell. Names are separated unambiguously."""
    digest = hashlib.sha256("\x1f".join(f"{type(n).__name__}:{n}" for n in names).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*names: str | int) -> np.random.Generator:
    """A fresh Generator for the concern that `names` spell."""
    return np.random.Generator(np.random.PCG64(derive_seed(*names)))
