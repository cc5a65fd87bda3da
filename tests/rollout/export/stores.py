"""Stores of real episodes for exporters: small mazes, played in this process by an engine of hashes and by scripts."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from envfarm.registry import default_registry
from envfarm.session import local_session
from envfarm.spec import EnvSpec
from rollout.export.base import Played, played
from rollout.inprocess import LocalPool
from rollout.plan import GroupRequest, RunPlan
from rollout.policies import EnginePolicy, Policy, ScriptedPolicy
from rollout.renderers.thinking import ThinkingRenderer
from rollout.scheduler import Rollouts
from rollout.store import Store
from rollout.types import PolicyVersion, SamplingParams, StopReason
from tests.rollout.scenes import CharTokenizer, HashEngine

MAZE = "games/maze-v0"
SMALL: dict[str, Any] = {"rung": 0, "set": {"width": [3, 3], "height": [3, 3]}}
TOKENIZER = CharTokenizer()


@cache
def maze() -> EnvSpec:
    return default_registry().get(MAZE)


def chatty() -> EnginePolicy:
    """Walks about; thinks aloud now and then, so that its template forks branches; sometimes says what is no action."""
    ways = [f"move {d}" for d in ("north", "east", "south", "west")]
    replies = [*ways, *(f"<think>\nhm\n</think>\n\n{w}" for w in ways), "dance"]
    engine = HashEngine(TOKENIZER, replies, end="<|im_end|>")
    version = engine.versions["learner"] = PolicyVersion("learner", 0, 3, "w3")
    return EnginePolicy(version, engine, ThinkingRenderer(TOKENIZER))


def oracle(random_share: float) -> ScriptedPolicy:
    return ScriptedPolicy("learner", "oracle", random_share)


def play(path: Path, policy: Policy, *, groups: int, size: int, stage: str = "online", split: str = "train") -> Path:
    """Append groups of small mazes to a store. Finished ones are as an engine leaves them, journal included."""
    asked = [
        GroupRequest(
            env=MAZE, instance=maze().instance(split, i, SMALL), size=size, stage=stage, step=0, index=i,
            seats={"agent": "learner"}, split=split, sampling=SamplingParams(max_tokens=48),
        )
        for i in range(groups)
    ]  # fmt: skip

    async def go(store: Store) -> None:
        pool = LocalPool(lambda _: local_session(maze()))
        async with Rollouts(RunPlan("run", 7, {MAZE: maze()}, max_in_flight=8), pool, {"learner": policy}, store) as rollouts:
            await rollouts.run(asked)

    with Store.open_or_create(path) as store:
        asyncio.run(go(store))
    return path


def groups_of(path: Path) -> list[Played]:
    return list(played(Store.open(path).episodes()))


def with_a_failure(source: Path, path: Path) -> Path:
    """The same store, in which one episode died of the machine."""
    with Store.create(path) as changed:
        for index, episode in enumerate(Store.open(source).episodes()):
            dead = {"stop": StopReason.INFRA_ERROR, "error": "WorkerDied: gone"}
            changed.append(msgspec.structs.replace(episode, **dead) if index == 1 else episode)
    return path
