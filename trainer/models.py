"""The learner: from `model:` in a run file to a decoder, its tokenizer and its renderer, and to a folder on disk.

A policy's folder is what `envfarm eval` and Hugging Face read: `model.safetensors`, `config.json`, `tokenizer.json`,
and `envfarm.json` (renderer, version, sampling, and what it was evaluated on, so that the figures can be had again).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from envfarm.errors import RunFileError, did_you_mean
from envfarm.seeding import derive_seed
from rollout.build import ABOUT, make_renderer
from rollout.engines.torch.config import ModelConfig
from rollout.engines.torch.model import Decoder
from rollout.renderers.base import Renderer
from rollout.run import ModelInit, PolicyEntry
from rollout.tokenizers import BPETokenizer, HFTokenizer
from rollout.types import Episode
from trainer.checkpoint import write_atomically

MODELS: dict[str, dict[str, int]] = {
    "tiny": {"vocab": 512, "width": 96, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 32, "ffn": 256, "max_len": 1024},
}
"""Names in `model:`; `{init: {...}}` gives the same keys. Their tokenizer is trained from the run's logs."""


def is_fresh(entry: PolicyEntry) -> bool:
    """Whether the model is made from nothing, tokenizer included."""
    return isinstance(entry.model, ModelInit) or entry.model in MODELS


def fresh_config(entry: PolicyEntry, vocab: int | None = None) -> ModelConfig:
    """Raises: RunFileError on sizes that are unknown or make no decoder."""
    given = entry.model.init if isinstance(entry.model, ModelInit) else MODELS[str(entry.model)]
    unknown = [k for k in given if k not in ModelConfig.__struct_fields__]
    if unknown:
        known = ", ".join(ModelConfig.__struct_fields__)
        hint = did_you_mean(unknown[0], ModelConfig.__struct_fields__)
        raise RunFileError(f"model.init: unknown key {unknown[0]!r}{hint}; known: {known}")
    sizes: dict[str, Any] = {**MODELS["tiny"], **given}
    if vocab is not None:
        sizes["vocab"] = vocab
    try:
        return msgspec.convert(sizes, ModelConfig)
    except msgspec.ValidationError as error:
        raise RunFileError(f"model.init: {error}") from None


def train_tokenizer(entry: PolicyEntry, episodes: Iterable[Episode]) -> BPETokenizer:
    """From what was shown and said in the logs."""
    texts: list[str] = []
    for episode in episodes:
        for step in episode.steps:
            texts += [step.observation, step.action]
    return BPETokenizer.train(texts, vocab_size=fresh_config(entry).vocab)


def load_tokenizer(folder: Path) -> HFTokenizer:
    return HFTokenizer(folder)


def renderer_of(entry: PolicyEntry, tokenizer: HFTokenizer) -> Renderer:
    return make_renderer(entry.renderer or ("compact" if is_fresh(entry) else "chatml"), tokenizer)


def make_model(entry: PolicyEntry, tokenizer: HFTokenizer, seed: int) -> Decoder:
    """Fresh weights from the run's seed, or those of a folder. Raises: UserError."""
    if is_fresh(entry):
        return Decoder(fresh_config(entry, tokenizer.vocab_size), seed=derive_seed("model", seed) % 2**31)
    return Decoder.load(str(entry.model))


def save_policy(folder: Path, model: Decoder, tokenizer: HFTokenizer, about: dict[str, Any]) -> None:
    """Every file appears whole or not at all; `envfarm.json` last."""
    model.save(folder)
    tokenizer.save(folder)
    write_atomically(folder / ABOUT, (json.dumps(about, indent=1) + "\n").encode())
