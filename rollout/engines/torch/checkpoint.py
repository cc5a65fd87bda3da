"""Weights on disk and their identity.

A folder is what Hugging Face writes: `config.json` and `model.safetensors`. The checksum covers names, shapes, types
and bytes, so that equal weights have equal checksums wherever they were made.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from envfarm.errors import UserError
from rollout.engines.torch.config import ModelConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def checksum(state: Mapping[str, Tensor]) -> str:
    """64 hex digits over names in sorted order, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\x1f{tuple(tensor.shape)}\x1f{tensor.dtype}\x1f".encode())
        digest.update(tensor.flatten().view(dtype=torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight of a decoder, as Hugging Face names them."""
    c = config
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c.vocab, c.width)}
    for i in range(c.layers):
        at = f"model.layers.{i}."
        out |= {
            f"{at}input_layernorm.weight": (c.width,),
            f"{at}self_attn.q_proj.weight": (c.heads * c.head_dim, c.width),
            f"{at}self_attn.k_proj.weight": (c.kv_heads * c.head_dim, c.width),
            f"{at}self_attn.v_proj.weight": (c.kv_heads * c.head_dim, c.width),
            f"{at}self_attn.o_proj.weight": (c.width, c.heads * c.head_dim),
            f"{at}post_attention_layernorm.weight": (c.width,),
            f"{at}mlp.gate_proj.weight": (c.ffn, c.width),
            f"{at}mlp.up_proj.weight": (c.ffn, c.width),
            f"{at}mlp.down_proj.weight": (c.width, c.ffn),
        }
        if c.qk_norm:
            out |= {f"{at}self_attn.{name}_norm.weight": (c.head_dim,) for name in ("q", "k")}
    out["model.norm.weight"] = (c.width,)
    if not c.tie:
        out["lm_head.weight"] = (c.vocab, c.width)
    return out


def fit(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """`state` as the decoder of `config` wants it; a tied head's copy is dropped.

    Raises: ValueError naming what is missing, unknown or of another shape.
    """
    given = {k: v for k, v in state.items() if not (config.tie and k == "lm_head.weight")}
    wanted = shapes(config)
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    wrong = [f"{k} is {tuple(given[k].shape)}, not {s}" for k, s in wanted.items() if k in given and given[k].shape != s]
    problems = [f"{what}: {', '.join(names[:3])}" for what, names in (("missing", missing), ("unknown", unknown)) if names]
    if problems or wrong:
        raise ValueError("weights do not fit the decoder: " + "; ".join(problems + wrong[:3]))
    return given


def save_model(folder: str | Path, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """Write the folder; each file appears whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    weights = folder / f".{WEIGHTS}.new"
    save_file(tensors, weights, metadata={"format": "pt"})
    os.replace(weights, folder / WEIGHTS)
    text = folder / f".{CONFIG}.new"
    text.write_text(json.dumps(config.to_hf(), indent=2) + "\n")
    os.replace(text, folder / CONFIG)


def read_config(folder: str | Path) -> dict[str, Any]:
    """`config.json` of a model folder. Raises: UserError where there is none or it is no JSON object."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"no model in {folder}: {CONFIG} is missing there; give a folder written by `save`") from None
    except json.JSONDecodeError as e:
        raise UserError(f"{path}: not JSON: {e}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: a JSON object was expected, not {type(config).__name__}")
    return config


def load_config(folder: str | Path) -> ModelConfig:
    """Raises: UserError as `read_config`, CapabilityError where the family is not ours."""
    return ModelConfig.from_hf(read_config(folder), str(Path(folder) / CONFIG))


def load_state(folder: str | Path) -> dict[str, Tensor]:
    """Every weight of a folder, shards included. Raises: UserError where a file is missing or damaged."""
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"no weights in {folder}: a file {WEIGHTS} was expected there")
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            state |= load_file(file)
        except (SafetensorError, OSError) as e:
            raise UserError(f"{file}: damaged weights ({e}); write or download the model again") from None
    return state
