"""The decoder that we train: parameters are named as in Hugging Face's Qwen3 and Llama, so that Transformers and vLLM
load the same folder.

This file is the training side: sequences come packed (no padding), `hidden` gives the last states and `logits` the
head, only where asked for, because the head is the most expensive layer of a small model. Sampling does the same
arithmetic in another order (`kernels.py`); the two agree to float32 rounding.

Sequences that begin alike (the same system prompt, the same first observation) may share their beginning: it is computed
once and every sequence attends to it.

Shapes: N packed tokens, B sequences, T the longest of them, H heads, K kv heads, D head_dim, W width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rollout.engines.torch.config import ModelConfig


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Packing:
    """Where packed tokens sit once padded to `[B, T]`, and their rotary angles; made once per batch, not per layer.
    The first `shared` tokens are in no sequence: they stand before each."""

    def __init__(self, cu_seqlens: Tensor, positions: Tensor, config: ModelConfig):
        self.shared = int(cu_seqlens[0])
        cu_seqlens = cu_seqlens - self.shared
        lengths = cu_seqlens[1:] - cu_seqlens[:-1]
        self.batch, self.longest, self.tokens = len(lengths), int(lengths.max()), int(cu_seqlens[-1])
        row = torch.repeat_interleave(torch.arange(self.batch), lengths)
        column = torch.arange(self.tokens) - torch.repeat_interleave(cu_seqlens[:-1], lengths)
        self.index = row * self.longest + column  # [N]
        self.full = self.tokens == self.batch * self.longest
        angles = positions[:, None].double() * inverse_frequencies(config)  # [N, D/2]
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        self.cos, self.sin = angles.cos().float(), angles.sin().float()  # [N, 1, D]

    def pad(self, x: Tensor) -> Tensor:
        """[N, H, D] -> [B, H, T, D], zeros behind each sequence."""
        if not self.full:
            x = x.new_zeros(self.batch * self.longest, *x.shape[1:]).index_copy(0, self.index, x)
        return x.view(self.batch, self.longest, *x.shape[1:]).transpose(1, 2)

    def unpad(self, x: Tensor) -> Tensor:
        """[B, H, T, D] -> [N, H * D]."""
        x = x.transpose(1, 2).reshape(self.batch * self.longest, -1)
        return x if self.full else x.index_select(0, self.index)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`[N, H, D]` each -> `[N, H * D]`. Padding stands behind each sequence, so the causal mask alone hides it."""
        n = self.shared
        if n == 0:
            return self.unpad(F.scaled_dot_product_attention(self.pad(q), self.pad(k), self.pad(v), is_causal=True))
        first_q, first_k, first_v = (x[:n].transpose(0, 1)[None] for x in (q, k, v))
        first = F.scaled_dot_product_attention(first_q, first_k, first_v, is_causal=True)
        keys = torch.cat((first_k.expand(self.batch, -1, -1, -1), self.pad(k[n:])), dim=2)
        values = torch.cat((first_v.expand(self.batch, -1, -1, -1), self.pad(v[n:])), dim=2)
        sees = torch.ones(self.longest, n + self.longest, dtype=torch.bool).tril(n)
        rest = F.scaled_dot_product_attention(self.pad(q[n:]), keys, values, attn_mask=sees)
        return torch.cat((first[0].transpose(0, 1).flatten(1), self.unpad(rest)))

    def rotate(self, x: Tensor) -> Tensor:
        """By float32 angles, whatever the type of `x` [N, H, D]."""
        first, second = x.chunk(2, dim=-1)
        return (x * self.cos + torch.cat((-second, first), dim=-1) * self.sin).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config, c = config, config
        self.q_proj = nn.Linear(c.width, c.heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.width, c.kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.width, c.kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.width, bias=False)
        self.q_norm = RMSNorm(c.head_dim, c.eps) if c.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(c.head_dim, c.eps) if c.qk_norm else nn.Identity()

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        c = self.config
        q = packing.rotate(self.q_norm(self.q_proj(x).view(-1, c.heads, c.head_dim)))
        k = packing.rotate(self.k_norm(self.k_proj(x).view(-1, c.kv_heads, c.head_dim)))
        v = self.v_proj(x).view(-1, c.kv_heads, c.head_dim)
        groups = c.heads // c.kv_heads
        k, v = (t.repeat_interleave(groups, dim=1) if groups > 1 else t for t in (k, v))
        return self.o_proj(packing.attend(q, k, v))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.width, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), packing)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    """Everything below the head; its name in the state dict is `model`, as in Hugging Face."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.eps)


class Decoder(nn.Module):
    """A decoder over packed sequences.

    `seed` decides the initial weights alone; global random state is neither read nor changed.
    """

    def __init__(self, config: ModelConfig, seed: int = 0):
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):  # the constructors of nn draw from the global generator
            self.model = Trunk(config)
            self.lm_head = None if config.tie else nn.Linear(config.width, config.vocab, bias=False)
        self._initialise(torch.Generator().manual_seed(seed))

    def _initialise(self, generator: torch.Generator) -> None:
        """Normal with standard deviation 1/sqrt(fan in); projections back into the residual stream are smaller."""
        residual = (2 * self.config.layers) ** -0.5
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.ndim == 1:
                    weight.fill_(1.0)
                elif "embed" in name or "lm_head" in name:
                    weight.normal_(0.0, 0.5 / self.config.width**0.5, generator=generator)
                else:
                    scale = residual if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                    weight.normal_(0.0, scale * weight.shape[1] ** -0.5, generator=generator)

    def hidden(self, tokens: Tensor, cu_seqlens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Final normed states `[N, W]` of packed `tokens` `[N]`.

        `cu_seqlens` `[B + 1]` are the bounds of the sequences (N last). The first is 0, or how many tokens stand before
        each of the sequences: they are given and computed once. `positions` `[N]` count from the beginning of each
        sequence unless given. Raises: ValueError where the bounds do not cover the tokens.
        """
        cu_seqlens = cu_seqlens.long()
        if int(cu_seqlens[0]) < 0 or int(cu_seqlens[-1]) != len(tokens):
            raise ValueError(f"cu_seqlens run from {int(cu_seqlens[0])} to {int(cu_seqlens[-1])}, tokens: {len(tokens)}")
        if positions is None:
            positions = positions_of(cu_seqlens)
        packing = Packing(cu_seqlens, positions, self.config)
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, packing)
        return self.model.norm(x)

    def head_weight(self) -> Tensor:
        """`[V, W]`: the embedding where tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """`[M, W]` -> `[M, V]`: give only the rows that are needed, `hidden[index]`."""
        return F.linear(hidden, self.head_weight())

    def forward(self, tokens: Tensor, cu_seqlens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Logits `[N, V]` of every token."""
        return self.logits(self.hidden(tokens, cu_seqlens, positions))

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, as Hugging Face lays them out."""
        from rollout.engines.torch.checkpoint import save_model

        save_model(folder, self.config, self.state_dict())

    @classmethod
    def load(cls, folder: str | Path) -> Decoder:
        """Read a folder of the Qwen3 or Llama family. Raises: UserError where it is missing or damaged, or does not fit."""
        from rollout.engines.torch.checkpoint import load_config, load_state

        decoder = cls(load_config(folder))
        decoder.replace(load_state(folder))
        return decoder

    def replace(self, state: Mapping[str, Tensor]) -> None:
        """Take these weights. Raises: ValueError on names or shapes that do not fit."""
        from rollout.engines.torch.checkpoint import fit

        self.load_state_dict(fit(state, self.config))


def positions_of(cu_seqlens: Tensor) -> Tensor:
    """0, 1, 2 ... within each sequence, `[N]`; what stands before all of them counts."""
    shared, lengths = int(cu_seqlens[0]), cu_seqlens[1:] - cu_seqlens[:-1]
    own = torch.arange(shared, int(cu_seqlens[-1])) - torch.repeat_interleave(cu_seqlens[:-1] - shared, lengths)
    return torch.cat((torch.arange(shared), own))


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Rotary frequencies `[D/2]` in float64."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    return config.rope_theta**-exponents
