"""An asynchronous run with a real model and real workers, killed and resumed: every group once, whatever was in flight."""

from __future__ import annotations

import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from rollout.store import Store
from rollout.store.invariants import episode_findings
from rollout.types import StopReason
from tests.trainer.test_resume import finish, start
from trainer.metrics import read

ASYNC = ("dynamic_sampling: {rounds: 2}, discount: 0.9", "async: {max_staleness: 1}, discount: 0.9")
STEPS = ("steps: 4, lr", "steps: 24, lr")
CURVE = ("every: 2", "every: 8")


def run_until(file: Path, out: Path, at_least: int) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A trainer that has done so many online steps, and its workers."""
    process = start(file, out)
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        step = re.search(r"rl: (\d+)/24", line)
        if step is not None and int(step[1]) >= at_least:
            return process, psutil.Process(process.pid).children(recursive=True)
    pytest.fail(f"the run ended too soon:\n{''.join(seen)}")


@pytest.mark.slow
def test_killed_and_interrupted_it_consumes_every_group_once(run_file: Callable[..., Path], tmp_path: Path, toys: Path) -> None:
    file, out = run_file(ASYNC, STEPS, CURVE), tmp_path / "out"
    process, family = run_until(file, out, 1)
    process.send_signal(signal.SIGKILL)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL and not psutil.wait_procs(family, timeout=60)[1]
    process, family = run_until(file, out, 6)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    rest = process.stdout.read()
    assert process.wait() == 130 and "Traceback" not in rest, rest
    assert not psutil.wait_procs(family, timeout=60)[1]
    summary = finish(file, out)
    assert summary["incarnations"] == 3

    rows = [r for r in read(out) if (r["stage"], r["kind"]) == ("rl", "train")]
    assert [r["step"] for r in rows] == list(range(1, 25))
    assert {r["groups_drawn"] for r in rows} == {4.0} and max(r.get("staleness_max", 0) for r in rows) <= 1
    assert [(r["step"], r["kind"]) for r in read(out) if r["kind"].startswith("curve")] == [
        (step, "curve/validation") for step in range(8, 24, 8)
    ]
    with Store.open(out / "store") as store:
        episodes = list(store.episodes(stage="rl"))
    slots = Counter((e.step, e.index, e.member) for e in episodes if e.ok)
    assert slots == Counter((step, index, member) for step in range(24) for index in range(4) for member in range(4))
    assert {e.stop for e in episodes if not e.ok} <= {StopReason.ABORTED}
    assert not [f for e in episodes for f in episode_findings(e)]
    told = summary["asynchronous"]["rl"]
    assert sum(told["staleness"].values()) == sum(r["tokens"] for r in rows)
    assert told["lengths_dispatched"] and told["lengths_trained"] and 0 <= told["wasted_share"] < 1
