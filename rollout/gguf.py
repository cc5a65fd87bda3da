"""From a GGUF file of a Llama-like model to a Hugging Face folder: weights in float32, tokenizer, chat template.

GGUF differs from Hugging Face in three things that matter: weights are quantized in blocks (the package `gguf` knows
how to read them), rows of query and key projections are permuted for another way of rotating positions (undone here),
and the tokenizer is a list of tokens and merges, with a name for how text is cut before merging. Formats: the GGUF
specification, and `convert_hf_to_gguf.py` of llama.cpp, whose steps are taken backwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from envfarm.errors import MissingDependencyError, UserError

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_CONTROL = 3  # a token's type: never text


def require_gguf() -> Any:
    """Raises: MissingDependencyError."""
    try:
        import gguf
    except ImportError:
        raise MissingDependencyError("reading a GGUF file needs the package gguf: pip install 'envfarm[models]'") from None
    return gguf


def convert(path: Path, folder: Path, say: Callable[[str], None] = lambda line: None) -> None:
    """Write `folder`: config.json, model.safetensors, tokenizer.json, tokenizer_config.json, chat_template.jinja.

    Raises: UserError where the file is damaged or no model that is known here, MissingDependencyError.
    """
    from safetensors.numpy import save_file

    try:
        reader = require_gguf().GGUFReader(path)
        said = _Fields(reader, path)
        config = read_config(said)
        tokenizer, tokenizer_config, template = read_tokenizer(said)
        say("dequantizing to float32")
        weights = read_weights(reader, config, path)
    except (ValueError, IndexError, EOFError) as error:  # what numpy and the reader raise on bytes that are no GGUF
        raise UserError(f"{path}: damaged, or no GGUF file ({error}); fetch it again") from None
    say("writing the folder")
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", tokenizer_config)):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class _Fields:
    """The file's metadata by key. Raises: UserError naming a key that is not there."""

    def __init__(self, reader: Any, path: Path):
        self.reader, self.path = reader, path

    def __getitem__(self, key: str) -> Any:
        field = self.reader.get_field(key)
        if field is None:
            raise UserError(f"{self.path}: the GGUF file says nothing of {key}; a chat model of the Llama family was expected")
        return field.contents()

    def get(self, key: str, default: Any = None) -> Any:
        field = self.reader.get_field(key)
        return default if field is None else field.contents()


def read_config(said: _Fields) -> dict[str, Any]:
    """`config.json` as Hugging Face's Llama reads it. Raises: UserError for another family."""
    family = said["general.architecture"]
    if family != "llama":
        raise UserError(f"{said.path}: the model is of the family {family!r}; only 'llama' can be converted")
    shapes = {t.name: t.shape for t in said.reader.tensors}
    if "token_embd.weight" not in shapes:
        raise UserError(f"{said.path}: the GGUF file holds no token_embd.weight; a chat model of the Llama family was expected")
    places = int(shapes["token_embd.weight"][1])  # may be more than there are tokens
    width, heads = said["llama.embedding_length"], said["llama.attention.head_count"]
    theta = float(said.get("llama.rope.freq_base", 10_000.0))
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": places, "hidden_size": width,
        "num_hidden_layers": said["llama.block_count"], "num_attention_heads": heads,
        "num_key_value_heads": said.get("llama.attention.head_count_kv", heads), "head_dim": width // heads,
        "intermediate_size": said["llama.feed_forward_length"], "max_position_embeddings": said["llama.context_length"],
        "rms_norm_eps": float(f"{said['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": "output.weight" not in shapes,
        "attention_bias": False, "mlp_bias": False, "dtype": "float32", "torch_dtype": "float32",
        "bos_token_id": said.get("tokenizer.ggml.bos_token_id"), "eos_token_id": said.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": said.get("tokenizer.ggml.padding_token_id"),
    }  # fmt: skip


def read_weights(reader: Any, config: dict[str, Any], path: Path) -> dict[str, np.ndarray]:
    """Name -> float32 array, as Hugging Face names and lays them out. Raises: UserError on a tensor that is unknown."""
    from gguf.quants import dequantize

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights: dict[str, np.ndarray] = {}
    for tensor in reader.tensors:
        name = hf_name(tensor.name)
        if name is None:
            raise UserError(f"{path}: unknown tensor {tensor.name!r}; weights of a Llama were expected")
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        part = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
        if part in heads:
            values = unpermuted(values, heads[part])
        weights[name] = np.ascontiguousarray(values)
    return weights


def hf_name(name: str) -> str | None:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; None for what has no place."""
    if name in _TOP:
        return _TOP[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER and parts[3] == "weight":
        return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.weight"
    return None


def unpermuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """[heads * D, W], rows of each head from pairs (0, D/2, 1, D/2 + 1, ...) back to halves."""
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


_DIGITS_APART = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})
"""Names of pre-tokenizers that cut each digit off before cutting as GPT-2 does (llama.cpp, `llama-vocab.cpp`)."""


def read_tokenizer(said: _Fields) -> tuple[dict[str, Any], dict[str, Any], str]:
    """`tokenizer.json`, `tokenizer_config.json`, chat template. Raises: UserError where text is cut in an unknown way."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind, cut = said["tokenizer.ggml.model"], said.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or cut not in _DIGITS_APART | {"gpt-2"}:
        raise UserError(
            f"{said.path}: its tokenizer ({kind}, {cut}) is not known here; known: gpt2 with {', '.join(sorted(_DIGITS_APART))}"
        )
    tokens, types = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    merges = [tuple(m.split(" ", 1)) for m in said["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if cut in _DIGITS_APART else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, of in zip(tokens, types, strict=True) if of == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    names = {f"{k}_token": said.get(f"tokenizer.ggml.{long}_token_id") for k, long in
             (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))}  # fmt: skip
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "add_prefix_space": False,
        "model_max_length": said["llama.context_length"], **{k: tokens[i] for k, i in names.items() if i is not None},
    }  # fmt: skip
    return json.loads(tokenizer.to_str()), config, said.get("tokenizer.chat_template", "")
