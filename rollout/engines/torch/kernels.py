"""The sampling side of the decoder: few, fused operations, whose rows do not depend on their company.

Floating point is not batch-invariant by itself: a matrix product may add up in another order for another number of
rows. Here every token, of a prompt or of a reply, takes the same path:

- linear layers run on a multiple of `ROWS` rows with the weights laid out `[in, out]`; there each element is one sum
  in the order of the inner dimension, whatever the number of rows;
- attention treats a token's heads as rows, padded to a multiple of `QUERIES`, over keys padded to a multiple of
  `KEY_STEP`, `SECTION` of them in one product; masked keys add exact zeros at the end of each sum;
- everything else is elementwise or a sum within one row.

What libraries promise of this is nothing, so `probe.py` measures it on this machine when an engine starts, and the
engine declares `batch_invariant` only if every bit agreed.

Fusions: norm weights and the attention scale are multiplied into the following matrix; queries, keys and values are
one product, gate and up another; rotary pairs are interleaved (a permutation of the projections' rows, the same for
queries and keys) so that rotating is one complex product.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from rollout.engines.torch.cache import Lanes
from rollout.engines.torch.config import ModelConfig
from rollout.engines.torch.model import inverse_frequencies

ROWS = 16
QUERIES = 4  # an attention has a multiple of this many: some libraries add up in another order for a last block of fewer
SECTION = 192  # keys; where a longer sum is cut depends, in some libraries, on its length. A multiple of `KEY_STEP`


@dataclass
class LayerWeights:
    qkv: Tensor  # [W, (H + 2K) * D]
    norms: Tensor | None  # [H + K, D]: query norms with the attention scale, then key norms; None: not normed
    out: Tensor  # [H * D, W]
    gate_up: Tensor  # [W, 2 * ffn]
    down: Tensor  # [ffn, W]


class Weights:
    """A decoder's weights, laid out for sampling; made anew whenever the weights change."""

    def __init__(self, config: ModelConfig, state: Mapping[str, Tensor], capacity: int):
        self.config = config
        state = {k: v.detach().float() for k, v in state.items()}
        self.embedding = state["model.embed_tokens.weight"].clone()
        head = state["model.embed_tokens.weight"] if config.tie else state["lm_head.weight"]
        self.head = (head * state["model.norm.weight"] * config.width**0.5).t().contiguous()
        self.layers = [_layer(config, state, f"model.layers.{i}.") for i in range(config.layers)]
        angles = torch.arange(capacity, dtype=torch.float64)[:, None] * inverse_frequencies(config)
        self.rotary = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)  # [capacity, D/2]

    def first_layers(self, count: int) -> Weights:
        """The same weights without the layers above."""
        part = copy(self)
        part.config, part.layers = msgspec.structs.replace(self.config, layers=count), self.layers[:count]
        return part


def _layer(config: ModelConfig, state: Mapping[str, Tensor], at: str) -> LayerWeights:
    c, attn, root = config, at + "self_attn.", config.width**0.5
    pairs = torch.arange(c.head_dim).view(2, -1).t().reshape(-1)  # 0, D/2, 1, D/2+1, ...

    def interleaved(name: str, heads: int) -> Tensor:
        return state[f"{attn}{name}_proj.weight"].view(heads, c.head_dim, c.width)[:, pairs].reshape(-1, c.width)

    queries, norms = interleaved("q", c.heads), None
    if c.qk_norm:
        q_norm = state[attn + "q_norm.weight"][pairs]  # the attention scale and the norm's root cancel out
        k_norm = state[attn + "k_norm.weight"][pairs] * c.head_dim**0.5
        norms = torch.cat((q_norm.expand(c.heads, -1), k_norm.expand(c.kv_heads, -1))).contiguous()
    else:
        queries = queries * c.head_dim**-0.5
    qkv = torch.cat((queries, interleaved("k", c.kv_heads), state[attn + "v_proj.weight"]))
    gate_up = torch.cat((state[at + "mlp.gate_proj.weight"], state[at + "mlp.up_proj.weight"]))
    return LayerWeights(
        qkv=(qkv * state[at + "input_layernorm.weight"] * root).t().contiguous(),
        norms=norms,
        out=state[attn + "o_proj.weight"].t().contiguous(),
        gate_up=(gate_up * state[at + "post_attention_layernorm.weight"] * root).t().contiguous(),
        down=state[at + "mlp.down_proj.weight"].t().contiguous(),
    )


@dataclass
class Attend:
    """Rows of a plan that attend together: Q tokens of each of S lanes."""

    start: int
    stop: int  # rows of the plan
    lanes: Tensor | int  # these, or the first S
    keys: int  # how many keys, a multiple of KEY_STEP
    columns: int  # Q
    mask: Tensor  # [S, 1, G * Q, keys]: 0 or -inf, G query heads per kv head
    pad: Tensor | None = None  # [S * Q] rows, counted from `start`, that fill the rectangle; None: they are it, in order
    unpad: Tensor | None = None  # [stop - start] cells of the rectangle that the rows take their result from


