"""`kill -9` of what carries remote boxes, under running episodes: the same as for any box, and no container or pod is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from envfarm.worker.pool import WorkerPool
from tests import testbed
from tests.faults import record
from tests.rollout.box_deaths import Played, nothing_is_lost
from tests.testbed import Part, needs_root, own_testbed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
Boxes = Callable[[set[int]], list[dict[str, Any]]]


def a_box_is_killed(what: str, folder: Path, backend: str, boxes: Boxes, process_of: Callable[[Any], int | None]) -> None:
    def kill(pool: WorkerPool) -> bool:
        killed = 0
        for process in filter(None, map(process_of, boxes(set(pool.pids)))):
            with suppress(ProcessLookupError):  # its episode has just ended
                os.kill(process, signal.SIGKILL)
                killed += 1
        return killed > 0

    record(what, nothing_is_lost(folder, backend, kill, lambda played: left(boxes, played)))


def a_part_is_killed(what: str, folder: Path, backend: str, boxes: Boxes, name: str) -> None:
    part = Part(name)

    def kill(pool: WorkerPool) -> bool:
        if not boxes(set(pool.pids)):
            return False
        part.kill()
        return True

    def left_when_back(played: Played) -> int:
        part.back()
        return left(boxes, played)

    record(what, nothing_is_lost(folder, backend, kill, left_when_back))


def left(boxes: Boxes, played: Played) -> int:
    return testbed.until_none(lambda: boxes(played.workers))


@pytest.mark.docker
@needs_root
def test_kill_9_of_a_containers_process(tmp_path: Path) -> None:
    a_box_is_killed("container's process", tmp_path / "s", "docker", testbed.containers, testbed.process_of_container)


@pytest.mark.docker
@pytest.mark.alone
@own_testbed
def test_kill_9_of_dockerd(tmp_path: Path) -> None:
    a_part_is_killed("dockerd", tmp_path / "s", "docker", testbed.containers, "dockerd")


@pytest.mark.kubernetes
@needs_root
def test_kill_9_of_a_pods_process(tmp_path: Path) -> None:
    a_box_is_killed("pod's process", tmp_path / "s", "kubernetes", testbed.pods, testbed.process_of_pod)


@pytest.mark.kubernetes
@pytest.mark.alone
@own_testbed
@pytest.mark.parametrize(("killed", "name"), [("kubelet", "kubelet"), ("API server", "apiserver")])
def test_kill_9_of_a_part_of_the_cluster(killed: str, name: str, tmp_path: Path) -> None:
    a_part_is_killed(killed, tmp_path / "s", "kubernetes", testbed.pods, name)
