"""The alarm rings for what is no rounding, and only then."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from trainer.batch import datum
from trainer.mismatch import alarm, percentile


def test_the_99th_percentile_is_of_trained_tokens_alone() -> None:
    rng = np.random.default_rng(0)
    rows, own, wanted = [], [], []
    for length in (40, 70, 3):
        sampled = rng.normal(size=length)
        mask = rng.random(length) < 0.5
        mask[-1] = True
        rows.append(datum(np.arange(length), mask, logprobs=sampled, advantage=1.0))
        assert rows[-1].logprobs is not None
        off = rng.normal(size=length - 1).astype(np.float32)
        own.append(rows[-1].logprobs + off)
        wanted.append(np.abs(off)[mask[1:]])
    assert percentile(rows, own) == pytest.approx(np.percentile(np.concatenate(wanted), 99), rel=1e-4)
    assert percentile([], []) == 0.0


@pytest.mark.parametrize(("mean", "rings"), [(0.019, False), (0.021, True)])
def test_the_alarm(mean: float, rings: bool) -> None:
    out = io.StringIO()
    numbers = {"mismatch_mean": mean, "mismatch_p99": 0.3, "mismatch_max": 0.9}
    assert alarm(Console(file=out, width=400), "rl", 7, numbers) is rings
    said = "rl, step 7: engine and trainer differ by 0.021 nats per token on the same weights (99th percentile 0.3, largest 0.9)"
    assert (said in out.getvalue()) is rings
