"""The shape of a decoder, and how it is written as a Hugging Face `config.json` of the Qwen3 or the Llama family."""

from __future__ import annotations

from typing import Any

import msgspec

from envfarm.errors import CapabilityError, UserError

ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
"""The families that are one decoder: with normed queries and keys (Qwen3), and without (Llama)."""


NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder with RMSNorm, rotary positions, grouped queries and SwiGLU; queries and keys are normed in `qwen3`."""

    vocab: int = 512
    width: int = 96
    layers: int = 3
    heads: int = 4
    kv_heads: int = 1  # one head of keys and values for all: half the attention time of two when sampling
    head_dim: int = 32  # 32 and 64 are also what vLLM's CPU kernels take
    ffn: int = 256
    max_len: int = 512  # tokens of context
    tie: bool = True  # the output head is the embedding
    rope_theta: float = 10_000.0
    eps: float = 1e-6
    family: str = "qwen3"  # or llama

    def __post_init__(self) -> None:
        """Raises: UserError on sizes that make no decoder."""
        for name in ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "ffn", "max_len"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}; a positive whole number was expected")
        if self.family not in ARCHITECTURES:
            raise UserError(f"model.family is {self.family!r}; expected one of: {', '.join(ARCHITECTURES)}")
        if self.heads % self.kv_heads:
            raise UserError(f"model.heads ({self.heads}) must be a multiple of model.kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise UserError(f"model.head_dim is {self.head_dim}; rotary positions need an even number")

    @property
    def qk_norm(self) -> bool:
        return self.family == "qwen3"

    def parameters(self) -> int:
        """How many weights the decoder has."""
        attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads) + 2 * self.head_dim * self.qk_norm
        layer = attention + 3 * self.width * self.ffn + 2 * self.width
        return self.layers * layer + self.width + self.vocab * self.width * (1 if self.tie else 2)

    def to_hf(self) -> dict[str, Any]:
        """`config.json` as Transformers and vLLM read it."""
        return {
            "architectures": [ARCHITECTURES[self.family]],
            "model_type": self.family,
            "vocab_size": self.vocab,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn,
            "max_position_embeddings": self.max_len,
            "rms_norm_eps": self.eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "tie_word_embeddings": self.tie,
            "attention_bias": False,
            "hidden_act": "silu",
            **({"use_sliding_window": False} if self.family == "qwen3" else {"mlp_bias": False}),
            "dtype": "float32",
            "torch_dtype": "float32",
        }

    @classmethod
    def from_hf(cls, config: dict[str, Any], where: str = "config.json") -> ModelConfig:
        """Read `config.json`. Raises: CapabilityError for a family that our decoder does not speak."""
        reasons = unsupported(config)
        if reasons:
            raise CapabilityError(f"{where}: our own decoder cannot run this model: {'; '.join(reasons)}")
        missing = [k for k in NEEDED if not isinstance(config.get(k), int)]
        if missing:
            raise UserError(f"{where}: damaged, it does not say {', '.join(missing)}; write or download the model again")
        rope = config.get("rope_parameters") or {}
        heads = config["num_attention_heads"]
        return cls(
            vocab=config["vocab_size"],
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            ffn=config["intermediate_size"],
            max_len=config["max_position_embeddings"],
            tie=config.get("tie_word_embeddings", False),
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
            eps=config.get("rms_norm_eps", 1e-6),
            family=config["model_type"],
        )


def unsupported(config: dict[str, Any]) -> list[str]:
    """Why a Hugging Face config is not one of our decoders; empty where it is."""
    reasons = []
    if config.get("model_type") not in ARCHITECTURES:
        reasons.append(f"model_type is {config.get('model_type')!r}, not {' or '.join(map(repr, ARCHITECTURES))}")
    if config.get("quantization_config"):
        reasons.append("its weights are quantized")
    rope = (config.get("rope_parameters") or config.get("rope_scaling") or {}).get("rope_type", "default")
    if rope != "default":
        reasons.append(f"rope_type is {rope!r}, not 'default'")
    if config.get("use_sliding_window"):
        reasons.append("it uses a sliding window")
    if config.get("attention_bias"):
        reasons.append("its attention has biases")
    if config.get("mlp_bias"):
        reasons.append("its feed-forward layers have biases")
    if config.get("hidden_act", "silu") != "silu":
        reasons.append(f"hidden_act is {config['hidden_act']!r}, not 'silu'")
    return reasons
