"""Stores of the toy lamp for tests of other trainers: logs of a middling agent, and what a small model really sampled."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from envfarm.session import local_session
from envfarm.spec import EnvSpec, load_spec
from rollout.engines.torch.config import ModelConfig
from rollout.engines.torch.engine import TorchEngine
from rollout.engines.torch.model import Decoder
from rollout.inprocess import LocalPool
from rollout.plan import RunPlan
from rollout.policies import EnginePolicy, Policy, ScriptedPolicy
from rollout.renderers.base import Renderer
from rollout.requests import EnvChoice, draw_groups
from rollout.rows import rows_of, tokenize
from rollout.scheduler import Rollouts
from rollout.store import Store
from rollout.tokenizers import BPETokenizer
from rollout.types import Episode, Group, PolicyVersion, SamplingParams
from trainer.client import AdamParams
from trainer.local import LocalClient
from trainer.logs import imitation_data

LAMP = Path(__file__).resolve().parents[2] / "toy" / "lamp.yaml"
EASY: dict[str, Any] = {"rung": 0, "perturb": "off"}
SIZES: dict[str, int] = {"width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "ffn": 48, "max_len": 512}


def lamp() -> EnvSpec:
    return load_spec(LAMP)


def play(
    policy: Policy, *, groups: int, size: int, stage: str, store: Path, max_tokens: int = 16, seed: int = 5,
    spec: EnvSpec | None = None, setting: Mapping[str, Any] = EASY,
) -> list[Group]:  # fmt: skip
    """Groups of the lamp, or of another environment, stored."""
    spec = spec or lamp()
    choices = [EnvChoice(spec, {"agent": "p"}, setting=setting)]
    sampling = SamplingParams(max_tokens=max_tokens)
    requests = draw_groups(choices, seed=seed, stage=stage, step=0, groups=groups, size=size, sampling=sampling)
    plan = RunPlan(run="lamps", seed=seed, specs={spec.id: spec})

    async def run() -> list[Group]:
        with Store.open_or_create(store) as sink:
            async with Rollouts(plan, LocalPool(lambda _: local_session(spec)), {"p": policy}, sink) as rollouts:
                return await rollouts.run(requests)

    return asyncio.run(run())


def logs(store: Path, *, groups: int = 12, size: int = 4, random: float = 0.25) -> list[Episode]:
    """Episodes of the oracle with a share of random actions."""
    found = play(ScriptedPolicy("p", "oracle", random), groups=groups, size=size, stage="logs", store=store)
    return [e for g in found for e in g.episodes]


def make_tokenizer(episodes: Sequence[Episode], vocab: int = 320) -> BPETokenizer:
    texts = [text for e in episodes for step in e.steps for text in (step.observation, step.action)]
    return BPETokenizer.train(texts, vocab_size=vocab)


def imitate(episodes: Sequence[Episode], renderer: Renderer, *, vocab: int, steps: int) -> Mapping[str, Any]:
    """A decoder that has seen the logs some times: it succeeds now and then."""
    data = imitation_data([row for e in episodes for row in rows_of(tokenize(e, renderer))])
    client = LocalClient(Decoder(ModelConfig(vocab=vocab, **SIZES), seed=1), threads=1)
    count = sum(d.trained for d in data)
    for _ in range(steps):
        client.forward_backward([d.scaled(1.0 / count) for d in data], "cross_entropy")
        client.optim_step(AdamParams(learning_rate=0.01)).result()
    published = client.publish().result()
    client.close()
    return {"model": client.model, "version": published.version}


def sampled(store: Path, renderer: Renderer, model: Decoder, *, groups: int = 6, size: int = 6) -> list[Group]:
    """What the decoder says, with the logprobs that it was sampled with."""
    engine = TorchEngine({"p": model}, threads=1)
    policy = EnginePolicy(PolicyVersion("p"), engine, renderer)
    return play(policy, groups=groups, size=size, stage="rollout", store=store)
