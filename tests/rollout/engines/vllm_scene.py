"""Two small models of each kind, and what they make of tokens: what an engine that serves them must answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from envfarm.seeding import generator
from rollout.engines.torch.checkpoint import checksum
from rollout.engines.torch.config import ModelConfig
from rollout.engines.torch.model import Decoder
from rollout.types import PolicyVersion

VOCAB = 300
KINDS = ("tied", "untied")


def decoder(kind: str, seed: int) -> Decoder:
    """Initialised by `seed` alone, so that two seeds are two independent models."""
    sizes = {"vocab": VOCAB, "width": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 32, "ffn": 96, "max_len": 1024}
    return Decoder(ModelConfig(**sizes, tie=kind == "tied"), seed=seed)


MODELS = {(kind, n): decoder(kind, n) for kind in KINDS for n in (0, 1)}
"""(kind, parity of the update): 0 is what an engine starts with."""

PROMPT = generator("vllm", "prompt").integers(0, VOCAB, size=140).tolist()  # more than one block of vLLM's cache
PROBE = generator("vllm", "probe").integers(0, VOCAB, size=48).tolist()


def folders(below: Path) -> dict[str, Path]:
    """A model folder for each kind, named as its policy."""
    for kind in KINDS:
        MODELS[kind, 0].save(below / kind)
    return {kind: below / kind for kind in KINDS}


def version_of(kind: str, number: int) -> PolicyVersion:
    return PolicyVersion(kind, 0, number, checksum(MODELS[kind, number % 2].state_dict()))


def forward(model: Decoder, token_ids: list[int], temperature: float = 1.0) -> np.ndarray:
    """Logprobs `[T - 1, V]` of what follows each token."""
    with torch.inference_mode():
        logits = model(torch.tensor(token_ids), torch.tensor([0, len(token_ids)]))[:-1]
        return torch.log_softmax(logits / temperature, dim=-1).numpy()


def teacher(model: Decoder, token_ids: list[int], temperature: float = 1.0) -> np.ndarray:
    """Logprobs of `token_ids[1:]`."""
    return forward(model, token_ids, temperature)[np.arange(len(token_ids) - 1), token_ids[1:]]


def apart(one: object, other: object) -> float:
    """The largest difference."""
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())
