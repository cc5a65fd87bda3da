"""What is counted where something dies under running episodes, whatever boxes are made of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from envfarm.farm.pool import FarmPool
from envfarm.registry import default_registry
from envfarm.worker.pool import WorkerPool
from rollout.plan import RunPlan
from rollout.policies import ScriptedPolicy
from rollout.requests import EnvChoice, draw_groups
from rollout.scheduler import Rollouts
from rollout.store import Store
from rollout.store.check import check_store
from rollout.types import Episode, SamplingParams, StopReason
from tests.faults import Counts
from tests.rollout.test_death import counts

SHELL = default_registry().get("coding/shell-v0")
Pool = WorkerPool | FarmPool
Kill = Callable[[Pool], bool]
"""Kills once; whether it did. Asked again and again, in a thread, from the end of the first episode until it has."""


@dataclass
class Played:
    episodes: list[Episode] = field(default_factory=list)
    workers: set[int] = field(default_factory=set)
    """Processes of this machine, of a pool that has its own."""


def pool_of(backend: str) -> Callable[[], WorkerPool]:
    return lambda: WorkerPool([SHELL], backend=backend, workers=1)


def play(make_pool: Callable[[], Pool], store: Store | None = None, kill: Kill = lambda pool: True) -> Played:
    """Twelve episodes in one worker, four at a time."""
    choices = [EnvChoice(SHELL, {"agent": "script"}, setting={"rung": 0})]
    asked = draw_groups(choices, seed=1, stage="logs", step=0, groups=6, size=2, sampling=SamplingParams())
    played = Played()

    async def main() -> None:
        pool, one_is_over = make_pool(), asyncio.Event()
        await pool.start()

        def progress(episode: Episode) -> None:
            played.workers.update(pool.pids if isinstance(pool, WorkerPool) else ())
            one_is_over.set()

        async def watch() -> None:
            await one_is_over.wait()
            while not await asyncio.to_thread(kill, pool):
                await asyncio.sleep(0.02)

        watching = asyncio.ensure_future(watch())
        plan = RunPlan("box death", 1, {SHELL.id: SHELL}, max_in_flight=4)
        try:
            async with Rollouts(plan, pool, {"script": ScriptedPolicy("script", "oracle", 0.3)}, store) as rollouts:
                played.episodes = [e for g in await rollouts.run(asked, progress) for e in g.episodes]
        finally:
            watching.cancel()
            await pool.close()
        await asyncio.wait([watching])
        assert not watching.cancelled(), "it was killed while episodes ran"
        watching.result()

    asyncio.run(main())
    return played


def nothing_is_lost(
    folder: Path, make_pool: Callable[[], Pool], kill: Kill, left: Callable[[Played], int], *, interrupts: bool = True
) -> Counts:
    """Plays with a kill, into a new store in `folder`, and again without one: what was under way is recorded as the farm's fault
    and run again with the same result. `left`: boxes that are still there, some time after. `interrupts`: whether any must have
    been."""
    with Store.create(folder) as store:
        played = play(make_pool, store, kill)
    still_there = left(played)
    episodes, undisturbed = played.episodes, play(make_pool).episodes
    assert [(e.instance_hash, e.steps, e.reward) for e in episodes] == [(e.instance_hash, e.steps, e.reward) for e in undisturbed]
    stored = list(Store.open(folder).episodes())
    lost = [e for e in stored if not e.ok]
    assert {e.stop for e in lost} <= {StopReason.INFRA_ERROR}, [(e.id, e.stop, e.error) for e in lost]
    assert lost or not interrupts
    assert all(e.reward == {} for e in lost)
    assert len(stored) == len(episodes) + len(lost)
    assert check_store(folder)[0] == []
    assert still_there == 0
    return counts(stored, {e.id for e in episodes}, processes=0, boxes=still_there)
