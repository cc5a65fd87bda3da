"""The weights that a TRL trainer holds, behind our engines: what `make_rollout_func` samples with.

Without vLLM the embedded engine serves a copy of them, renewed with every call. With `vllm_mode="server"` the trainer's
own client asks the server that it keeps in step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from envfarm.errors import CapabilityError, InfraError, UserError
from rollout.engines.base import Capabilities, Generation
from rollout.engines.torch.checkpoint import CONFIG, WEIGHTS, checksum
from rollout.engines.torch.engine import TorchEngine
from rollout.types import PolicyVersion, SamplingParams

LEARNER = "learner"


def weights(trainer: Any) -> dict[str, Tensor]:
    """The trainer's weights as Hugging Face names them, copied, float32, on the CPU; adapters merged in."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapted = hasattr(model, "merge_adapter")
    if adapted:
        model.merge_adapter()
    try:
        state = trainer.accelerator.get_state_dict(trainer.model)
        return {_plain(k): v.detach().float().cpu().clone() for k, v in state.items() if _is_base(k)}
    finally:
        if adapted:
            model.unmerge_adapter()


def _is_base(name: str) -> bool:
    return "lora_" not in name and ".modules_to_save." not in name and "original_module" not in name


def _plain(name: str) -> str:
    """What peft wraps is called `base_model.model.X.base_layer.weight`."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def base_config(trainer: Any) -> Any:
    model = trainer.accelerator.unwrap_model(trainer.model)
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).config


def model_folder(trainer: Any, folder: Path) -> PolicyVersion:
    """Write config, weights and tokenizer as Hugging Face does.

    Raises: UserError where the tokenizer has no `tokenizer.json` (a slow one) or the model fewer rows than it has ids.
    """
    state = weights(trainer)
    config, tokenizer = base_config(trainer), trainer.processing_class
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} ids and the model {config.vocab_size}: they do not belong together, or "
            "tokens were added without `model.resize_token_embeddings(len(tokenizer))`"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{type(tokenizer).__name__} is no fast tokenizer; renderers need its tokenizer.json")
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    assert (folder / CONFIG).is_file()
    return PolicyVersion(LEARNER, 0, trainer.state.global_step, checksum(state))


def make_engine(trainer: Any, folder: Path, version: PolicyVersion, *, max_in_flight: int) -> Any:
    """What samples for this trainer. Raises: CapabilityError for vLLM inside the trainer's process."""
    if not getattr(trainer, "use_vllm", False):
        return TorchEngine({LEARNER: folder}, max_in_flight=max_in_flight, versions={LEARNER: version})
    if trainer.vllm_generation.mode != "server":
        raise CapabilityError(
            'vLLM inside the trainer (`vllm_mode="colocate"`) answers one batch at a time, and episodes are at different '
            'turns; use `vllm_mode="server"`, or leave out `use_vllm`'
        )
    context = int(base_config(trainer).max_position_embeddings)
    return ServerEngine(trainer.vllm_generation.vllm_client, version, context=context)


class ServerEngine:
    """TRL's client of its vLLM server as an engine. The trainer sends the weights; we are told which they are."""

    def __init__(self, client: Any, version: PolicyVersion, *, context: int = 0):
        self.client, self.version = client, version
        self.capabilities = Capabilities(token_ids=True, logprobs=True, seeds=True, versions=True, context=context)

    async def start(self) -> None:
        pass

    async def generate(self, prompt_ids: list[int], params: SamplingParams, *, policy: str, session: str = "") -> Generation:
        extra = {"seed": params.seed & 0x7FFF_FFFF, "stop_token_ids": list(params.stop_ids), "skip_special_tokens": False}
        try:
            said = await asyncio.to_thread(
                self.client.generate, prompts=[prompt_ids], n=1, temperature=params.temperature, top_p=params.top_p,
                max_tokens=params.max_tokens, logprobs=0, generation_kwargs=extra,
            )  # fmt: skip
        except (OSError, RuntimeError) as error:
            raise InfraError(f"the trainer's vLLM server failed: {error}") from error
        ids, logprobs = said["completion_ids"][0], [top[0] for top in said["logprobs"][0]]
        stopped = bool(ids) and ids[-1] in params.stop_ids
        return Generation(list(ids), logprobs, "stop" if stopped else "length", self.version)

    async def update_weights(self, version: PolicyVersion, state: Mapping[str, Tensor]) -> None:
        self.version = version

    async def close(self) -> None:
        pass
