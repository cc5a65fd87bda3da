"""Tiny models and their tokenizers as Hugging Face folders. Imported inside the environment of TRL only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rollout.tokenizers import FILE, HFTokenizer

CHATML = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{% generation %}{{ m.content }}<|im_end|>"
    "{% endgeneration %}\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

QUIET: dict[str, Any] = {
    "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "dataloader_pin_memory": False, "logging_steps": 1,
    "disable_tqdm": True, "lr_scheduler_type": "constant", "seed": 7,
}  # fmt: skip


def fast_tokenizer(tokenizer: HFTokenizer, folder: Path, *, eos: str = "<|im_end|>", template: str = CHATML) -> Any:
    """Ours, as Transformers has it, saved."""
    tokenizer.save(folder)
    made = PreTrainedTokenizerFast(tokenizer_file=str(folder / FILE), eos_token=eos, pad_token="<|pad|>")
    made.chat_template = template
    made.save_pretrained(folder)
    return made


def tiny(family: str, vocab: int, folder: Path, *, seed: int = 0, length: int = 512, width: int = 32) -> Any:
    """A fresh model of one layer, saved: TRL loads references from a path."""
    sizes: dict[str, Any] = {
        "vocab_size": vocab, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": length,
        "tie_word_embeddings": True,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(Qwen3Config(**sizes)) if family == "qwen3" else LlamaForCausalLM(LlamaConfig(**sizes))
    model.save_pretrained(folder)
    return model


def losses(trainer: Any, key: str = "loss") -> list[float]:
    """As logged, step by step."""
    return [entry[key] for entry in trainer.state.log_history if key in entry]
