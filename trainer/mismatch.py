"""How far the engine that sampled and the trainer stand apart on the same tokens and the same weights.

In float32 the largest difference stays below 1e-3. Where one of them computes in bf16 single tokens differ by 0.1 nats,
so there it is the mean that tells rounding from a mistake (a stale cache, weights that did not arrive, a temperature that
only one side applied), and the 99th percentile that says how far the tail goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console

from trainer.batch import Datum

ALARM = 0.02
"""Nats per trained token, mean."""


def percentile(data: Sequence[Datum], logprobs: Sequence[np.ndarray], at: float = 99.0) -> float:
    """Of |trainer - engine| over the trained tokens; `logprobs[i]` are the trainer's for `data[i]`."""
    differences = [
        np.abs(own - row.logprobs)[row.weights != 0] for row, own in zip(data, logprobs, strict=True) if row.logprobs is not None
    ]
    joined = np.concatenate(differences) if differences else np.zeros(0)
    return float(np.percentile(joined, at)) if len(joined) else 0.0


def alarm(console: Console, stage: str, step: int, numbers: Mapping[str, float]) -> bool:
    """Say so where the mean is too large to be rounding. `numbers` are a step's metrics."""
    mean = numbers["mismatch_mean"]
    if mean <= ALARM:
        return False
    console.print(
        f"[yellow]{stage}, step {step}: engine and trainer differ by {mean:.3g} nats per token on the same weights "
        f"(99th percentile {numbers['mismatch_p99']:.3g}, largest {numbers['mismatch_max']:.3g}), more than rounding explains "
        f"({ALARM}): look at `engine.dtype`, and at what the engine serves[/]"
    )
    return True
