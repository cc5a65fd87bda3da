"""A LoRA adapter as the folder that vLLM (and peft) reads."""

from __future__ import annotations

import json
from pathlib import Path

from rollout.engines.base import Adapter


def write_adapter(folder: Path, adapter: Adapter) -> Path:
    """`adapter_config.json` and `adapter_model.safetensors`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(dict(adapter.config), indent=1) + "\n")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
