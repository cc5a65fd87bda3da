"""Losses as pure functions of named per-token inputs. No logger, no device choice, no globals.

Every function takes flat tensors over the N trained tokens of a micro-batch and returns N terms, in the order of its
inputs. The loss is their SUM. What a token counts is decided by the data (`weights`, see `trainer.batch`), never here:
so packing, padding, micro-batches and ranks cannot change a gradient.

Names: `logprobs_N` under the weights being trained, at the recorded temperature; `sampled_N` under the distribution
that was really sampled from; `advantages_N` and `weights_N` from the data. `Terms.statistics` are detached sums that
a caller may add up over micro-batches and divide by the count of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.batch import MicroBatch

# exp(20) is finite in float32: a ratio beyond it is clipped by every loss below, the clamp only keeps inf out of sums.
_MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class LossConfig:
    """What the losses may vary. Unused fields are ignored by losses that do not name them."""

    clip_low: float = 0.2
    """PPO's epsilon below 1: the ratio counts no further down than 1 - clip_low."""
    clip_high: float = 0.2
    """Above 1. DAPO (arXiv 2503.14476, "clip-higher") sets it larger, so that rare tokens may grow."""
    truncate: float = 2.0
    """Truncated importance sampling: weights of engine-trainer mismatch are cut here. 0 turns it off."""
    decouple: bool = False
    """PPO without `old_logprobs`: the policy as it is stands for them, not the one that sampled. For tokens of older
    weights: these are corrected by `truncate` then, not clipped for being old (arXiv 2505.24298, "decoupled")."""


@dataclass
class Terms:
    loss_N: Tensor
    statistics: dict[str, Tensor] = field(default_factory=dict)


def log_ratio(logprobs_N: Tensor, sampled_N: Tensor) -> Tensor:
    """log(pi / mu) per token, bounded so that its exponential stays finite."""
    return (logprobs_N - sampled_N).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)


def cross_entropy(logprobs_N: Tensor, *, weights_N: Tensor) -> Terms:
    """-w log pi. Imitation, filtered behaviour cloning (weights 0 or 1) and advantage-weighted regression
    (Peng et al. 2019, arXiv 1910.00177; weights from `awr_weights`) are this with different data."""
    return Terms(-weights_N * logprobs_N)


def importance_sampling(logprobs_N: Tensor, *, sampled_N: Tensor, advantages_N: Tensor, weights_N: Tensor) -> Terms:
    """-w (pi/mu) A: REINFORCE (Williams 1992) whose gradient is right when the sampler lags behind; on policy it is
    the plain policy gradient."""
    ratio_N = log_ratio(logprobs_N, sampled_N).exp()
    return Terms(-weights_N * ratio_N * advantages_N, _mismatch(logprobs_N, sampled_N))


def clipped(
    logprobs_N: Tensor,
    *,
    sampled_N: Tensor,
    advantages_N: Tensor,
    weights_N: Tensor,
    old_N: Tensor | None = None,
    config: LossConfig,
) -> Terms:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv 1707.06347), which is GRPO's and Dr.GRPO's
    (arXiv 2402.03300, 2503.20783) with their advantages and weights:

        -w min(old/mu, truncate) min(r A, clip(r, 1 - low, 1 + high) A),   r = pi/old

    `old_N` are the trainer's own logprobs before the step's first update. With them the ratio measures the update
    alone, and the mismatch between engine and trainer is corrected once, by truncated importance sampling (Yao et al.
    2025). Without them `old` is `mu`: one ratio for both, and truncation has nothing left to do; or, with
    `config.decouple`, the policy as it is, for the first update.
    """
    if old_N is None and config.decouple:
        old_N = logprobs_N.detach()
    old = sampled_N if old_N is None else old_N
    ratio_N = log_ratio(logprobs_N, old).exp()
    bounded_N = ratio_N.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    surrogate_N = torch.minimum(ratio_N * advantages_N, bounded_N * advantages_N)
    correction_N = torch.ones_like(ratio_N)
    if old_N is not None and config.truncate > 0:
        correction_N = log_ratio(old_N, sampled_N).exp().clamp(max=config.truncate)
    statistics = _mismatch(logprobs_N if old_N is None else old_N, sampled_N)
    statistics["clipped"] = (bounded_N * advantages_N < ratio_N * advantages_N).sum()
    return Terms(-weights_N * correction_N * surrogate_N, statistics)


def awr_weights(advantages_R: Tensor, *, beta: float, maximum: float = 20.0) -> Tensor:
    """exp(A / beta), cut at `maximum` as in the paper (arXiv 1910.00177, section 5): one lucky row must not own a step."""
    return (advantages_R / beta).clamp(max=_MAX_LOG_RATIO).exp().clamp(max=maximum)


def _mismatch(logprobs_N: Tensor, sampled_N: Tensor) -> dict[str, Tensor]:
    """How far the weights being trained stand from what was sampled: k1 = mean of log(mu/pi), k3 (Schulman 2020,
    "Approximating KL divergence") never negative; the sum and maximum of absolute differences."""
    difference_N = (sampled_N - logprobs_N).detach()
    if difference_N.numel() == 0:
        zero = torch.zeros((), dtype=logprobs_N.dtype)
        return {"kl_k1": zero, "kl_k3": zero, "mismatch": zero, "mismatch_max": zero}
    bounded_N = difference_N.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return {
        "kl_k1": difference_N.sum(),
        "kl_k3": ((-bounded_N).exp() - 1 + bounded_N).sum(),
        "mismatch": difference_N.abs().sum(),
        "mismatch_max": difference_N.abs().max(),
    }


Loss = Callable[..., Terms]

LOSSES: dict[str, tuple[Loss, tuple[str, ...]]] = {
    "cross_entropy": (cross_entropy, ()),
    "importance_sampling": (importance_sampling, ("logprobs", "advantages")),
    "ppo": (clipped, ("logprobs", "advantages")),
}
"""Name -> (function, what a `Datum` must carry beside targets and weights). A new loss is a function and a line."""


def apply_loss(loss: str, block: MicroBatch, logprobs_N: Tensor, config: LossConfig) -> Terms:
    """The loss of that name, on a micro-batch.

    Raises: ValueError naming a loss that does not exist, or what its rows lack.
    """
    if loss not in LOSSES:
        raise ValueError(f"no loss {loss!r}; there are {', '.join(LOSSES)}")
    function, needs = LOSSES[loss]
    inputs: dict[str, Any] = {"weights_N": block.weights_N}
    for name in needs:
        column = {"logprobs": "sampled_N", "advantages": "advantages_N"}[name]
        inputs[column] = getattr(block, column)
        if inputs[column] is None:
            raise ValueError(f"loss {loss!r} needs rows with {name}; these have none")
    if loss == "ppo":
        inputs |= {"old_N": block.old_N, "config": config}
    return function(logprobs_N, **inputs)
