"""`TrainingClient` in this process, over the packed decoder of the embedded engine.

Which weights are trained and in which type the decoder computes is `trainer.weights`; the optimizer's are float32.
Calls run in order on one thread of their own, so a loop that rolls out meanwhile is not held up. Micro-batches are
spread over single-threaded workers and their gradients added in a fixed order: the same calls give the same bits
(`checksum`) whatever the count of workers. A machine with another instruction set may still round differently.
"""

from __future__ import annotations

import json
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from envfarm.errors import CapabilityError, StoreError
from rollout.engines.base import Adapter
from rollout.engines.torch.checkpoint import checksum
from rollout.engines.torch.model import Decoder
from rollout.types import PolicyVersion
from trainer.batch import Datum, MicroBatch, micro_batches
from trainer.client import AdamParams, ForwardOutput, Published, StepOutput
from trainer.losses import LossConfig, apply_loss
from trainer.probes import probe_of
from trainer.weights import Adapted, Trained
from trainer.workers import Workers, single_threaded_pool

_WEIGHTS, _OPTIMIZER, _STATE = "weights.safetensors", "optimizer.safetensors", "client.json"


@dataclass(frozen=True)
class Done:
    """One micro-batch, computed."""

    logprobs_N: np.ndarray
    loss: float
    statistics: dict[str, Tensor]
    gradients: tuple[Tensor, ...]


LARGE, LARGE_TOKENS = 20_000_000, 640
"""Of decoders with more weights than this, a micro-batch is smaller: its activations take megabytes a token."""


class LocalClient:
    """Trains `model` in place; a plain decoder is trained as a whole."""

    def __init__(
        self, model: Decoder | Trained, *, policy: str = "learner", incarnation: int = 0, max_tokens: int = 0, threads: int = 0
    ):
        """`max_tokens` bounds one micro-batch: memory, and rounding in the last bits; 0 goes by the model's size.
        `threads` 0 is torch's count."""
        self.trained = model if isinstance(model, Trained) else Trained(model)
        self.model, self.policy, self.incarnation = self.trained.model, policy, incarnation
        self.max_tokens = max_tokens or (LARGE_TOKENS if self.model.config.parameters() > LARGE else 2560)
        self.number = 0  # steps since the weights were made: the version's number
        self._since = 0  # steps since the optimizer began, for its bias correction
        self._names, self._weights = self.trained.names, self.trained.masters
        self._moments = {k: [torch.zeros_like(p) for p in self._weights] for k in ("m", "v")}
        self._gradients: list[Tensor] | None = None
        self._pool = single_threaded_pool(1)
        self._workers = Workers(threads, large=sum(p.numel() for p in self._weights) > LARGE)

    def forward(self, data: list[Datum], loss: str = "cross_entropy", config: LossConfig | None = None) -> Future[ForwardOutput]:
        return self._pool.submit(self._pass, data, loss, config or LossConfig(), False)

    def forward_backward(self, data: list[Datum], loss: str, config: LossConfig | None = None) -> Future[ForwardOutput]:
        return self._pool.submit(self._pass, data, loss, config or LossConfig(), True)

    def optim_step(self, params: AdamParams) -> Future[StepOutput]:
        return self._pool.submit(self._update, params)

    def save_state(self, path: Path) -> Future[str]:
        return self._pool.submit(self._save, path)

    def load_state(self, path: Path) -> Future[str]:
        return self._pool.submit(self._load, path)

    def load_weights(self, folder: Path) -> Future[str]:
        return self._pool.submit(self._take, folder)

    def publish(self, kind: Literal["full", "lora"] = "full") -> Future[Published]:
        if kind == "lora" and not isinstance(self.trained, Adapted):
            raise CapabilityError(f"the policy {self.policy!r} is trained as a whole: it has no adapter to publish")
        return self._pool.submit(self._publish, kind)

    def close(self) -> None:
        self._pool.shutdown()
        self._workers.close()

    # What runs on the trainer's thread.

    def _pass(self, data: list[Datum], loss: str, config: LossConfig, backward: bool) -> ForwardOutput:
        out = ForwardOutput([np.zeros(len(d), dtype=np.float32) for d in data], 0.0, 0)
        blocks = micro_batches(data, max_tokens=self.max_tokens, dtype=self._weights[0].dtype)
        for block, done in self._workers.spread(blocks, lambda b: self._block(b, loss, config, backward)):
            out.loss += done.loss
            out.tokens += len(done.logprobs_N)
            _add_up(out.metrics, done.statistics)
            for row, (start, stop, where) in zip(block.rows, block.bounds, strict=True):
                out.logprobs[row][where] = done.logprobs_N[start:stop]
            if done.gradients:
                if self._gradients is None:
                    self._gradients = [g.to(p.dtype) for g, p in zip(done.gradients, self._weights, strict=True)]
                else:
                    torch._foreach_add_(self._gradients, done.gradients)
        return out

    def _block(self, block: MicroBatch, loss: str, config: LossConfig, backward: bool) -> Done:
        with torch.set_grad_enabled(backward):
            logprobs_N = token_logprobs(self.model, block)
            terms = apply_loss(loss, block, logprobs_N, config)
            total = terms.loss_N.sum()
        gradients = torch.autograd.grad(total, self.trained.leaves) if backward else ()
        return Done(logprobs_N.detach().float().numpy(), float(total.detach()), terms.statistics, gradients)

    @torch.no_grad()
    def _update(self, params: AdamParams) -> StepOutput:
        gradients = self._gradients or [torch.zeros_like(p) for p in self._weights]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if params.grad_clip_norm > 0:
            torch._foreach_mul_(gradients, (params.grad_clip_norm / (norm + 1e-12)).clamp(max=1.0))
        self.number, self._since = self.number + 1, self._since + 1
        adam_step(self._weights, gradients, self._moments["m"], self._moments["v"], self._since, params)
        self.trained.changed()
        self._gradients = None
        return StepOutput(self.number, float(norm))

    def _publish(self, kind: str) -> Published:
        state = self.trained.state()
        version = PolicyVersion(self.policy, self.incarnation, self.number, checksum(state))
        probe = probe_of(self.model)
        if kind == "lora":
            assert isinstance(self.trained, Adapted)
            return Published(version, Adapter(self.trained.lora.to_peft(self.trained.base_name), self.trained.factors()), probe)
        return Published(version, state, probe)

    @torch.no_grad()
    def _take(self, folder: Path) -> str:
        self.trained.load(folder)
        for moments in self._moments.values():
            torch._foreach_zero_(moments)
        self._gradients, self._since = None, 0
        return checksum(self.trained.state())

    def _save(self, path: Path) -> str:
        path.mkdir(parents=True, exist_ok=True)
        state = self.trained.trained()
        save_file(state, path / _WEIGHTS)
        moments = {f"{k}.{n}": t for k, ts in self._moments.items() for n, t in zip(self._names, ts, strict=True)}
        save_file(moments, path / _OPTIMIZER)
        digest = checksum(state)
        said = {"number": self.number, "since": self._since, "checksum": digest, "base": self.trained.foundation()}
        (path / _STATE).write_text(json.dumps(said))
        return digest

    @torch.no_grad()
    def _load(self, path: Path) -> str:
        try:
            state, moments = load_file(path / _WEIGHTS), load_file(path / _OPTIMIZER)
            saved: dict[str, Any] = json.loads((path / _STATE).read_text())
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise StoreError(f"{path}: damaged checkpoint ({error}); remove the run directory to begin again") from None
        if checksum(state) != saved["checksum"]:
            raise StoreError(f"{path}/{_WEIGHTS}: the weights are not those that were saved (another checksum)")
        if saved.get("base", "") != self.trained.foundation():
            raise StoreError(f"{path}: the adapter was trained on another base; give the run its model as it was")
        self.trained.restore(state)
        for kind, tensors in self._moments.items():
            for name, tensor in zip(self._names, tensors, strict=True):
                tensor.copy_(moments[f"{kind}.{name}"])
        self.number, self._since, self._gradients = saved["number"], saved["since"], None
        return saved["checksum"]


