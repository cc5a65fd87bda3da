"""The demo's run file with a short budget, on vLLM, on Ray, in containers and in pods: the same instances and sampling seeds as
with the embedded engine in one process and boxes of bubblewrap, a learner that agrees with itself, and a store whose episodes
repeat themselves in such boxes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from rollout.store import Store
from rollout.types import Episode
from tests.trainer.test_resume import ROOT, finish
from trainer.metrics import read

pytestmark = pytest.mark.timeout(900)
Slot = tuple[int, int]
Embedded = tuple[dict[str, Any], dict[Slot, Episode]]
"""What a run ended with, and its first batch."""


@dataclass(frozen=True)
class Budget:
    logs: int
    imitation: int  # steps
    batch: int
    held_out: int  # episodes of each evaluation


SHORT = Budget(logs=240, imitation=60, batch=24, held_out=9)
SHORTER = Budget(logs=90, imitation=60, batch=24, held_out=3)
"""Where each box takes a second."""


def short_demo(path: Path, budget: Budget, **keys: Any) -> Path:
    """`examples/demo.yaml` with little of everything, and what is asked for besides."""
    run = yaml.safe_load((ROOT / "examples" / "demo.yaml").read_text(encoding="utf-8"))
    for env in run["environments"]:
        env["setting"]["perturb"] = "off"  # to this reader of YAML a bare one is false
    imitation, offline, online = (next(iter(stage.values())) for stage in run["stages"])
    imitation["logs"]["episodes"], imitation["steps"] = budget.logs, budget.imitation
    offline["steps"] = 2
    online |= {"group": 4, "batch": budget.batch, "steps": 2, "dynamic_sampling": False}
    run["engine"] |= {"max_in_flight": 32, "threads": 1}
    run["evaluate"] = {"splits": ["heldout"], "episodes": {"heldout": budget.held_out}}
    path.write_text(yaml.safe_dump(run | keys, sort_keys=False))
    return path


def first_batch(out: Path) -> dict[Slot, Episode]:
    with Store.open(out / "store") as store:
        return {(e.index, e.member): e for e in store.episodes(stage="rl", ok=True) if e.step == 0}


def seed(episode: Episode) -> int:
    """Of the first reply: later ones depend on what was said."""
    return next(n.sampling.seed for n in episode.nodes if n.sampling is not None)


def said(episode: Episode) -> Any:
    """What is alike, bit for bit, where the engine is."""
    return episode.steps, episode.reward, [(n.token_ids, n.logprobs, n.mask, n.sampling) for n in episode.nodes]


def embedded_run(folder: Path, budget: Budget) -> Embedded:
    summary = finish(short_demo(folder / "run.yaml", budget), folder / "out")
    return summary, first_batch(folder / "out")


def acted(episode: Episode) -> Any:
    """What an engine that is not batch-invariant repeats, too."""
    return episode.steps, episode.reward, [(n.token_ids, n.sampling) for n in episode.nodes]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Embedded:
    return embedded_run(tmp_path_factory.mktemp("embedded"), SHORT)


@pytest.fixture(scope="module")
def embedded_shorter(tmp_path_factory: pytest.TempPathFactory) -> Embedded:
    return embedded_run(tmp_path_factory.mktemp("embedded"), SHORTER)


def played(tmp_path: Path, embedded: Embedded, budget: Budget = SHORT, **keys: Any) -> dict[Slot, Episode]:
    """The first batch, after what must hold on any engine, any cluster and any backend."""
    summary = finish(short_demo(tmp_path / "run.yaml", budget, **keys), tmp_path / "out")
    for stage in ("imitation", "offline"):
        assert summary["checksums"][stage] == embedded[0]["checksums"][stage], "until here no engine had a say in it"
    batch, expected = first_batch(tmp_path / "out"), embedded[1]
    assert len(batch) == budget.batch and batch.keys() == expected.keys() and len({e.env for e in batch.values()}) == 3
    for slot, episode in batch.items():
        assert episode.instance == expected[slot].instance and seed(episode) == seed(expected[slot])
        assert {n.version for n in episode.nodes if n.version is not None} == {episode.seats["agent"]}
        assert episode.seats["agent"].checksum == summary["checksums"]["offline"]
    steps = [row for row in read(tmp_path / "out") if row["stage"] == "rl" and row["kind"] == "train" and row["tokens"]]
    assert steps and all(row["mismatch_mean"] <= row["mismatch_p99"] <= row["mismatch_max"] < 1e-3 for row in steps)
    command = [sys.executable, "-c", "from envfarm.cli import main; main()", "replay", tmp_path / "out", "--json"]
    replay = subprocess.run(command, capture_output=True, text=True)
    assert replay.returncode == 0, replay.stdout + replay.stderr
    report = json.loads(replay.stdout)
    assert report["same"] and report["episodes"] >= budget.logs + 2 * budget.batch
    return batch


@pytest.mark.vllm
def test_on_vllm(embedded: Embedded, tmp_path: Path) -> None:
    played(tmp_path, embedded, engine={"kind": "vllm", "max_in_flight": 32, "threads": 1})


@pytest.mark.ray
def test_on_ray(embedded: Embedded, tmp_path: Path) -> None:
    batch = played(tmp_path, embedded, ray={"workers": 2})
    assert {slot: said(e) for slot, e in batch.items()} == {slot: said(e) for slot, e in embedded[1].items()}


@pytest.mark.slow
@pytest.mark.xdist_group("demo in other boxes")  # one embedded run for both
@pytest.mark.parametrize(
    "backend", [pytest.param("docker", marks=pytest.mark.docker), pytest.param("kubernetes", marks=pytest.mark.kubernetes)]
)
def test_in_other_boxes(backend: str, embedded_shorter: Embedded, tmp_path: Path) -> None:
    """The store that a run in containers or pods left repeats itself under bubblewrap, `envfarm replay`'s default."""
    batch = played(tmp_path, embedded_shorter, SHORTER, backend=backend)
    assert {slot: acted(e) for slot, e in batch.items()} == {slot: acted(e) for slot, e in embedded_shorter[1].items()}
