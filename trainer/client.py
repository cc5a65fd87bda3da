"""The primitives that every training loop is written in. Tinker's verbs, so that a remote trainer is another class.

Calls return futures and are executed in the order in which they were made: a loop may submit `forward_backward` and
`optim_step` together and read both results later. Gradients add up over `forward_backward` calls until `optim_step`.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from rollout.engines.base import Probe
from rollout.types import PolicyVersion
from trainer.batch import Datum
from trainer.losses import LossConfig


@dataclass(frozen=True)
class AdamParams:
    """Decoupled weight decay (arXiv 1711.05101); the gradient's norm is clipped first. Given anew with every step."""

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip_norm: float = 1.0  # 0 does not clip


@dataclass
class ForwardOutput:
    """What one pass over the data gave. `logprobs[i]` belongs to `data[i]`, has its length, and is 0 where the weight
    is 0 (the head is not computed there)."""

    logprobs: list[np.ndarray]
    loss: float  # the sum
    tokens: int  # trained: positions with a weight
    metrics: dict[str, float] = field(default_factory=dict)  # `name:sum` or `name:max`, as Tinker spells reductions


@dataclass(frozen=True)
class StepOutput:
    number: int  # optimizer steps taken so far
    grad_norm: float  # before clipping


@dataclass(frozen=True)
class Published:
    """Weights to act with: `state` is what `Engine.update_weights` takes."""

    version: PolicyVersion
    state: Any
    probe: Probe | None = None  # what an engine that serves them answers


class TrainingClient(Protocol):
    """Raises, from a future's `result()`: ValueError on data that the loss or the model cannot take."""

    def forward(self, data: list[Datum], loss: str = "cross_entropy", config: LossConfig | None = None) -> Future[ForwardOutput]:
        """Per-token logprobs and the loss, no gradient."""
        ...

    def forward_backward(self, data: list[Datum], loss: str, config: LossConfig | None = None) -> Future[ForwardOutput]:
        """The same, and the gradient of the sum is added to what is there."""
        ...

    def optim_step(self, params: AdamParams) -> Future[StepOutput]:
        """One update with the gradient so far, which is then forgotten."""
        ...

    def save_state(self, path: Path) -> Future[str]:
        """Weights and optimizer into the folder `path`; returns the weights' checksum."""
        ...

    def load_state(self, path: Path) -> Future[str]:
        """Back to what `save_state` wrote; returns the weights' checksum. Raises: StoreError where a file is damaged."""
        ...

    def load_weights(self, folder: Path) -> Future[str]:
        """The weights of a saved policy; the optimizer begins anew, the count of steps goes on. Returns the checksum.

        Raises: UserError where the folder is missing or damaged, ValueError where the weights do not fit."""
        ...

    def publish(self, kind: Literal["full", "lora"] = "full") -> Future[Published]:
        """The weights as they are now, copied, under a version that is never used again."""
        ...

    def close(self) -> None: ...
