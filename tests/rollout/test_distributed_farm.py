"""Actors of a Ray cluster that play on a farm: engines there, sessions in the farm's workers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from envfarm.farm import TOKEN_VARIABLE
from rollout.plan import RunPlan
from rollout.policies import ScriptedPolicy
from rollout.run import RayEntry
from rollout.scheduler import Rollouts
from rollout.types import Group
from tests.envfarm.farm.helpers import up, write_farm
from tests.rollout.ray_scenes import Gate, outside, requests, until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
POOL = '  - {environments: ["outside/*"], workers: 2}\n'


def test_replicas_play_on_the_workers_of_a_farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rollout.distributed import Fleet

    gate = Gate(tmp_path / "gate")
    spec = outside(tmp_path / "outside", gate)

    async def play(url: str, token: str) -> list[Group]:
        entry = RayEntry(workers=2, cpus=0, env={TOKEN_VARIABLE: token})
        fleet = Fleet(entry, {spec.id: spec}, max_in_flight=8, farm=url)
        plan = RunPlan("run", 5, {spec.id: spec}, max_in_flight=8)
        try:
            await fleet.start()
            async with Rollouts(plan, fleet, {"learner": ScriptedPolicy("learner", "oracle")}) as rollouts:
                playing = asyncio.ensure_future(rollouts.run(requests(spec, 2, 4)))
                await until(lambda: gate.waiting == 2, "an episode is under way in each of the two workers")
                actors = [psutil.Process(slot.greeting.pid) for slot in fleet.slots]
                assert [child.cmdline() for actor in actors for child in actor.children()] == []
                assert all(slot.busy for slot in fleet.slots)
                gate.open()
                return await playing
        finally:
            gate.open()
            await fleet.close()

    with up(write_farm(tmp_path, pools=POOL), monkeypatch) as farm:
        groups = asyncio.run(play(farm.url, farm.token))
    episodes = [episode for group in groups for episode in group.episodes]
    assert len(episodes) == 8 and all(episode.ok and episode.reward == {"agent": 1.0} for episode in episodes)
