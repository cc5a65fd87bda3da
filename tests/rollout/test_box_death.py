"""`kill -9` of the boxes under running episodes: never a reward 0, run again with the same result, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from envfarm.backends import processes
from envfarm.registry import default_registry
from envfarm.worker.pool import WorkerPool
from rollout.plan import RunPlan
from rollout.policies import ScriptedPolicy
from rollout.requests import EnvChoice, draw_groups
from rollout.scheduler import Rollouts
from rollout.store import Store
from rollout.store.check import check_store
from rollout.types import Episode, SamplingParams, StopReason
from tests.faults import record
from tests.rollout.test_death import counts

pytestmark = pytest.mark.box

SHELL = default_registry().get("coding/shell-v0")


def boxes(pool: WorkerPool) -> list[int]:
    """The first processes of the boxes that live now."""
    found = []
    for pid in (p for worker in pool.pids for p in processes.descendants(worker)):
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"bwrap"):
                found.append(pid)
    return found


async def play(store: Store | None, progress: Any) -> list[Episode]:
    choices = [EnvChoice(SHELL, {"agent": "script"}, setting={"rung": 0})]
    asked = draw_groups(choices, seed=1, stage="logs", step=0, groups=6, size=2, sampling=SamplingParams())
    pool = WorkerPool([SHELL], workers=1)
    await pool.start()
    plan = RunPlan("box death", 1, {SHELL.id: SHELL}, max_in_flight=4)
    try:
        async with Rollouts(plan, pool, {"script": ScriptedPolicy("script", "oracle", 0.3)}, store) as rollouts:
            return [e for g in await rollouts.run(asked, lambda e: progress(e, pool)) for e in g.episodes]
    finally:
        await pool.close()


def test_kill_9_of_boxes_is_an_infra_error_that_is_run_again(tmp_path: Path) -> None:
    watched: list[int] = []

    def kill_once(episode: Episode, pool: WorkerPool) -> None:
        for pid in [] if watched else boxes(pool):
            watched.append(os.pidfd_open(pid))
            signal.pidfd_send_signal(watched[-1], signal.SIGKILL)

    with Store.create(tmp_path / "s") as store:
        episodes = asyncio.run(play(store, kill_once))
    undisturbed = asyncio.run(play(None, lambda *_: None))
    left = sum(not select.select([fd], [], [], 10)[0] for fd in watched)
    assert watched and not left
    for fd in watched:
        os.close(fd)
    assert [(e.instance_hash, e.steps, e.reward) for e in episodes] == [(e.instance_hash, e.steps, e.reward) for e in undisturbed]
    stored = list(Store.open(tmp_path / "s").episodes())
    lost = [e for e in stored if not e.ok]
    assert lost and all(e.stop is StopReason.INFRA_ERROR and e.reward == {} for e in lost)
    assert len(stored) == len(episodes) + len(lost)
    assert check_store(tmp_path / "s")[0] == []
    record("box", counts(stored, {e.id for e in episodes}, left))
