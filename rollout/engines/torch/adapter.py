"""LoRA adapters in peft's format: read, written, and merged into the weights below them.

A folder holds `adapter_config.json` and `adapter_model.safetensors` (bf16), and names the model that it was trained on;
peft and vLLM read the same. Merging is exact arithmetic as far as float32 goes: factors are bf16, their products and
sums are made in float64 and rounded once, so that the same adapter on the same base gives the same weights, bit for
bit, on any machine and any count of threads. That is how an adapter's policy version keeps its checksum.

LoRA: Hu et al. 2021, arXiv 2106.09685. W + (alpha / rank) B A, with A [rank, in] and B [out, rank].
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from envfarm.caches import cache_dir
from envfarm.errors import CapabilityError, UserError
from rollout.engines.torch.checkpoint import CONFIG, WEIGHTS, load_state
from rollout.models import resolve_model

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KEPT = 4
"""How many merged folders stay in the cache: each is as large as its base."""

_PREFIX = "base_model.model."
_UNKNOWN = {"use_dora": False, "use_rslora": False, "bias": "none", "modules_to_save": None, "fan_in_fan_out": False,
            "rank_pattern": {}, "alpha_pattern": {}, "layers_to_transform": None}  # fmt: skip


@dataclass(frozen=True)
class Lora:
    """What an adapter changes: which projections of every layer, by matrices of which rank, how strongly."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def to_peft(self, base: str) -> dict[str, Any]:
        """`adapter_config.json`."""
        return {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": self.rank,
            "lora_alpha": self.alpha, "target_modules": list(self.targets), "lora_dropout": 0.0, "inference_mode": True,
            "init_lora_weights": True, **_UNKNOWN,
        }  # fmt: skip

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], where: str) -> Lora:
        """Raises: CapabilityError naming what of peft's this reading does not know, UserError where keys are missing."""
        if config.get("peft_type") != "LORA":
            raise CapabilityError(f"{where}: an adapter of type {config.get('peft_type')!r}; only LORA can be merged here")
        strange = [k for k, plain in _UNKNOWN.items() if config.get(k, plain) not in (plain, None)]
        targets = config.get("target_modules")
        if strange or not isinstance(targets, list) or not set(targets) <= set(TARGETS):
            said = ", ".join(strange) or f"target_modules: {targets!r}"
            raise CapabilityError(f"{where}: {said} cannot be merged here; plain LoRA on {', '.join(TARGETS)} can")
        if not isinstance(config.get("r"), int) or "lora_alpha" not in config:
            raise UserError(f"{where}: damaged: `r` and `lora_alpha` were expected")
        return cls(config["r"], float(config["lora_alpha"]), tuple(t for t in TARGETS if t in targets))


def factor_names(weight: str) -> tuple[str, str]:
    """`model.layers.0.self_attn.q_proj.weight` -> what peft calls its A and B."""
    stem = _PREFIX + weight.removesuffix(".weight")
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


def targets_in(state: Mapping[str, Any], lora: Lora) -> list[str]:
    """The names of the weights that the adapter changes, in the order of `state`."""
    return [n for n in state if n.removesuffix(".weight").rpartition(".")[2] in lora.targets and ".layers." in n]


