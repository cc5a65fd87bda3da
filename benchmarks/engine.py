"""The embedded engine against Hugging Face `generate`, batch 64, the demo's model, sampled tokens per second.

Both sample at temperature 1 from the same weights (`generate` as its documentation shows it: padding on the left,
attention mask, KV cache, requests sorted by prompt length so that its batches waste little).
Both may use all cores. Lengths are forced by
`max_new_tokens` and the absence of an end token: an untrained model would not stop by itself. In the ragged row each
batch of `generate` runs until its longest reply is done, which is what a static batch does; only tokens that were asked
for count on both sides. The demo's lengths: replies of 2 to 10 tokens, now and then the limit of 48, behind prompts
of 30 to 160. Those rows share no prefix, and every round has prompts of its own. The last row is shown beside them:
whole conversations, 64 of 8 turns, where the engine finds the earlier turns in its cache.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.harness import Row, finish, measure
from envfarm.seeding import generator
from rollout.engines.torch.config import ModelConfig
from rollout.engines.torch.engine import TorchEngine
from rollout.engines.torch.model import Decoder
from rollout.types import SamplingParams

BATCH = 64
Requests = list[tuple[list[int], int]]  # prompt, tokens to sample


def ragged(count: int, vocab: int, number: int) -> Requests:
    rng = generator("benchmark", "engine", "ragged", number)
    lengths = np.where(rng.random(count) < 0.08, 48, rng.integers(2, 11, size=count))
    return [(rng.integers(0, vocab, size=rng.integers(30, 161)).tolist(), int(n)) for n in lengths]


def equal(count: int, vocab: int, number: int) -> Requests:
    rng = generator("benchmark", "engine", "equal", number)
    return [(rng.integers(0, vocab, size=64).tolist(), 48) for _ in range(count)]


def conversations(count: int, vocab: int, number: int) -> list[Requests]:
    """Turn by turn: what was said before, 10 to 20 new tokens, and a reply of 2 to 10. The replies are drawn here, so
    that both sides see the same prompts."""
    rng = generator("benchmark", "engine", "conversations", number)
    said: list[list[int]] = [rng.integers(0, vocab, size=30).tolist() for _ in range(count)]
    turns: list[Requests] = []
    for _ in range(8):
        turns.append([])
        for i in range(count):
            prompt = said[i] + rng.integers(0, vocab, size=rng.integers(10, 21)).tolist()
            n = int(rng.integers(2, 11))
            turns[-1].append((prompt, n))
            said[i] = prompt + rng.integers(0, vocab, size=n).tolist()
    return turns


class Ours:
    def __init__(self, decoder: Decoder):
        self.loop = asyncio.new_event_loop()
        self.engine = TorchEngine({"demo": decoder}, max_in_flight=BATCH, threads=torch.get_num_threads())
        self.loop.run_until_complete(self.engine.start())

    def __call__(self, requests: Requests) -> float:
        async def play() -> int:
            calls = [
                self.engine.generate(prompt, SamplingParams(max_tokens=n, seed=i), policy="demo", session=str(i))
                for i, (prompt, n) in enumerate(requests)
            ]
            return sum(len(g.token_ids) for g in await asyncio.gather(*calls))

        started = time.perf_counter()
        sampled = self.loop.run_until_complete(play())
        return sampled / (time.perf_counter() - started)

    def close(self) -> None:
        self.loop.run_until_complete(self.engine.close())
        self.loop.close()


class Theirs:
    def __init__(self, decoder: Decoder):
        with tempfile.TemporaryDirectory() as folder:
            decoder.save(folder)
            self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def __call__(self, requests: Requests) -> float:
        ordered = sorted(requests, key=lambda r: len(r[0]))
        started, sampled = time.perf_counter(), 0
        for at in range(0, len(ordered), BATCH):
            batch = ordered[at : at + BATCH]
            longest, most = max(len(p) for p, _ in batch), max(n for _, n in batch)
            ids = torch.tensor([[0] * (longest - len(p)) + p for p, _ in batch])
            mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p, _ in batch])
            with torch.inference_mode():
                out = self.model.generate(
                    ids, attention_mask=mask, max_new_tokens=most, do_sample=True, temperature=1.0, top_k=0,
                    eos_token_id=None, pad_token_id=0, use_cache=True,
                )  # fmt: skip
            assert out.shape[1] == longest + most
            sampled += sum(n for _, n in batch)
        return sampled / (time.perf_counter() - started)


def _rate(run: Callable[[Requests], float], requests: Any) -> float:
    """Tokens per second; over all turns where there are some."""
    if isinstance(requests[0], tuple):
        return run(requests)
    tokens = [sum(n for _, n in turn) for turn in requests]
    return sum(tokens) / sum(n / run(turn) for n, turn in zip(tokens, requests, strict=True))


def main() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.logging.set_verbosity_error()
    config = ModelConfig(vocab=512)
    decoder = Decoder(config, seed=0)
    ours, theirs = Ours(decoder), Theirs(decoder)

    def row(name: str, make: Callable[[int, int, int], Any], count: int, goal: str) -> Row:
        def side(run: Callable[[Requests], float]) -> Callable[[], float]:
            numbers = itertools.count()
            return lambda: _rate(run, make(count, config.vocab, next(numbers)))

        return measure(name, side(ours), side(theirs), goal=goal, unit="tokens/s", rounds=3)

    rows = [
        row("512 requests, the demo's ragged lengths", ragged, 512, ">=3"),
        row("256 requests, 64 + 48 tokens each", equal, 256, ">=1.5"),
        row("64 conversations of 8 turns", conversations, 64, ""),
    ]
    ours.close()
    finish("engine", rows)


if __name__ == "__main__":
    main()
