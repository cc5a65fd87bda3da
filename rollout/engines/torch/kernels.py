"""The sampling side of the decoder: few, fused operations, whose rows do not depend on their company.

Floating point is not batch-invariant by itself: a matrix product may add up in another order for another number of
rows. Here every token, of a prompt or of a reply, takes the same path:

- linear layers run on a multiple of `ROWS` rows with the weights laid out `[in, out]`; there each element is one sum
  in the order of the inner dimension, whatever the number of rows;
- attention treats a token's heads as rows over keys padded to a multiple of `KEY_STEP`; masked keys add exact zeros
  at the end of each sum;
- everything else is elementwise or a sum within one row.

What libraries promise of this is nothing, so `probe.py` measures it on this machine when an engine starts, and the
engine declares `batch_invariant` only if every bit agreed.

Fusions: norm weights and the attention scale are multiplied into the following matrix; queries, keys and values are
one product, gate and up another; rotary pairs are interleaved (a permutation of the projections' rows, the same for
queries and keys) so that rotating is one complex product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rollout.engines.torch.cache import Lanes
from rollout.engines.torch.config import ModelConfig
from rollout.engines.torch.model import inverse_frequencies

ROWS = 16


@dataclass
class LayerWeights:
    qkv: Tensor  # [W, (H + 2K) * D]
    norms: Tensor  # [H + K, D]: query norms with 1/sqrt(D), then key norms
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
        self.head = (head * state["model.norm.weight"]).t().contiguous()
        self.layers = [_layer(config, state, f"model.layers.{i}.") for i in range(config.layers)]
        angles = torch.arange(capacity, dtype=torch.float64)[:, None] * inverse_frequencies(config)
        self.rotary = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)  # [capacity, D/2]


def _layer(config: ModelConfig, state: Mapping[str, Tensor], at: str) -> LayerWeights:
    c, attn = config, at + "self_attn."
    pairs = torch.arange(c.head_dim).view(2, -1).t().reshape(-1)  # 0, D/2, 1, D/2+1, ...

    def interleaved(name: str, heads: int) -> Tensor:
        return state[f"{attn}{name}_proj.weight"].view(heads, c.head_dim, c.width)[:, pairs].reshape(-1, c.width)

    qkv = torch.cat((interleaved("q", c.heads), interleaved("k", c.kv_heads), state[attn + "v_proj.weight"]))
    q_norm = state[attn + "q_norm.weight"][pairs] * c.head_dim**-0.5
    k_norm = state[attn + "k_norm.weight"][pairs]
    gate_up = torch.cat((state[at + "mlp.gate_proj.weight"], state[at + "mlp.up_proj.weight"]))
    return LayerWeights(
        qkv=(qkv * state[at + "input_layernorm.weight"]).t().contiguous(),
        norms=torch.cat((q_norm.expand(c.heads, -1), k_norm.expand(c.kv_heads, -1))).contiguous(),
        out=state[attn + "o_proj.weight"].t().contiguous(),
        gate_up=(gate_up * state[at + "post_attention_layernorm.weight"]).t().contiguous(),
        down=state[at + "mlp.down_proj.weight"].t().contiguous(),
    )


@dataclass
class Plan:
    """Which tokens a forward takes and where they attend. N is a multiple of `ROWS`; padding goes to scratch rows."""

    tokens: Tensor  # [N]
    positions: Tensor  # [N]
    write: Tensor  # [N] row of the cache that each token's key and value go to
    lanes: Tensor | int  # the S lanes that are attended to: these, or the first S
    keys: int  # how many keys, a multiple of KEY_STEP
    mask: Tensor  # [S, 1, Q, keys]: 0 or -inf; Q tokens per lane
    pad: Tensor | None = None  # [S * Q] rows of N that fill the rectangle; None where N == S * Q in that order
    unpad: Tensor | None = None  # [N] cells of the rectangle that the rows take their result from


def forward(weights: Weights, cache: Lanes, plan: Plan, *, want_logits: bool) -> Tensor | None:
    """Compute the plan's tokens into the cache; logits `[N, V]` where asked for.

    Without logits the last layer stops at its keys and values: nothing later would be read.
    """
    c = weights.config
    heads, last = c.heads + c.kv_heads, c.layers - 1
    x = weights.embedding.index_select(0, plan.tokens)
    rotary = weights.rotary.index_select(0, plan.positions)[:, None]
    for i, w in enumerate(weights.layers):
        qkv = torch.mm(_normed(x, c.eps), w.qkv)
        qk = _normed(qkv[:, : heads * c.head_dim].unflatten(-1, (heads, c.head_dim)), c.eps).mul_(w.norms)
        qk = torch.view_as_real(torch.view_as_complex(qk.unflatten(-1, (-1, 2))) * rotary).flatten(1)
        rows = torch.cat((qk[:, c.heads * c.head_dim :], qkv[:, heads * c.head_dim :]), dim=1)
        cache.kv[i].index_copy_(0, plan.write, rows)
        if i == last and not want_logits:
            return None
        attended = _attend(qk[:, : c.heads * c.head_dim], cache, i, plan)
        x = torch.addmm(x, attended, w.out)
        gate, up = torch.mm(_normed(x, c.eps), w.gate_up).chunk(2, dim=-1)
        x = torch.addmm(x, F.silu(gate).mul_(up), w.down)
    return torch.mm(_normed(x, c.eps), weights.head)


def _normed(x: Tensor, eps: float) -> Tensor:
    """x over its root mean square along the last dimension; the norm's weight sits in the next matrix."""
    return x * torch.rsqrt_(x.square().mean(dim=-1, keepdim=True).add_(eps))


def _attend(q: Tensor, cache: Lanes, layer: int, plan: Plan) -> Tensor:
    """Queries `[N, H * D]` over their lanes' keys -> `[N, H * D]`."""
    c = cache.config
    groups = c.heads // c.kv_heads
    lanes, _, columns, _ = plan.mask.shape
    if plan.pad is not None:
        q = q.index_select(0, plan.pad)
    elif q.shape[0] != lanes * columns:
        q = q[: lanes * columns]
    # Heads that share keys become rows of one product: [S, K, G * Q, D].
    q = q.view(lanes, columns, c.kv_heads, groups, c.head_dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
    keys, values = cache.views(layer, plan.lanes, plan.keys)
    mask = plan.mask if columns == 1 else plan.mask.repeat(1, 1, groups, 1)
    out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=1.0)
    out = out.unflatten(2, (groups, columns)).permute(0, 3, 1, 2, 4).reshape(lanes * columns, -1)
    if plan.unpad is not None:
        return out.index_select(0, plan.unpad)
    rows = plan.tokens.shape[0]
    return out if out.shape[0] == rows else F.pad(out, (0, 0, 0, rows - out.shape[0]))
