"""Tokens/s of rollouts on vLLM over those of the same vLLM asked directly: what the way around an engine costs.

An environment that does nothing, 8 turns with a context that grows by what was said and what was seen, replies of a fixed
length with logprobs. Theirs: the prompts that ours made, the same lengths and seeds, the same conversations one turn after the
other, in the same engine, through `AsyncLLM.generate`. The prefix cache is emptied before each round. Sampled tokens count.

The model is SmolLM2-135M-Instruct where it is (`envfarm models get smollm2-135m`), else a tiny one with fresh weights, and
the rows say which. It runs in vLLM's own environment, and goes there by itself.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.harness import Row, finish, measure
from envfarm.errors import UserError
from envfarm.session import Turn
from envfarm.spec import EnvSpec, load_spec
from rollout.build import ModelFolder
from rollout.engines.base import Generation
from rollout.engines.torch.config import ModelConfig
from rollout.engines.torch.model import Decoder
from rollout.engines.vllm.engine import VLLMEngine
from rollout.inprocess import LocalAsyncSession
from rollout.plan import RunPlan
from rollout.policies import EnginePolicy
from rollout.renderers.chatml import ChatMLRenderer
from rollout.requests import EnvChoice, draw_groups
from rollout.scheduler import Rollouts
from rollout.types import PolicyVersion, SamplingParams

TURNS, REPLY = 8, 16
SEEN = "Nothing has changed since you looked the last time, and nothing will. What do you do next?"


class Nothing:
    """Says the same on every turn, whatever is done."""

    def __init__(self, env_spec: EnvSpec):
        self.env_spec, self.turns = env_spec, 0

    def reset(self, instance: Any) -> Turn:
        return Turn(role="agent", text=SEEN)

    def step(self, action: Any) -> Turn:
        self.turns += 1
        over = self.turns == TURNS
        return Turn(role="agent", text=SEEN, rewards={"agent": 0.0}, terminated=over, stop="terminated" if over else "")

    def close(self) -> None:
        pass


class Pool:
    def __init__(self, spec: EnvSpec):
        self.spec = spec

    async def session(self, env_id: str) -> LocalAsyncSession:
        return LocalAsyncSession(Nothing(self.spec))  # type: ignore[arg-type]


@dataclass
class Listening:
    """The engine, with replies of one length that pass for ended, and a list of what was asked."""

    engine: VLLMEngine
    asked: dict[str, list[tuple[list[int], int]]] = field(default_factory=dict)  # conversation -> prompt and seed, in turn

    @property
    def capabilities(self) -> Any:
        return self.engine.capabilities

    async def start(self) -> None:
        pass

    async def generate(self, prompt_ids: list[int], params: SamplingParams, *, policy: str, session: str = "") -> Generation:
        self.asked.setdefault(session, []).append((prompt_ids, params.seed))
        params = msgspec.structs.replace(params, stop_ids=())
        return replace(await self.engine.generate(prompt_ids, params, policy=policy, session=session), finish="stop")

    async def close(self) -> None:
        pass


class Bench:
    def __init__(self, folder: ModelFolder, runner: asyncio.Runner):
        self.runner = runner
        self.engine = VLLMEngine({"policy": folder.path}, dtype="bfloat16", context=1024)
        runner.run(self.engine.start())
        self.llm = self.engine._policies["policy"].replica._llm
        self.renderer = ChatMLRenderer(folder.tokenizer())
        echo = load_spec(Path(__file__).parent / "echo" / "echo.yaml")
        limits = msgspec.structs.replace(echo.limits, episode_timeout_s=3600.0)
        self.spec = msgspec.structs.replace(echo, limits=limits)
        self.listening = Listening(self.engine)

    def ours(self, count: int) -> float:
        async def play() -> float:
            await self.llm.reset_prefix_cache()
            self.listening.asked = {}
            policy = EnginePolicy(PolicyVersion("policy"), self.listening, self.renderer)  # type: ignore[arg-type]
            asked = draw_groups(
                [EnvChoice(self.spec, {"agent": "policy"})], seed=0, stage="bench", step=0, groups=count, size=1,
                sampling=SamplingParams(max_tokens=REPLY),
            )  # fmt: skip
            plan = RunPlan("bench", 0, {self.spec.id: self.spec}, max_in_flight=count)
            async with Rollouts(plan, Pool(self.spec), {"policy": policy}) as rollouts:
                started = time.perf_counter()
                groups = await rollouts.run(asked)
                took = time.perf_counter() - started
            sampled = sum(sum(n.mask) for g in groups for e in g.episodes for n in e.nodes)
            assert sampled == count * TURNS * REPLY, f"{sampled} tokens sampled"
            return sampled / took

        return self.runner.run(play())

    def theirs(self) -> float:
        """What ours asked last."""
        from vllm import SamplingParams as Params
        from vllm.sampling_params import RequestOutputKind

        async def talk(name: str, turns: list[tuple[list[int], int]]) -> int:
            sampled = 0
            for number, (prompt, seed) in enumerate(turns):
                params = Params(
                    max_tokens=REPLY, seed=seed, logprobs=0, ignore_eos=True, detokenize=False, flat_logprobs=True,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                )  # fmt: skip
                async for output in self.llm.generate({"prompt_token_ids": prompt}, params, f"{name}-{number}"):
                    sampled += len(output.outputs[0].token_ids)
            return sampled

        async def play() -> float:
            await self.llm.reset_prefix_cache()
            started = time.perf_counter()
            sampled = await asyncio.gather(*[talk(name, turns) for name, turns in self.listening.asked.items()])
            return sum(sampled) / (time.perf_counter() - started)

        return self.runner.run(play())

    def row(self, model: str, count: int) -> Row:
        self.ours(count)  # so that theirs has something to ask, whoever begins; and warm
        name = f"{count} in flight, {TURNS} turns, {model}"
        return measure(
            name, lambda: self.ours(count), self.theirs, goal=">=0.97", unit="tokens/s",
            rounds=6, warm_up=0,  # a round takes half a minute on two cores, and one differs from the next by 5 %
        )  # fmt: skip


def tiny(folder: Path) -> ModelFolder:
    from rollout.tokenizers import BPETokenizer

    tokenizer = BPETokenizer.train([SEEN], vocab_size=400)
    tokenizer.save(folder)
    Decoder(ModelConfig(vocab=tokenizer.vocab_size, kv_heads=2, max_len=1024)).save(folder)
    return ModelFolder.open(folder)


def main() -> None:
    if find_spec("vllm") is None:  # this module is `benchmarks.vllm`; what is looked for is the package
        command = [sys.executable, "-m", "tests.venvs", "vllm", "-m", "benchmarks.vllm", *sys.argv[1:]]
        raise SystemExit(subprocess.run(command, check=False).returncode)
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        try:
            model, name = ModelFolder.open("smollm2-135m"), "SmolLM2-135M"
        except UserError:
            model, name = tiny(Path(folder)), "a tiny model"
        bench = Bench(model, runner)
        try:
            rows = [bench.row(name, count) for count in (16, 64)]
        finally:
            runner.run(bench.engine.close())
    finish("vllm", rows)


if __name__ == "__main__":
    main()
