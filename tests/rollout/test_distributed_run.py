"""A whole run on a cluster of its own: the same weights as on one machine, also after `kill -9`, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rollout.store import Store
from rollout.types import Episode
from tests.faults import segments
from tests.trainer.conftest import RUN_FILE, TOYS

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-c", "from envfarm.cli import main; main()"]


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "200", "ENVFARM_PATH": str(TOYS)},
    )  # fmt: skip


def finish(*arguments: str | Path) -> str:
    process = start(*arguments)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


def first_batch(out: Path) -> list[Episode]:
    with Store.open(out / "store") as store:
        found = [e for e in store.episodes(stage="rl", ok=True) if e.step == 0]
    return sorted(found, key=lambda e: (e.index, e.member))


def told(episode: Episode) -> Any:
    """What must be alike, bit for bit."""
    said = [(n.token_ids, n.logprobs, n.mask, n.sampling) for n in episode.nodes]
    return episode.instance_hash, episode.steps, episode.reward, said


def test_a_run_ends_with_the_weights_of_one_machine_though_it_was_killed(tmp_path: Path) -> None:
    here, there = tmp_path / "here.yaml", tmp_path / "there.yaml"
    here.write_text(RUN_FILE)
    there.write_text(RUN_FILE.replace("workers: 1\n", "workers: 1\nray: {workers: 2}\n"))
    before = plasma()
    process = start("train", "--no-report", there, "--output", tmp_path / "there")
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if "rl: 1/4" in line:
            break
    else:
        pytest.fail("".join(seen))
    family = psutil.Process(process.pid).children(recursive=True)
    commands = [" ".join(p.cmdline()) for p in family]
    assert sum("ray::Replica" in c for c in commands) == 2 and sum("envfarm.worker" in c for c in commands) == 2, commands
    (scratch,) = {found for c in commands for found in re.findall(r"--temp-dir=(\S*/envfarm-ray-\w+)", c)}
    assert Path(scratch).is_dir()
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    process.wait()
    assert not psutil.wait_procs(family, timeout=90)[1], "Ray's processes and the workers end with the trainer"
    gone(Path(scratch))
    assert plasma() == before

    finish("train", "--no-report", there, "--output", tmp_path / "there")
    finish("train", "--no-report", here, "--output", tmp_path / "here")
    ray, local = summary(tmp_path / "there"), summary(tmp_path / "here")
    assert ray["checksums"] == local["checksums"] and ray["stages"] == local["stages"]
    assert ray["counters"] == local["counters"] and ray["incarnations"] == 2
    batches = first_batch(tmp_path / "there"), first_batch(tmp_path / "here")
    assert len(batches[0]) >= 16 and list(map(told, batches[0])) == list(map(told, batches[1]))
    assert "0 differences" in finish("replay", tmp_path / "there")


def plasma() -> set[str]:
    """Shared memory of object stores; other packages keep some of their own."""
    return {name for name in segments() if name.startswith("plasma")}


def test_the_run_file_of_the_page_is_played(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "ray.md").read_text()
    found = re.search(r"^```yaml (maze\.yaml)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert found is not None and f"envfarm rollout {found[1]} --policy oracle:0.3 --episodes 64 --group 4" in page
    (tmp_path / found[1]).write_text(found[2].replace("workers: 4", "workers: 2"))
    command = ("rollout", tmp_path / found[1], "--policy", "oracle:0.3", "--episodes", "64", "--group", "4")
    said = json.loads(finish(*command, "--out", tmp_path / "played", "--json").splitlines()[-1])
    assert said["by_env"]["games/maze-v0"]["ok"] == 64
    again = json.loads(finish(*command, "--out", tmp_path / "played", "--json").splitlines()[-1])
    assert again["reused"] == 64


def gone(folder: Path, timeout_s: float = 60.0) -> None:
    """What outlives us to remove it cannot tell us when it has."""
    end = time.monotonic() + timeout_s
    while folder.exists():
        assert time.monotonic() < end, f"{folder} was left behind"
        time.sleep(0.1)
