"""Two small scenes, specs made in code, a character tokenizer and an engine of hashes: all that rollout tests need."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from envfarm.blocks import Text
from envfarm.distributions import UniformInt
from envfarm.env import Scene
from envfarm.seeding import generator
from envfarm.session import LocalSession
from envfarm.spec import Axis, EnvSpec, Instance, Limits, Role, Split
from envfarm.tools import Action, ToolCall, tool
from rollout.engines.base import Capabilities, Generation
from rollout.inprocess import LocalPool
from rollout.types import PolicyVersion, SamplingParams


class Count(Scene):
    """Reach a number by adding 1 to 3 per turn."""

    def start(self) -> str:
        self.total = 0
        return f"Reach {self.params['target']}."

    @tool
    def add(self, number: int) -> str:
        """Add to the total.

        number: 1 to 3
        """
        self.total += max(1, min(3, number))
        if self.total >= self.params["target"]:
            self.end(1.0 if self.total == self.params["target"] else 0.0)
        return f"Total {self.total}."

    def oracle(self) -> Action:
        return ToolCall("add", {"number": min(3, self.params["target"] - self.total)})


class Nim(Scene):
    """Two players take 1 or 2 from a heap; who takes the last one wins."""

    def start(self) -> str:
        self.heap = self.params["heap"]
        return self._view()

    def observe(self, role: str) -> str:
        return self._view()

    def _view(self) -> str:
        return f"Heap {self.heap}, {self.turn}."

    @tool
    def take(self, number: int) -> str:
        """Take from the heap.

        number: 1 or 2
        """
        self.heap -= max(1, min(2, number, self.heap))
        mover, other = self.turn, next(r for r in self.roles if r != self.turn)
        if self.heap == 0:
            self.end({mover: 1.0, other: 0.0})
        self.turn = other
        return self._view()

    def oracle(self) -> Action:
        return ToolCall("take", {"number": self.heap % 3 or 1})


def spec_of(env_id: str, axis: str, low: int, high: int, **more: Any) -> EnvSpec:
    return EnvSpec(
        id=env_id, path="/nowhere/env.yaml", files_hash="f", hash=f"hash of {env_id}", entry="./x.py:X",
        axes={axis: Axis(distribution=UniformInt(low=low, high=high))},
        splits={"train": Split(start=0, count=1000), "heldout": Split(start=5000, count=500)},
        **({"limits": Limits(turns=8, episode_timeout_s=20.0)} | more),
    )  # fmt: skip


COUNT = spec_of("toy/count-v0", "target", 3, 9)
NIM = spec_of("toy/nim-v0", "heap", 3, 9, roles={"first": Role(), "second": Role()})
SPECS = {s.id: s for s in (COUNT, NIM)}
SCENES: dict[str, type[Scene]] = {COUNT.id: Count, NIM.id: Nim}


def make_session(env_id: str) -> LocalSession:
    return LocalSession(SPECS[env_id], SCENES[env_id](SPECS[env_id]))


def local_pool(make: Callable[[str], Any] = make_session) -> LocalPool:
    return LocalPool(make)


def instance(spec: EnvSpec, index: int = 0, split: str = "train") -> Instance:
    return spec.instance(split, index)


class CharTokenizer:
    """One id per byte, four special tokens on top."""

    SPECIAL = ("<|obs|>", "<|act|>", "<|end|>", "<|im_start|>", "<|im_end|>")
    vocab_size = 256 + len(SPECIAL)
    hash = "bytes"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def special(self, token: str) -> int:
        return 256 + self.SPECIAL.index(token)


class HashEngine:
    """Says one of `replies`, chosen by a hash of prompt, seed and weights: deterministic, and indifferent to batching.

    `weights` is what `update_weights` publishes. `before` may hold a coroutine function that is awaited per request."""

    def __init__(self, tokenizer: CharTokenizer, replies: Sequence[str], *, end: str = "<|end|>", context: int = 0):
        self.capabilities = Capabilities(
            token_ids=True, logprobs=True, seeds=True, versions=True, batch_invariant=True, context=context
        )
        self.tokenizer, self.replies, self.end = tokenizer, list(replies), tokenizer.special(end)
        self.versions: dict[str, PolicyVersion] = {}
        self.requests = 0
        self.before: Callable[[], Any] | None = None

    async def start(self) -> None:
        pass

    async def generate(self, prompt_ids: list[int], params: SamplingParams, *, policy: str, session: str = "") -> Generation:
        self.requests += 1
        await (self.before() if self.before is not None else asyncio.sleep(0))
        version = self.versions.get(policy, PolicyVersion(policy=policy))
        digest = hashlib.sha256(repr((prompt_ids, params.seed, version.checksum)).encode()).digest()
        ids = [*self.tokenizer.encode(self.replies[digest[0] % len(self.replies)]), self.end]
        finish = "length" if len(ids) > params.max_tokens else "stop"
        ids = ids[: params.max_tokens]
        rng = generator("logprobs", int.from_bytes(digest[:4], "little"))
        return Generation(ids, [-float(x) for x in rng.random(len(ids))], finish, version)

    async def update_weights(self, version: PolicyVersion, state: Any) -> None:
        self.versions[version.policy] = version

    async def close(self) -> None:
        pass


def text_of(blocks: Any) -> str:
    return "".join(b.text for b in blocks if isinstance(b, Text))
