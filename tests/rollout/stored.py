"""Episodes that were played, for tests of what a store makes of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from rollout.plan import GroupRequest, RunPlan
from rollout.policies import EnginePolicy
from rollout.renderers.compact import CompactRenderer
from rollout.scheduler import Rollouts
from rollout.store import Store
from rollout.types import Episode, PolicyVersion
from tests.rollout.scenes import COUNT, SPECS, CharTokenizer, HashEngine, instance, local_pool

V1 = PolicyVersion("learner", 0, 1, "w1")


def played(store: Store | None = None) -> list[Episode]:
    """Four groups of two."""
    tokenizer = CharTokenizer()
    policy = EnginePolicy(V1, HashEngine(tokenizer, ["add 1", "add 2", "é?"]), CompactRenderer(tokenizer))

    async def go() -> list[Episode]:
        async with Rollouts(RunPlan("run", 0, SPECS), local_pool(), {"learner": policy}, store) as rollouts:
            asked = [
                GroupRequest(
                    env=COUNT.id, instance=instance(COUNT, i), size=2, stage="online", step=0, index=i,
                    seats={"agent": "learner"},
                )
                for i in range(4)
            ]  # fmt: skip
            return [e for g in await rollouts.run(asked) for e in g.episodes]

    return asyncio.run(go())


EPISODES = played()


def sealed_at(folder: Path) -> Path:
    """A store of EPISODES, closed."""
    with Store.create(folder) as store:
        for episode in EPISODES:
            store.append(episode)
    return folder


def same(left: list[Episode], right: list[Episode]) -> bool:
    return [msgspec.msgpack.encode(e) for e in left] == [msgspec.msgpack.encode(e) for e in right]
