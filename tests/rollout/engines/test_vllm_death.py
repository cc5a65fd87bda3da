"""`kill -9` of vLLM's engine core, of its server, and of the process that started them: nothing is lost, nothing is left."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rollout.engines.vllm.engine import VLLMEngine
from rollout.engines.vllm.processes import Family, shared_memory
from rollout.policies import EnginePolicy
from rollout.renderers.compact import CompactRenderer
from rollout.scheduler import Rollouts
from rollout.store import Store
from rollout.store.check import check_store
from rollout.types import Episode, Group, SamplingParams, StopReason
from tests.faults import record
from tests.rollout.engines.vllm_scene import MODELS, PROBE, apart, folders, teacher, version_of
from tests.rollout.scenes import CharTokenizer, local_pool
from tests.rollout.test_death import ROOT, counts
from tests.rollout.test_scheduler import PLAN, requests

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


async def play(engine: VLLMEngine, store: Store, kill_after: int) -> tuple[list[Group], list[int], set[Path]]:
    """Groups whose engine is killed when so many episodes have ended; the pids that died then, and their shared memory."""
    policy = EnginePolicy(version_of("tied", 0), engine, CompactRenderer(CharTokenizer()))
    dead: list[int] = []
    shared: set[Path] = set()
    ended: list[Episode] = []

    def progress(episode: Episode) -> None:
        ended.append(episode)
        if len(ended) == kill_after:
            dead.extend(engine.pids("tied"))
            shared.update(shared_memory(dead))
            os.kill(dead[0], 9)

    async with Rollouts(PLAN, local_pool(), {"tied": policy}, store) as rollouts:
        version = version_of("tied", 1)
        await rollouts.publish(version, MODELS["tied", 1].state_dict())  # what is served after the restart, too
        asked = requests(count=12, size=4, seats={"agent": "tied"}, sampling=SamplingParams(max_tokens=24))
        groups = await rollouts.run(asked, progress)
        assert apart(await engine.score(PROBE, policy="tied"), teacher(MODELS["tied", 1], PROBE)) < 1e-3
        assert not set(dead) & set(engine.pids("tied"))
        assert {e.seats["agent"] for g in groups for e in g.episodes} == {version}
    return groups, dead, shared


@pytest.mark.parametrize("served", [False, True], ids=["engine core", "server"])
def test_kill_9_is_an_infra_error_that_is_run_again(served: bool, tmp_path: Path) -> None:
    engine = VLLMEngine({"tied": folders(tmp_path)["tied"]}, serve=served, max_in_flight=8, threads=1)
    with Store.create(tmp_path / "store") as store:
        groups, dead, shared = asyncio.run(play(engine, store, kill_after=10))
    episodes = [e for g in groups for e in g.episodes]
    assert len(episodes) == 48 and all(e.ok for e in episodes)
    with Store.open(tmp_path / "store") as store:
        stored = list(store.episodes())
    lost = [e for e in stored if not e.ok]
    assert lost and all(e.stop is StopReason.INFRA_ERROR and not e.reward for e in lost)
    assert check_store(tmp_path / "store")[0] == []
    sampled = [n for e in episodes for n in e.nodes if n.version is not None]
    assert {n.version for n in sampled} == {version_of("tied", 1)}
    assert shared, "vLLM's processes talk through shared memory"
    seen = counts(stored, {e.id for e in episodes}, sum(map(alive, dead)))
    seen = replace(seen, shared_memory=sum(path.exists() for path in shared))
    record("vllm server" if served else "vllm engine core", seen)
    assert (seen.lost, seen.twice, seen.zeroed, seen.processes, seen.shared_memory) == (0, 0, 0, 0, 0)


def alive(pid: int) -> bool:
    """A process that has ended may stand in the table for a while, with no command line."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


OWNER = """
import asyncio, sys
from rollout.engines.vllm.engine import VLLMEngine
from rollout.types import SamplingParams

async def main():
    engine = VLLMEngine({"tied": sys.argv[1]}, serve=sys.argv[2] == "served", max_in_flight=8, threads=1)
    await engine.start()
    busy = [engine.generate([1, 2, 3], SamplingParams(max_tokens=900, seed=i), policy="tied") for i in range(4)]
    print(*engine.pids("tied"), flush=True)
    await asyncio.gather(*busy)
    await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["in process", "served"])
def test_kill_9_of_the_owner_leaves_no_process(how: str, tmp_path: Path) -> None:
    folder = folders(tmp_path)["tied"]
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    owner = subprocess.Popen(
        [sys.executable, str(script), str(folder), how], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert owner.stdout is not None
    pids = [int(pid) for pid in owner.stdout.readline().split()]
    assert len(pids) >= 2, "it did not come up"
    family = Family.below(owner.pid, itself=False)
    handles = [os.pidfd_open(pid) for pid in family.pids]
    owner.kill()
    owner.wait()
    owner.stdout.close()
    for handle in handles:
        assert select.select([handle], [], [], 60)[0], "a process outlives its owner"
        os.close(handle)
    family.forget()
    assert family.shared and not any(path.exists() for path in family.shared)
    assert not any(map(alive, pids))
    assert list(tmp_path.glob("envfarm-*")) == []