def token_logprobs(model: Decoder, block: MicroBatch) -> Tensor:
    """log pi of each trained token, at the temperature that it was sampled with. The head runs on these only."""
    hidden_P = model.hidden(block.tokens_P, block.cu_seqlens)
    logits_N = model.logits(hidden_P.index_select(0, block.picks_N))
    if logits_N.dtype == torch.bfloat16:
        logits_N = logits_N.float()
    if not bool((block.temperature_N == 1).all()):
        logits_N = logits_N / block.temperature_N[:, None]
    return -torch.nn.functional.cross_entropy(logits_N, block.targets_N, reduction="none")


def adam_step(
    weights: list[Tensor], gradients: list[Tensor], m: list[Tensor], v: list[Tensor], number: int, params: AdamParams
) -> None:
    """AdamW in place: `number` counts from 1 and decides the bias correction (Kingma & Ba 2014, Loshchilov & Hutter 2017)."""
    if params.weight_decay:
        torch._foreach_mul_(weights, 1.0 - params.learning_rate * params.weight_decay)
    torch._foreach_lerp_(m, gradients, 1.0 - params.beta1)
    torch._foreach_mul_(v, params.beta2)
    torch._foreach_addcmul_(v, gradients, gradients, 1.0 - params.beta2)
    denominators = torch._foreach_sqrt(v)
    torch._foreach_div_(denominators, (1.0 - params.beta2**number) ** 0.5)
    torch._foreach_add_(denominators, params.eps)
    torch._foreach_addcdiv_(weights, m, denominators, -params.learning_rate / (1.0 - params.beta1**number))


def _add_up(totals: dict[str, float], statistics: dict[str, Tensor]) -> None:
    """Micro-batches into one: sums add, what is named `..._max` takes the maximum."""
    for name, value in statistics.items():
        if name.endswith("_max"):
            key = f"{name.removesuffix('_max')}:max"
            totals[key] = max(totals.get(key, 0.0), float(value))
        else:
            totals[f"{name}:sum"] = totals.get(f"{name}:sum", 0.0) + float(value)
