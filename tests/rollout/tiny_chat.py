"""A chat model small enough for a test: a random Llama with a tokenizer, a ChatML template and a folder; and the same as GGUF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rollout.tokenizers import BPETokenizer

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind."
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As SmolLM2's: a system message of its own where there is none, earlier turns never rewritten."""


def tokenizer() -> BPETokenizer:
    return BPETokenizer.train(["lamp 12 is on, lamp 3 is off\n", "press 3\n", "Which lamp?\n"] * 3, vocab_size=300)


def llama(seed: int = 0, *, vocab: int = 300, tie: bool = True, width: int = 32, context: int = 512) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=context, tie_word_embeddings=tie, initializer_range=0.2,
        rope_theta=20_000.0, rms_norm_eps=1e-5,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
        for name, weight in model.named_parameters():  # norms that are all ones would hide a mistake
            if "norm" in name:
                weight.data.uniform_(0.5, 1.5)
    return model


def chat_folder(folder: Path, seed: int = 0) -> Path:
    """What Hugging Face's `save_pretrained` of model and tokenizer would write."""
    llama(seed).save_pretrained(folder)
    tokenizer().save(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def write_gguf(path: Path, model: LlamaForCausalLM, *, architecture: str = "llama") -> None:
    """As llama.cpp's converter does: rows of queries and keys permuted; the embedding quantized, the rest float32."""
    import gguf

    c, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    spoken = tokenizer()
    tokens = [spoken._full.id_to_token(i) for i in range(spoken.vocab_size)]
    specials = set(spoken._specials)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in specials else 1 for t in tokens])
    writer.add_token_merges([" ".join(m) for m in spoken._document["model"]["merges"]])
    writer.add_eos_token_id(spoken.special("<|im_end|>"))
    writer.add_chat_template(TEMPLATE)
    names = {"embed_tokens": "token_embd", "norm": "output_norm", "input_layernorm": "attn_norm", "q_proj": "attn_q",
             "post_attention_layernorm": "ffn_norm", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
             "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down", "lm_head": "output"}  # fmt: skip
    heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}
    for name, tensor in state.items():
        if c.tie_word_embeddings and name == "lm_head.weight":
            continue
        parts, weight = name.split("."), tensor.numpy()
        what = parts[-2]
        if what in heads:
            weight = weight.reshape(heads[what], 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        block = f"blk.{parts[2]}." if "layers" in parts else ""
        if what == "embed_tokens":
            data = gguf.quants.quantize(weight.astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{block}{names[what]}.weight", data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(f"{block}{names[what]}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
