"""`kill -9` of a worker and of the scheduler's process: nothing finished is lost, nothing is played into the store twice."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from envfarm.registry import Registry
from envfarm.worker.pool import WorkerPool
from rollout.plan import RunPlan
from rollout.policies import ScriptedPolicy
from rollout.requests import EnvChoice, draw_groups
from rollout.scheduler import Rollouts
from rollout.store import Store
from rollout.store.check import check_store
from rollout.types import Episode, Group, SamplingParams, StopReason
from tests.faults import Counts, record

ROOT = Path(__file__).parents[2]
LAMP = Registry([ROOT / "tests" / "toy"]).get("toy/lamp-v0")


async def play(store: Store | None, progress: Any = None, groups: int = 20) -> list[Group]:
    """`progress(episode, pool)`; the policy is a middling script, so that episodes differ."""
    choices = [EnvChoice(LAMP, {"agent": "script"})]
    asked = draw_groups(choices, seed=1, stage="logs", step=0, groups=groups, size=2, sampling=SamplingParams())
    pool = WorkerPool([LAMP], workers=1)
    await pool.start()
    plan = RunPlan("death", 1, {LAMP.id: LAMP}, max_in_flight=4)
    try:
        async with Rollouts(plan, pool, {"script": ScriptedPolicy("script", "oracle", 0.4)}, store) as rollouts:
            return await rollouts.run(asked, None if progress is None else lambda e: progress(e, pool))
    finally:
        await pool.close()


def content(episodes: list[Episode]) -> list[Any]:
    return [(e.stage, e.step, e.index, e.member, e.instance_hash, e.steps, e.reward, e.final_observation) for e in episodes]


def undisturbed() -> list[Any]:
    return content([e for g in asyncio.run(play(None)) for e in g.episodes])


def test_kill_9_of_a_worker_is_an_infra_error_that_is_run_again(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_once(episode: Episode, pool: WorkerPool) -> None:
        if not killed:
            killed.extend(pool.pids)
            os.kill(killed[0], signal.SIGKILL)

    with Store.create(tmp_path / "s") as store:
        groups = asyncio.run(play(store, kill_once))
    episodes = [e for g in groups for e in g.episodes]
    assert killed and all(e.ok for e in episodes)
    assert content(episodes) == undisturbed()
    stored = list(Store.open(tmp_path / "s").episodes())
    lost = [e for e in stored if not e.ok]
    assert lost and all(e.stop is StopReason.INFRA_ERROR and e.reward == {} for e in lost)
    assert len(stored) == len(episodes) + len(lost)
    assert check_store(tmp_path / "s")[0] == []
    record("worker", counts(stored, {e.id for e in episodes}, psutil.pid_exists(killed[0])))


def counts(stored: list[Episode], finished: set[str], processes: int, boxes: int = 0) -> Counts:
    """What `make faults` prints; `finished` are the ids of what had ended."""
    fine = [(e.stage, e.step, e.index, e.member) for e in stored if e.ok]
    return Counts(
        finished=len(finished), lost=len(finished - {e.id for e in stored}), twice=len(fine) - len(set(fine)),
        zeroed=sum(bool(e.reward) for e in stored if not e.ok), processes=processes, boxes=boxes,
    )  # fmt: skip


SCHEDULER = """
import asyncio, sys
from pathlib import Path
from rollout.store import Store
from tests.rollout.test_death import play

def progress(episode, pool):
    print(episode.id, *pool.pids, flush=True)

asyncio.run(play(Store.create(Path(sys.argv[1])), progress, groups=2000))
"""


def test_kill_9_of_the_scheduler_leaves_its_finished_episodes_and_no_worker(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCHEDULER, str(tmp_path / "s")], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert process.stdout is not None
    lines = [next(process.stdout).split() for _ in range(7)]
    worker = os.pidfd_open(int(lines[0][1]))
    process.kill()
    lines += [line.split() for line in process.stdout if line.endswith("\n")]
    process.wait()
    process.stdout.close()
    gone = bool(select.select([worker], [], [], 20.0)[0])
    assert gone, "the worker dies with its scheduler"
    os.close(worker)
    with Store.open(tmp_path / "s", write=True) as store:
        finished = {e.id for e in store.episodes()}
        assert {line[0] for line in lines} <= finished, "what was reported is stored"
        groups = asyncio.run(play(store))
        assert content([e for g in groups for e in g.episodes]) == undisturbed()
    stored = list(Store.open(tmp_path / "s").episodes())
    slots = [(e.stage, e.step, e.index, e.member) for e in stored]
    assert len(slots) == len(set(slots)), "each slot was played into the store once"
    assert check_store(tmp_path / "s")[0] == []
    record("scheduler", counts(stored, {line[0] for line in lines}, not gone))