@dataclass
class Plan:
    """Which tokens a forward takes. N is a multiple of `ROWS`; padding is computed too and written to scratch rows."""

    tokens: Tensor  # [N]
    positions: Tensor  # [N]
    write: Tensor  # [N] row of the cache that each token's key and value go to
    parts: list[Attend]  # cover the N rows in order
    wanted: int  # logits of this many leading rows; a bound between parts


def forward(weights: Weights, cache: Lanes, plan: Plan) -> Tensor:
    """Compute the plan's tokens into the cache; logits `[wanted, V]`.

    Keys and values of all rows are written before any row attends, so one plan may hold a prompt and the token that
    continues it. For rows whose logits are not wanted, the last layer stops at keys and values.
    """
    c = weights.config
    heads, queries, last = c.heads + c.kv_heads, c.heads * c.head_dim, c.layers - 1
    parts = plan.parts
    x = weights.embedding.index_select(0, plan.tokens)
    rotary = weights.rotary.index_select(0, plan.positions)[:, None]
    for i, w in enumerate(weights.layers):
        qkv = torch.mm(_normed(x, c.eps), w.qkv)
        qk = qkv[:, : heads * c.head_dim].unflatten(-1, (heads, c.head_dim))
        if w.norms is not None:
            qk = _normed(qk, c.eps).mul_(w.norms)
        qk = torch.view_as_real(torch.view_as_complex(qk.unflatten(-1, (-1, 2))) * rotary).flatten(1)
        rows = torch.cat((qk[:, queries:], qkv[:, heads * c.head_dim :]), dim=1)
        cache.kv[i].index_copy_(0, plan.write, rows)
        if i == last:
            parts = [p for p in parts if p.stop <= plan.wanted]
            if not parts:
                return x.new_empty(0, c.vocab)
            x = x[: plan.wanted]
        attended = [_attend(qk[p.start : p.stop, :queries], cache, i, p) for p in parts]
        x = torch.addmm(x, attended[0] if len(attended) == 1 else torch.cat(attended), w.out)
        gate, up = torch.mm(_normed(x, c.eps), w.gate_up).chunk(2, dim=-1)
        x = torch.addmm(x, F.silu(gate).mul_(up), w.down)
    return torch.mm(_normed(x, c.eps), weights.head)


def _normed(x: Tensor, eps: float) -> Tensor:
    """x over its length along the last dimension. RMSNorm is this times the root of the dimension and a weight, both
    of which sit in what is multiplied next; its eps becomes one of the squared length."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * length.square_().add_(eps * x.shape[-1]).rsqrt_()


def _attend(q: Tensor, cache: Lanes, layer: int, part: Attend) -> Tensor:
    """Queries `[n, H * D]` over their lanes' keys -> `[n, H * D]`."""
    c = cache.config
    n, groups, lanes = q.shape[0], c.heads // c.kv_heads, part.mask.shape[0]
    cells = lanes * part.columns
    if part.pad is not None:
        q = q.index_select(0, part.pad)
    elif n != cells:
        q = q[:cells]
    # Heads that share keys become rows of one product: [S, K, G * Q, D].
    q = q.unflatten(-1, (c.kv_heads, groups, c.head_dim)).unflatten(0, (lanes, part.columns))
    q = q.permute(0, 2, 3, 1, 4).flatten(2, 3)
    keys, values = cache.views(layer, part.lanes, part.keys)
    mask, rows = part.mask, q.shape[2]
    if more := -rows % QUERIES:
        q = F.pad(q, (0, 0, 0, more))
        mask = mask if mask.shape[2] == 1 else F.pad(mask, (0, 0, 0, more))
    out = _over_keys(q, keys, values, mask)[:, :, :rows]
    out = out.unflatten(2, (groups, part.columns)).permute(0, 3, 1, 2, 4).reshape(cells, -1)
    if part.unpad is not None:
        return out.index_select(0, part.unpad)
    return out if n == cells else F.pad(out, (0, 0, 0, n - cells))


def _over_keys(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """`[S, K, rows, D]` queries over `[S, K, keys, D]`, section by section; what a row is not shown changes no bit of it."""
    out, total = _section(q, keys, values, mask, 0)
    if keys.shape[2] <= SECTION:
        return out
    norm = torch.ones_like(total)
    for start in range(SECTION, keys.shape[2], SECTION):
        more, other = _section(q, keys, values, mask, start)
        other = other + mask[..., start]  # minus infinity for a row that is shown none of them
        highest = torch.maximum(total, other)
        old, new = (total - highest).exp_(), (other - highest).exp_()
        out, norm, total = out * old[..., None] + more * new[..., None], norm * old + new, highest
    return out / norm[..., None]


def _section(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """The section of keys from `start` on: its result, and the logarithm of the sum of its scores' exponentials
    `[S, K, rows]`; for a row that is shown none of them, 0 and nothing that means anything."""
    here = slice(start, start + SECTION)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, keys[:, :, here], values[:, :, here], attn_mask=mask[..., here], scale=1.0
    )
