"""Processor time of an episode on 1, 2 and 4 Ray workers: what the replicas spend must not grow with their number.

Single turns against an engine that answers at once; each replica has one worker process and 16 episodes in flight, however
many replicas there are. What is counted is the time (user and system) of the actors and their workers, and beside it that
of this process, which dispatches. Rollouts/s are shown, and mean little where there are fewer cores than processes. It runs
in Ray's own environment, and goes there by itself. Rounds alternate between 1, 2 and 4 workers, so that a machine that slows
down slows all. More busy processes than cores cost each of them time (caches, switches), whoever they are; so there is a
control: four fleets of one worker each, all at once, against one fleet of four.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from benchmarks.harness import Row, finish, row
from envfarm.spec import EnvSpec, load_spec
from rollout.build import ModelFolder
from rollout.plan import RunPlan
from rollout.policies import EnginePolicy
from rollout.requests import EnvChoice, draw_groups
from rollout.run import RayEntry
from rollout.run_policies import EngineEntry
from rollout.scheduler import Rollouts
from rollout.tokenizers import BPETokenizer
from rollout.types import PolicyVersion, SamplingParams

HERE = Path(__file__).parent / "answer"
WORKERS = (1, 2, 4)
EPISODES, WARM_UP, ROUNDS, EACH = 2000, 400, 5, 16


@dataclass
class Figures:
    """Of one round each."""

    replicas_ms: list[float] = field(default_factory=list)  # processor time per episode
    driver_ms: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)  # episodes/s


def model(folder: Path) -> ModelFolder:
    """A folder with a tokenizer; its model is never looked at."""
    BPETokenizer.train([f"Answer with the number {i}." for i in range(10)], vocab_size=300).save(folder)
    (folder / "envfarm.json").write_text(json.dumps({"renderer": "compact"}))
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return ModelFolder.open(folder)


async def measure(workers: int, spec: EnvSpec, folder: ModelFolder, number: int, figures: Figures) -> None:
    """One round on a fleet of its own, in a cluster that is there already."""
    from rollout.distributed import Fleet

    fleet = Fleet(RayEntry(workers=workers, cpus=0), {spec.id: spec}, workers=1, max_in_flight=EACH * workers)
    try:
        await fleet.start()
        engine = fleet.engine(EngineEntry(kind="benchmarks.instant:InstantModel"), {"policy": folder})
        policy = EnginePolicy(PolicyVersion("policy"), engine, folder.renderer())
        plan = RunPlan("bench", 0, {spec.id: spec}, max_in_flight=EACH * workers)
        async with Rollouts(plan, fleet, {"policy": policy}) as rollouts:
            await play(rollouts, spec, WARM_UP, f"warm {number}")
            before, began, own = sum(await fleet.cpu_s()), time.perf_counter(), time.process_time()
            solved = await play(rollouts, spec, EPISODES, f"round {number}")
            took, own = time.perf_counter() - began, time.process_time() - own
            spent = sum(await fleet.cpu_s()) - before
    finally:
        await fleet.close()
    assert 0 < solved < EPISODES and all(slot.played for slot in fleet.slots), "we did not play, or not everywhere"
    figures.replicas_ms.append(1e3 * spent / EPISODES)
    figures.driver_ms.append(1e3 * own / EPISODES)
    figures.rate.append(EPISODES / took)


async def beside_others(spec: EnvSpec, folder: ModelFolder, number: int, figures: Figures) -> None:
    """As many fleets of one worker as there are workers in the largest."""
    async with asyncio.TaskGroup() as tasks:
        for _ in range(max(WORKERS)):
            tasks.create_task(measure(1, spec, folder, number, figures))


async def play(rollouts: Rollouts, spec: EnvSpec, episodes: int, stage: str) -> float:
    """Returns how many were solved."""
    requests = draw_groups(
        [EnvChoice(spec, {"agent": "policy"})], seed=0, stage=stage, step=0, groups=episodes, size=1,
        sampling=SamplingParams(max_tokens=8),
    )  # fmt: skip
    groups = await rollouts.run(requests)
    return sum(e.reward["agent"] for g in groups for e in g.episodes)


def main() -> None:
    if find_spec("ray") is None:
        command = [sys.executable, "-m", "tests.venvs", "ray", "-m", "benchmarks.ray_scaling", *sys.argv[1:]]
        raise SystemExit(subprocess.run(command, check=False).returncode)
    from rollout.distributed.cluster import Cluster

    spec = load_spec(HERE / "answer.yaml")
    figures, control = {workers: Figures() for workers in WORKERS}, Figures()
    cluster = Cluster.join(RayEntry(workers=max(WORKERS)))  # fleets find themselves connected, and leave it as it is
    try:
        with tempfile.TemporaryDirectory() as folder:
            saved = model(Path(folder))
            for number in range(ROUNDS):
                order = WORKERS if number % 2 == 0 else WORKERS[::-1]
                for workers in order:
                    asyncio.run(measure(workers, spec, saved, number, figures[workers]))
                asyncio.run(beside_others(spec, saved, number, control))
    finally:
        cluster.leave()
    finish("ray_scaling", rows(figures, control))


def rows(figures: dict[int, Figures], control: Figures) -> list[Row]:
    """Medians; each number of workers over one worker."""
    median = statistics.median
    one = median(figures[1].replicas_ms)
    made = [row("replicas, 1 worker", one, unit="CPU ms/episode")]
    for workers in WORKERS[1:]:
        ours, goal = median(figures[workers].replicas_ms), "<=1.1" if workers == max(WORKERS) else ""
        made.append(row(f"replicas, {workers} workers over 1", ours, one, goal=goal, unit="CPU ms/episode"))
    beside = median(control.replicas_ms)
    made.append(row(f"{WORKERS[-1]} workers over {WORKERS[-1]} fleets of 1", ours, beside, unit="CPU ms/episode"))
    made += [row(f"this process, {n} workers", median(figures[n].driver_ms), unit="CPU ms/episode") for n in WORKERS]
    made += [row(f"through {n} workers", median(figures[n].rate), unit="rollouts/s") for n in WORKERS]
    return made


if __name__ == "__main__":
    main()
