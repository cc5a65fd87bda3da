"""A farm in a live cluster as runs and people use it: played on, scaled, its parts killed, and taken down again."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from envfarm.errors import InfraError
from envfarm.farm import TOKEN_VARIABLE
from envfarm.farm.manifests.names import KEEPER, WORKER
from envfarm.farm.pool import FarmPool
from envfarm.registry import default_registry
from envfarm.worker.client import AsyncSession
from tests import testbed
from tests.k8s.conftest import MAZE, SHELL, WARM
from tests.k8s.live import LiveFarm, envfarm, life_of, require_image, write
from tests.rollout.box_deaths import Pool, nothing_is_lost
from tests.testbed import kubectl, needs_root

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("farm in pods")]


@pytest.fixture(autouse=True)
def token(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the farm, where a test uses it."""
    if "farm" in request.fixturenames:
        monkeypatch.setenv(TOKEN_VARIABLE, request.getfixturevalue("farm").token)


@asynccontextmanager
async def session_of(farm: LiveFarm, env_id: str) -> AsyncIterator[tuple[FarmPool, AsyncSession]]:
    pool = FarmPool([default_registry().get(env_id)], farm.url)
    try:
        await pool.start()
        session = await pool.session(env_id)
        await session.reset(pool.specs[env_id].instance("train", 0))
        yield pool, session
        await session.close()
    finally:
        await pool.close()


async def to_the_end(session: AsyncSession) -> float:
    """The oracle's reward."""
    while not (turn := await session.step(await session.oracle())).over:
        pass
    return turn.rewards["agent"]


def kill(pod: Any, container: str) -> None:
    """Its first process, with -9."""
    process = testbed.process_of_pod(pod, container)
    assert process is not None
    os.kill(process, signal.SIGKILL)


def delete(farm: LiveFarm, pod: Any) -> None:
    kubectl("-n", farm.name, "delete", "pod", pod["metadata"]["name"], "--wait=false")


def test_an_episode_is_played_in_a_worker_pod_with_boxes_that_are_pods(farm: LiveFarm) -> None:
    async def play() -> float:
        async with session_of(farm, SHELL) as (_, session):
            (held,) = [lease for lease in farm.listed("leases", boxes=True) if lease["spec"].get("holderIdentity")]
            assert held["spec"]["holderIdentity"].startswith(farm.worker()["metadata"]["name"])
            assert held["metadata"]["name"] in {pod["metadata"]["name"] for pod in farm.listed("pods", boxes=True)}
            return await to_the_end(session)

    assert asyncio.run(play()) >= default_registry().get(SHELL).reward.solved_at
    farm.until_settled(WARM)


def test_status_and_scale_by_their_commands(farm: LiveFarm) -> None:
    assert "1 of 1" in envfarm("farm", "status", farm.url, "--once")
    farm.scaled(2)
    assert "2 of 2" in envfarm("farm", "status", farm.url)
    farm.scaled(1)
    assert farm.status().pools[0].wanted == 1
    assert "no pool 2: its pools are 0 to 1" in envfarm("farm", "scale", farm.url, "--workers", "1", "--pool", "2", code=2)


@needs_root
def test_sessions_of_a_worker_whose_container_was_killed_are_played_again(farm: LiveFarm, tmp_path: Path) -> None:
    first = farm.worker()

    def end(pool: Pool) -> bool:
        kill(first, WORKER)
        return True

    def left(_: object) -> int:
        farm.until_settled(WARM)
        return 0

    nothing_is_lost(tmp_path / "s", lambda: FarmPool([default_registry().get(SHELL)], farm.url), end, left)
    name, starts = life_of(first)
    assert life_of(farm.worker()) == (name, starts + 1)
    (worker,) = farm.status().pools[0].workers
    assert worker.name == f"{name}.{starts + 1}"


def test_a_worker_pod_that_was_deleted_is_replaced_and_a_run_goes_on(farm: LiveFarm) -> None:
    async def play() -> float:
        async with session_of(farm, MAZE) as (pool, session):
            first = farm.worker()
            await asyncio.to_thread(delete, farm, first)
            with pytest.raises(InfraError, match=f"worker {first['metadata']['name']}.*died"):
                while True:
                    await session.reset(pool.specs[MAZE].instance("train", 0))
            again = await pool.session(MAZE)
            await again.reset(pool.specs[MAZE].instance("train", 0))
            reward = await to_the_end(again)
            await again.close()
            assert life_of(farm.worker()) != life_of(first)
            return reward

    assert asyncio.run(play()) >= default_registry().get(MAZE).reward.solved_at


def test_a_worker_that_no_node_has_room_for(farm: LiveFarm) -> None:
    kubectl("-n", farm.name, "set", "resources", f"deployment/{WORKER}-1", "--requests=cpu=1000")
    envfarm("farm", "scale", farm.url, "--workers", "1", "--pool", "1")
    (worker,) = farm.until(lambda pool: any(w.said for w in pool.workers), pool=1).workers
    assert "Insufficient cpu" in worker.said and not worker.up
    assert "Insufficient cpu" in envfarm("farm", "status", farm.url, COLUMNS="300")
    farm.scaled(0, pool=1)


ENDS: dict[str, Callable[[LiveFarm, Any], None]] = {
    "killed": lambda farm, keeper: kill(keeper, KEEPER),
    "deleted": delete,
}


@pytest.mark.parametrize("how", [pytest.param("killed", marks=needs_root), "deleted"])
def test_an_episode_goes_on_while_the_keeper_is_started_again(farm: LiveFarm, how: str) -> None:
    async def play() -> float:
        async with session_of(farm, SHELL) as (_, session):
            first = farm.keeper()
            ENDS[how](farm, first)
            while life_of(await asyncio.to_thread(farm.keeper)) == life_of(first):
                await asyncio.sleep(0.1)
            return await to_the_end(session)

    assert asyncio.run(play()) >= default_registry().get(SHELL).reward.solved_at
    farm.until_settled(WARM)


def test_up_again_with_a_changed_file_and_down_leaves_nothing(tmp_path: Path) -> None:
    require_image()
    file = write(tmp_path, [{"environments": [SHELL], "workers": 0, "boxes": {"max": 2, "warm": 1}}])
    namespaces = (file.stem, f"{file.stem}-boxes")
    try:
        envfarm("farm", "up", str(file), "--on", "kubernetes")
        farm = LiveFarm.of(file)
        farm.until_settled(1)
        file.write_text(file.read_text().replace('"warm": 1', '"warm": 2'))
        envfarm("farm", "up", str(file))
        assert LiveFarm.of(file) == farm, "its token and its address stay"
        farm.until_settled(2)
    finally:
        assert "is down" in envfarm("farm", "down", str(file))
    while (kubectl("get", "namespaces", "-o", "name", "--ignore-not-found", *namespaces)).strip():
        time.sleep(0.5)
    assert "the cluster has nothing of a farm" in envfarm("farm", "down", str(file), code=2)
