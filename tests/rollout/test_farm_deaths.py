"""`kill -9` of what carries remote boxes, under running episodes: the same as for any box, and no container or pod is left."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from envfarm.farm.client import KeeperClient
from envfarm.farm.daemon import bring_up
from envfarm.farm.file import read_farm
from envfarm.farm.pool import FarmPool
from tests import testbed
from tests.envfarm.farm.helpers import up, write_farm
from tests.faults import record
from tests.rollout.box_deaths import SHELL, Played, Pool, nothing_is_lost, pool_of
from tests.testbed import Boxes, Part, needs_root, own_testbed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
BoxesOf = Callable[[set[int]], Boxes]


def a_box_is_killed(what: str, folder: Path, backend: str, boxes: BoxesOf, process_of: Callable[[Any], int | None]) -> None:
    old: set[str] | None = None

    def kill(pool: Pool) -> bool:
        """One that has just come up: of others the episode may be over."""
        nonlocal old
        found = boxes(set(pool.pids))
        if old is None:
            old = set(found)
        for process in filter(None, (process_of(found[name]) for name in found.keys() - old)):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
                return True
        return False

    record(what, nothing_is_lost(folder, pool_of(backend), kill, lambda played: left(boxes, played)))


def a_part_is_killed(what: str, folder: Path, backend: str, boxes: BoxesOf, name: str) -> None:
    part = Part(name)

    def kill(pool: Pool) -> bool:
        if not boxes(set(pool.pids)):
            return False
        part.kill()
        return True

    def left_when_back(played: Played) -> int:
        part.back()
        return left(boxes, played)

    # What is restarted at once may be missed by nobody.
    record(what, nothing_is_lost(folder, pool_of(backend), kill, left_when_back, interrupts=False))


def left(boxes: BoxesOf, played: Played) -> int:
    return testbed.until_none(lambda: len(boxes(played.workers)))


@pytest.mark.docker
@needs_root
def test_kill_9_of_a_containers_process(tmp_path: Path) -> None:
    a_box_is_killed("container's process", tmp_path / "s", "docker", testbed.containers, testbed.process_of_container)


@pytest.mark.docker
@pytest.mark.alone
@own_testbed
def test_kill_9_of_dockerd(tmp_path: Path) -> None:
    a_part_is_killed("dockerd", tmp_path / "s", "docker", testbed.containers, "dockerd")


KEPT = '  - {environments: ["coding/*"], workers: 1, boxes: {min: 0, max: 8, warm: 2}}\n'


def leased() -> int:
    async def ask() -> int:
        async with KeeperClient.of("lab") as keeper:
            (pool,) = (await keeper.status()).pools
            assert pool.boxes is not None
            return pool.boxes.leased

    return asyncio.run(ask())


@pytest.mark.docker
def test_kill_9_of_a_farms_keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers die with it, and a run waits for the next."""
    file = write_farm(tmp_path, pools=KEPT, target="{docker: {workers: process}}")
    with up(file, monkeypatch) as first:

        def kill(pool: Pool) -> bool:
            ended = os.pidfd_open(first.pid)
            os.kill(first.pid, signal.SIGKILL)
            select.select([ended], [], [])
            os.close(ended)
            bring_up(file, read_farm(file), None, None)
            return True

        def left_of_it(played: Played) -> int:
            return testbed.until_none(lambda: len(testbed.containers({first.pid}))) + testbed.until_none(leased)

        record("farm's keeper", nothing_is_lost(tmp_path / "s", lambda: FarmPool([SHELL], "lab"), kill, left_of_it))


@pytest.mark.kubernetes
@needs_root
def test_kill_9_of_a_pods_process(tmp_path: Path) -> None:
    a_box_is_killed("pod's process", tmp_path / "s", "kubernetes", testbed.pods, testbed.process_of_pod)


@pytest.mark.kubernetes
@pytest.mark.alone
@own_testbed
@pytest.mark.parametrize(("killed", "name"), [("kubelet", "kubelet"), ("API server", "apiserver")], ids=["kubelet", "API server"])
def test_kill_9_of_a_part_of_the_cluster(killed: str, name: str, tmp_path: Path) -> None:
    a_part_is_killed(killed, tmp_path / "s", "kubernetes", testbed.pods, name)