def merge(base: Mapping[str, Tensor], lora: Lora, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The base's weights with the adapter in them, float32. What it does not change is shared with `base`, not copied.

    Raises: ValueError on factors that are missing, unknown, or of shapes that do not fit.
    """
    out, known = dict(base), set()
    for name in targets_in(base, lora):
        a, b = factor_names(name)
        if a not in tensors or b not in tensors:
            raise ValueError(f"the adapter has no {a if a not in tensors else b}")
        A, B, weight = tensors[a], tensors[b], base[name]
        if A.shape != (lora.rank, weight.shape[1]) or B.shape != (weight.shape[0], lora.rank):
            raise ValueError(
                f"{a} is {tuple(A.shape)} and B {tuple(B.shape)}; {tuple(weight.shape)} at rank {lora.rank} was expected"
            )
        known |= {a, b}
        # A product of two bf16 numbers is exact in float64, and so is a sum of a few: no order of adding can matter.
        out[name] = (weight.double() + (B.double() @ A.double()).mul_(lora.scale)).float()
    unknown = sorted(set(tensors) - known)
    if unknown:
        raise ValueError(f"the adapter has {unknown[0]}, for which the model has no place")
    return out


def write_adapter(folder: Path, lora: Lora, tensors: Mapping[str, Tensor], base: str) -> None:
    """bf16; each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f".{ADAPTER_WEIGHTS}.new"
    save_file({k: v.detach().to(torch.bfloat16).contiguous() for k, v in tensors.items()}, weights, metadata={"format": "pt"})
    os.replace(weights, folder / ADAPTER_WEIGHTS)
    text = folder / f".{ADAPTER_CONFIG}.new"
    text.write_text(json.dumps(lora.to_peft(base), indent=2) + "\n")
    os.replace(text, folder / ADAPTER_CONFIG)


@dataclass(frozen=True)
class AdapterFolder:
    lora: Lora
    tensors: dict[str, Tensor]
    base: str  # as `resolve_model` takes it


def read_adapter(folder: Path) -> AdapterFolder:
    """Raises: UserError where a file is missing or damaged, CapabilityError where it is no plain LoRA."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{folder}: damaged adapter ({error}); {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} were expected") from None
    lora = Lora.from_peft(config, str(folder / ADAPTER_CONFIG))
    return AdapterFolder(lora, tensors, str(config.get("base_model_name_or_path") or ""))


def merged_folder(folder: Path) -> Path:
    """A model folder in the cache with the adapter's base and the adapter in it, made where it is not there yet.

    Raises: UserError where the adapter is damaged, its base is not here (what to type), or the two do not fit.
    """
    base = resolve_model(read_adapter(folder).base, what=f"the base of the adapter {folder}, model")
    if (base / ADAPTER_CONFIG).is_file():  # an adapter trained on top of an adapter
        base = merged_folder(base)
    place = cache_dir() / "merged"
    target = place / _identity(folder, base)
    if (target / CONFIG).is_file():
        os.utime(target)
        return target
    adapter = read_adapter(folder)
    try:
        state = merge(load_state(base), adapter.lora, adapter.tensors)
    except ValueError as error:
        raise UserError(f"{folder}: the adapter does not fit {base}: {error}") from None
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=place) as scratch:
        draft = Path(scratch) / "folder"
        draft.mkdir()
        for file in base.iterdir():
            if file.is_file() and not file.name.endswith((".safetensors", ".index.json")):
                shutil.copyfile(file, draft / file.name)
        if (folder / "envfarm.json").is_file():  # whose weights they are, and how they are spoken to
            shutil.copyfile(folder / "envfarm.json", draft / "envfarm.json")
        save_file({k: v.contiguous() for k, v in state.items()}, draft / WEIGHTS, metadata={"format": "pt"})
        try:
            os.rename(draft, target)
        except OSError:
            if not (target / CONFIG).is_file():  # else somebody made the same meanwhile
                raise
    _prune(place)
    return target


def _identity(folder: Path, base: Path) -> str:
    """Of the adapter's bytes and of the base as it lies there."""
    digest = hashlib.sha256()
    for file in (folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS, folder / "envfarm.json"):
        digest.update(file.read_bytes() if file.is_file() else b"")
    for file in sorted(base.glob("*.safetensors")):
        said = file.stat()
        digest.update(f"{file.resolve()}\x1f{said.st_size}\x1f{said.st_mtime_ns}\x1f".encode())
    return digest.hexdigest()[:24]


def _prune(place: Path) -> None:
    """The folders used longest ago go."""
    folders = sorted((f for f in place.iterdir() if not f.name.startswith(".")), key=lambda f: f.stat().st_mtime)
    for old in folders[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
