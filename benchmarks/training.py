"""Our trainer against TRL's `GRPOTrainer`: trained tokens per second at equal model, batch and machine.

Both take one optimizer step per round on the same 64 multi-turn rows (groups of 8; lengths and shares of trained tokens
as in the demo), already played: TRL gets them through its `rollout_func`, with `env_mask` for what the environment
said, as its documentation shows. So neither side's sampler counts. TRL runs in an environment of its own, in float32,
without reference model and without gradient checkpointing (both would only slow it down). Counted are sampled tokens,
those that enter the loss; the second row counts all tokens that pass through the model.

The peer's environment is made once, in `peers` below envfarm's cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import finish, measure
from benchmarks.peers import peer_python
from envfarm.seeding import generator
from rollout.engines.torch.config import ModelConfig
from rollout.engines.torch.model import Decoder
from trainer.batch import datum
from trainer.client import AdamParams
from trainer.local import LocalClient
from trainer.losses import LossConfig

PEER = ("torch==2.13.0", "transformers==5.24.0", "trl==1.16.0", "datasets==5.2.0", "accelerate", "tokenizers")
GROUP, GROUPS, LEARNING_RATE = 8, 8, 1e-4
CONFIG = ModelConfig(vocab=512)


def rows(number: int) -> list[dict[str, Any]]:
    """64 conversations: a prompt of 10 to 40 tokens, then turns of 2 to 6 sampled and 4 to 16 heard tokens."""
    rng = generator("benchmark", "training", number)
    made = []
    for _ in range(GROUPS):
        prompt = rng.integers(6, CONFIG.vocab, rng.integers(10, 41)).tolist()
        for _ in range(GROUP):
            completion: list[int] = []
            mask: list[int] = []
            for _ in range(int(rng.integers(2, 9))):
                said, heard = int(rng.integers(2, 7)), int(rng.integers(4, 17))
                completion += rng.integers(6, CONFIG.vocab, said + heard).tolist()
                mask += [1] * said + [0] * heard
            made.append({"prompt": prompt, "completion": completion, "mask": mask, "reward": float(rng.random())})
    return made


class Ours:
    def __init__(self, decoder: Decoder):
        self.client = LocalClient(decoder)

    def __call__(self, batch: list[dict[str, Any]]) -> float:
        """Seconds from played rows to new weights: advantages, data, forward, backward, step."""
        started = time.perf_counter()
        data = []
        for at in range(0, len(batch), GROUP):
            group = batch[at : at + GROUP]
            mean = sum(r["reward"] for r in group) / GROUP
            for r in group:
                sampled = [0.0] * len(r["prompt"]) + [-6.0 * m for m in r["mask"]]
                data.append(
                    datum(
                        r["prompt"] + r["completion"],
                        [0] * len(r["prompt"]) + r["mask"],
                        weight=1 / len(batch),
                        logprobs=sampled,
                        advantage=r["reward"] - mean,
                    )
                )
        self.client.forward_backward(data, "ppo", LossConfig())
        self.client.optim_step(AdamParams(learning_rate=LEARNING_RATE)).result()
        return time.perf_counter() - started


class Theirs:
    """TRL in a process of its own; one step per line of rows."""

    def __init__(self, decoder: Decoder, folder: Path):
        decoder.save(folder)
        script, threads = Path(__file__).with_name("_trl_grpo.py"), torch.get_num_threads()
        # -P: the peer asks for a package `vllm`, and would find this folder's benchmark of that name
        command = [str(peer_python("trl-1.16", PEER)), "-P", str(script), str(folder), str(threads)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        self._heard("ready")

    def __call__(self, batch: list[dict[str, Any]]) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(batch) + "\n")
        self.process.stdin.flush()
        return float(self._heard("seconds"))

    def _heard(self, word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(f"@{word}"):
                return line.partition(" ")[2]
        raise RuntimeError(f"TRL ended with exit code {self.process.wait()}")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Ours(Decoder(CONFIG, seed=0)), Theirs(Decoder(CONFIG, seed=0), Path(folder))

        def side(step: Callable[[list[dict[str, Any]]], float], count: Callable[[dict[str, Any]], int]) -> Callable[[], float]:
            numbers = iter(range(10_000))

            def rate() -> float:
                batch = rows(next(numbers))
                return sum(map(count, batch)) / step(batch)

            return rate

        def trained(r: dict[str, Any]) -> int:
            return sum(r["mask"])

        def seen(r: dict[str, Any]) -> int:
            return len(r["prompt"]) + len(r["completion"])

        made = [
            measure("trained tokens", side(ours, trained), side(theirs, trained), goal=">=2", unit="tokens/s", rounds=9),
            measure("tokens through the model", side(ours, seen), side(theirs, seen), unit="tokens/s", rounds=9),
        ]
        theirs.close()
        ours.client.close()
    finish("training", made)


if __name__ == "__main__":
    main()
