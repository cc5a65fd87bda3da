"""`engine: {kind: vllm}` in a run file: the same instances and seeds as with the embedded engine, and it learns from itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rollout.store import Store
from rollout.types import Episode
from tests.trainer.test_resume import ROOT, finish
from trainer.metrics import read

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

SHORT = [
    ("head_dim: 16", "head_dim: 32"),  # which vLLM's kernels for CPUs take
    ("  - {offline: {algorithm: filtered_bc, steps: 8, batch: 16}}\n", ""),
    ("steps: 4, lr", "steps: 2, lr"),
]
VLLM = ("engine: {kind: torch, max_in_flight: 32, threads: 1}", "engine: {kind: vllm, max_in_flight: 32, threads: 1}")


def first_batch(out: Path) -> dict[Any, Episode]:
    with Store.open(out / "store") as store:
        episodes = list(store.episodes(stage="rl"))
    return {(e.index, e.member): e for e in episodes if e.step == 0 and e.ok}


def seeds(episode: Episode) -> int:
    """Of the first reply: later ones depend on what was said."""
    return next(n.sampling.seed for n in episode.nodes if n.sampling is not None)


def test_the_run_file_with_vllm(run_file: Callable[..., Path], toys: Path, tmp_path: Path) -> None:
    embedded = finish(run_file(*SHORT, name="torch.yaml"), tmp_path / "torch")
    vllm = finish(run_file(*SHORT, VLLM, name="vllm.yaml"), tmp_path / "vllm")
    assert vllm["checksums"]["imitation"] == embedded["checksums"]["imitation"], "until here no engine had a say in it"
    ours, theirs = first_batch(tmp_path / "vllm"), first_batch(tmp_path / "torch")
    assert len(ours) >= 16 and ours.keys() == theirs.keys()
    for slot, episode in ours.items():
        assert episode.instance_hash == theirs[slot].instance_hash and episode.instance == theirs[slot].instance
        assert seeds(episode) == seeds(theirs[slot])
        assert episode.seats["agent"].checksum == theirs[slot].seats["agent"].checksum
        versions = {n.version for n in episode.nodes if n.version is not None}
        assert versions == {episode.seats["agent"]}
    steps = [row for row in read(tmp_path / "vllm") if row["stage"] == "rl" and row["kind"] == "train" and row["tokens"]]
    assert steps and all(row["mismatch_mean"] <= row["mismatch_max"] < 1e-3 for row in steps)
    assert all(row["mismatch_p99"] <= row["mismatch_max"] for row in steps)
    report = replay(tmp_path / "vllm")
    assert report["same"] and report["episodes"] >= 48 + 2 * 16


def test_the_run_file_of_the_page_on_a_server(tmp_path: Path) -> None:
    """`docs/vllm.md` says that `serve: true` is the same."""
    page = (ROOT / "docs" / "vllm.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert "engine: {kind: vllm, " in text
    path = tmp_path / "run.yaml"
    path.write_text(text.replace("engine: {kind: vllm, ", "engine: {kind: vllm, serve: true, "))
    summary = finish(path, tmp_path / "out")
    assert summary["stages"].keys() >= {"untrained", "imitation", "rl"}
    steps = [row for row in read(tmp_path / "out") if row["stage"] == "rl" and row["kind"] == "train" and row["tokens"]]
    assert steps and all(row["mismatch_max"] < 1e-3 for row in steps)


def replay(out: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", "from envfarm.cli import main; main()", "replay", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)
