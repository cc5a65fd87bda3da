"""Any local Hugging Face causal LM behind the same engine: correct and labelled, not batch-invariant.

Rows are batched with padding in front; a new request is computed beside the running ones and then joined to them.
A conversation's keys and values are kept between turns, so a turn computes only what is new. What the library picks
for another batch size may differ in the last bits, so nothing is promised about them.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from envfarm.errors import UserError
from rollout.engines.base import Generation
from rollout.engines.torch.checkpoint import checksum
from rollout.engines.torch.request import Request
from rollout.engines.torch.sampling import Rows, sample
from rollout.types import PolicyVersion

KV = list[tuple[Tensor, Tensor]]  # per layer, keys and values [rows, kv heads, columns, head dim]


@dataclass(eq=False)
class Row:
    request: Request
    tokens: list[int]  # prompt and what was sampled
    logprobs: list[float]


class HFRunner:
    batch_invariant = False

    def __init__(self, folder: Path, policy: str, version: PolicyVersion | None, max_in_flight: int, context: int | None):
        """Raises: UserError where Transformers cannot read the folder."""
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        except (OSError, ValueError) as e:
            raise UserError(f"{folder}: Transformers cannot load this model: {e}") from None
        self.model = model.eval().requires_grad_(False)
        # Newer releases of Transformers call the argument `cache`.
        parameters = inspect.signature(model.forward).parameters
        self.cache_argument = "cache" if "cache" in parameters else "past_key_values"
        limit = int(model.config.max_position_embeddings)
        if context is not None and context > limit:
            raise UserError(
                f"engine.context is {context}, but the model of policy {policy!r} reads at most {limit} tokens; leave `context` "
                "out, or give at most that"
            )
        self.context = context or limit
        self.vocab, self.weight_count = int(model.config.vocab_size), model.num_parameters()
        self.version = version or PolicyVersion(policy=policy, checksum=checksum(model.state_dict()))
        self.max_in_flight = max_in_flight
        self.waiting: deque[Request] = deque()
        self.fresh: list[Row] = []  # to be computed from their tokens
        self.rows: list[Row] = []  # in the batch: `kv` and `seen` hold all but their last token
        self.kv: KV = []
        self.seen = torch.zeros(0, 0, dtype=torch.bool)  # [rows, columns]: no padding there
        self.kept: OrderedDict[str, tuple[list[int], KV]] = OrderedDict()  # by session

    def submit(self, request: Request) -> None:
        self.waiting.append(request)

    def cancel(self, request: Request) -> None:
        if request in self.waiting:
            self.waiting.remove(request)
        self.fresh = [row for row in self.fresh if row.request is not request]
        self._keep_only([i for i, row in enumerate(self.rows) if row.request is not request])

    def busy(self) -> bool:
        return bool(self.waiting or self.fresh or self.rows)

    def update(self, version: PolicyVersion, state: Mapping[str, Tensor]) -> None:
        own = self.model.state_dict()
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        missing, unknown = own.keys() - state.keys() - tied, state.keys() - own.keys()
        wrong = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
        if missing or unknown or wrong:
            raise ValueError(f"weights do not fit: missing {sorted(missing)[:3]}, unknown {sorted(unknown)[:3]}, "
                             f"of another shape {sorted(wrong)[:3]}")  # fmt: skip
        self.model.load_state_dict(dict(state), strict=False)
        self.version = version
        self.kept.clear()
        self.fresh += self.rows
        self._keep_only([])
        for row in self.fresh:
            row.request.relabel(len(row.logprobs), version)

    def step(self) -> list[tuple[Request, Generation]]:
        while self.waiting and len(self.rows) + len(self.fresh) < self.max_in_flight:
            request = self.waiting.popleft()
            request.relabel(0, self.version)
            self.fresh.append(Row(request, request.prompt.tolist(), []))
        logits = []
        if self.rows:
            last = torch.tensor([[row.tokens[-1]] for row in self.rows])
            self.seen = torch.cat((self.seen, torch.ones(len(self.rows), 1, dtype=torch.bool)), dim=1)
            logits.append(self._forward(last, self.kv, self.seen))
        if self.fresh:
            logits.append(self._join(self.fresh))
            self.fresh = []
        return self._sample(torch.cat(logits)) if logits else []

    def score(self, token_ids: list[int]) -> list[float]:
        logits = self.model(torch.tensor([token_ids])).logits[0, :-1].float()
        targets = torch.tensor(token_ids[1:])[:, None]
        return torch.log_softmax(logits, dim=-1).gather(-1, targets)[:, 0].tolist()

    def _forward(self, tokens: Tensor, past: KV, seen: Tensor) -> Tensor:
        """Last logits `[rows, V]` of `tokens` `[rows, new]` after `past`, which is replaced by all keys and values."""
        cache = DynamicCache()
        for index, (keys, values) in enumerate(past):
            cache.update(keys, values, index)
        positions = (seen.long().cumsum(dim=1) - 1).clamp_(min=0)[:, -tokens.shape[1] :]
        given: dict[str, Any] = {self.cache_argument: cache}
        out = self.model(tokens, attention_mask=seen.long(), position_ids=positions, logits_to_keep=1, **given)
        layers: Any = cache.layers
        past[:] = [(layer.keys, layer.values) for layer in layers]
        return out.logits[:, -1].float()

    def _join(self, fresh: list[Row]) -> Tensor:
        """Compute new rows, each behind what is kept of its conversation, and add them to the batch."""
        prefixes = [self._prefix(row) for row in fresh]
        longest = max(n for n, _ in prefixes)
        seen = torch.stack([_front(torch.ones(n, dtype=torch.bool), longest) for n, _ in prefixes])
        layers = max(len(kv) for _, kv in prefixes)
        past: KV = [
            (torch.cat([_front_kv(kv, layer, 0, longest, prefixes) for _, kv in prefixes]),
             torch.cat([_front_kv(kv, layer, 1, longest, prefixes) for _, kv in prefixes]))
            for layer in range(layers)
        ]  # fmt: skip
        new = [row.tokens[n:] for row, (n, _) in zip(fresh, prefixes, strict=True)]
        widest = max(map(len, new))
        tokens = torch.stack([_front(torch.tensor(ids), widest) for ids in new])
        seen = torch.cat((seen, torch.stack([_front(torch.ones(len(i), dtype=torch.bool), widest) for i in new])), dim=1)
        logits = self._forward(tokens, past, seen)
        columns = max(seen.shape[1], self.seen.shape[1])
        if self.rows:
            self.seen = torch.cat((_widen(self.seen, columns, 1), _widen(seen, columns, 1)))
            self.kv = [
                (torch.cat((_widen(a[0], columns, 2), _widen(b[0], columns, 2))),
                 torch.cat((_widen(a[1], columns, 2), _widen(b[1], columns, 2))))
                for a, b in zip(self.kv, past, strict=True)
            ]  # fmt: skip
        else:
            self.seen, self.kv = seen, past
        self.rows = self.rows + fresh
        return logits

    def _prefix(self, row: Row) -> tuple[int, KV]:
        """How many tokens of the row its conversation has computed, and their keys and values."""
        tokens, kv = self.kept.pop(row.request.session, ([], []))
        n = 0
        for a, b in zip(tokens, row.tokens[:-1], strict=False):
            if a != b:
                break
            n += 1
        if not row.logprobs:
            row.request.cached = n
        return n, [(k[:, :, :n], v[:, :, :n]) for k, v in kv] if n else []

    def _sample(self, logits: Tensor) -> list[tuple[Request, Generation]]:
        params = [row.request.params for row in self.rows]
        rows = Rows(
            np.array([p.temperature for p in params], np.float32),
            np.array([p.top_p for p in params], np.float32),
            np.array([p.seed & 0xFFFF_FFFF_FFFF_FFFF for p in params], np.uint64),
            np.array([len(row.logprobs) for row in self.rows]),
        )
        ids, logprobs = sample(logits, rows)
        finished, going = [], []
        for i, (row, token, logprob) in enumerate(zip(self.rows, ids.tolist(), logprobs.tolist(), strict=True)):
            row.tokens.append(token)
            row.logprobs.append(logprob)
            stopped = token in row.request.params.stop_ids
            if stopped or len(row.logprobs) >= row.request.params.max_tokens or len(row.tokens) >= self.context:
                self._keep(i)
                reply = row.tokens[len(row.request.prompt) :]
                finish = row.request.generation(reply, row.logprobs, "stop" if stopped else "length")
                finished.append((row.request, finish))
            else:
                going.append(i)
        if finished:
            self._keep_only(going)
        return finished

    def _keep(self, i: int) -> None:
        """Remember a finished row for the next turn of its conversation; the oldest are forgotten."""
        session = self.rows[i].request.session
        if session:
            seen = self.seen[i]
            kv = [(k[i : i + 1][:, :, seen], v[i : i + 1][:, :, seen]) for k, v in self.kv]
            self.kept[session] = (self.rows[i].tokens[:-1], kv)
            while len(self.kept) > self.max_in_flight:
                self.kept.popitem(last=False)

    def _keep_only(self, indices: list[int]) -> None:
        """Drop the other rows of the batch, and columns that no row uses any more."""
        if len(indices) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in indices]
        if not indices:
            self.kv, self.seen = [], torch.zeros(0, 0, dtype=torch.bool)
            return
        index = torch.tensor(indices)
        seen = self.seen[index]
        used = seen.any(dim=0)
        self.seen = seen[:, used]
        self.kv = [(k[index][:, :, used], v[index][:, :, used]) for k, v in self.kv]


def _front(x: Tensor, columns: int) -> Tensor:
    """Zeros before `x` `[n]` up to `columns`."""
    return torch.cat((x.new_zeros(columns - len(x)), x))


def _widen(x: Tensor, columns: int, dim: int) -> Tensor:
    """Zeros before `x` along `dim` up to `columns`."""
    shape = list(x.shape)
    shape[dim] = columns - shape[dim]
    return torch.cat((x.new_zeros(shape), x), dim=dim)


def _front_kv(kv: KV, layer: int, which: int, columns: int, prefixes: list[tuple[int, KV]]) -> Tensor:
    """One row's keys (0) or values (1) of a layer, widened; zeros shaped like a sibling's where it has none."""
    if kv:
        return _widen(kv[layer][which], columns, 2)
    like: Any = next(other for _, other in prefixes if other)[layer][which]
    return like.new_zeros(1, like.shape[1], columns, like.shape[3])
