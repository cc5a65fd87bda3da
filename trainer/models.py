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
from rollout.build import ABOUT, ModelFolder, make_renderer, renderer_for
from rollout.engines.torch.adapter import TARGETS, Lora
from rollout.engines.torch.config import ModelConfig
from rollout.engines.torch.model import Decoder
from rollout.renderers.base import Renderer
from rollout.run_policies import ModelInit, PolicyEntry
from rollout.tokenizers import BPETokenizer, HFTokenizer, check_tokenizer
from rollout.types import Episode
from trainer.checkpoint import write_atomically
from trainer.weights import Trained, trained

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


def model_folder(entry: PolicyEntry) -> Path:
    """Where the model lies that is trained further. Raises: UserError where it is nowhere (what to type)."""
    return ModelFolder.open(str(entry.model)).path


def load_tokenizer(folder: Path) -> HFTokenizer:
    return check_tokenizer(HFTokenizer(folder), folder)


def renderer_of(entry: PolicyEntry, tokenizer: HFTokenizer) -> Renderer:
    """The one named, else `compact` for a fresh model, else the one of the model's chat template. Raises: UserError."""
    if is_fresh(entry):
        return make_renderer(entry.renderer or "compact", tokenizer)
    said = ModelFolder.open(str(entry.model))
    return renderer_for(entry.renderer or said.about.get("renderer"), tokenizer, said.path)


def make_model(entry: PolicyEntry, tokenizer: HFTokenizer, seed: int) -> Trained:
    """Fresh weights from the run's seed, or those of a folder; and what of them is trained. Raises: UserError."""
    own = derive_seed("model", seed) % 2**31
    if is_fresh(entry):
        model = Decoder(fresh_config(entry, tokenizer.vocab_size), seed=own)
    else:
        model = Decoder.load(model_folder(entry))
    lora = entry.train.lora
    shape = None if lora is None else Lora(lora.rank, lora.alpha, tuple(t for t in TARGETS if t in lora.targets))
    return trained(model, dtype=entry.train.dtype, lora=shape, base=base_name(entry), seed=own)


def base_name(entry: PolicyEntry) -> str:
    """What an adapter calls its base: a name where the model has one, else the folder's place."""
    said = str(entry.model)
    return str(Path(said).resolve()) if Path(said).is_dir() else said


def save_policy(folder: Path, model: Trained, tokenizer: HFTokenizer, about: dict[str, Any]) -> None:
    """An adapter where one is trained, else a model folder. Files appear whole or not at all; `envfarm.json` last."""
    if model.save_policy(folder):
        tokenizer.save(folder)
    write_atomically(folder / ABOUT, (json.dumps(about, indent=1) + "\n").encode())


def save_model_folder(folder: Path, model: Trained, tokenizer: HFTokenizer, about: dict[str, Any]) -> None:
    """The whole model, whatever of it is trained."""
    model.save(folder)
    tokenizer.save(folder)
    write_atomically(folder / ABOUT, (json.dumps(about, indent=1) + "\n").encode())
