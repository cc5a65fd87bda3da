"""`make faults`: what is lost when something dies, in one table. Every row is a test that kills it for real.

    python -m tests.faults [--json FILE] [NAME...]

A test reports what it counted with `record`; here the tests are run, each in the environment that it needs, and their
counts become the table. A test that fails, or that reports nothing, is a row that says so, and exit code 1. What needs an
engine or a cluster is run on a test bed of its own (`k8s/testbed`), unless ENVFARM_TESTBED names one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.venvs import ROOT, make, unsupported

FILE = "ENVFARM_FAULTS"
"""The environment variable that names the file to report to."""


@dataclass(frozen=True)
class Counts:
    """What a test saw after the kill. All but `finished` should be 0."""

    finished: int  # episodes that had ended before the kill, or by the end of the run
    lost: int  # of these, missing from the store
    twice: int  # slots that were stored, or trained on, more than once
    zeroed: int  # infra errors that were counted as a reward
    processes: int  # of ours, still alive
    shared_memory: int = 0  # segments in /dev/shm that were not there before
    boxes: int = 0  # containers, pods and leases that are still there 60 s after what was killed is back


def record(killed: str, counts: Counts) -> None:
    """Say what was counted after `killed` died; only `make faults` listens."""
    if path := os.environ.get(FILE):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"killed": killed, **asdict(counts)}) + "\n")


def segments() -> set[str]:
    """Names in /dev/shm: compare two moments."""
    folder = Path("/dev/shm")
    return {p.name for p in folder.iterdir()} if folder.is_dir() else set()


TESTBED = "test bed"
_SKIPPED = re.compile(r"(?:^SKIPPED \[\d+\] \S+|^test-farm skipped|^tests in pods skipped): (.*)")
"""How pytest and the test bed's script say why."""

SCENARIOS: dict[str, tuple[str, str]] = {
    "worker": ("", "tests/rollout/test_death.py::test_kill_9_of_a_worker_is_an_infra_error_that_is_run_again"),
    "scheduler": ("", "tests/rollout/test_death.py::test_kill_9_of_the_scheduler_leaves_its_finished_episodes_and_no_worker"),
    "box": ("", "tests/rollout/test_box_death.py::test_kill_9_of_boxes_is_an_infra_error_that_is_run_again"),
    "vllm engine core": (
        "vllm",
        "tests/rollout/engines/test_vllm_death.py::test_kill_9_is_an_infra_error_that_is_run_again[engine core]",
    ),
    "vllm server": ("vllm", "tests/rollout/engines/test_vllm_death.py::test_kill_9_is_an_infra_error_that_is_run_again[server]"),
    "Ray actor": (
        "ray",
        "tests/rollout/test_distributed.py::test_kill_9_loses_only_what_was_in_flight_there_which_is_run_again[kill_actor]",
    ),
    "Ray node": (
        "ray",
        "tests/rollout/test_distributed.py::test_kill_9_loses_only_what_was_in_flight_there_which_is_run_again[kill_node]",
    ),
    "trainer": ("", "tests/trainer/test_resume.py::test_killed_at_every_stage_it_ends_with_the_same_weights"),
    "container's process": (TESTBED, "tests/rollout/test_farm_deaths.py::test_kill_9_of_a_containers_process"),
    "dockerd": (TESTBED, "tests/rollout/test_farm_deaths.py::test_kill_9_of_dockerd"),
    "farm's keeper": (TESTBED, "tests/rollout/test_farm_deaths.py::test_kill_9_of_a_farms_keeper"),
    "pod's process": (TESTBED, "tests/rollout/test_farm_deaths.py::test_kill_9_of_a_pods_process"),
    "kubelet": (TESTBED, "tests/rollout/test_farm_deaths.py::test_kill_9_of_a_part_of_the_cluster[kubelet]"),
    "API server": (TESTBED, "tests/rollout/test_farm_deaths.py::test_kill_9_of_a_part_of_the_cluster[API server]"),
}
"""What is killed -> (the environment of `tests.venvs`, empty for this one, or the test bed; the test)."""


def run(names: list[str], report: Path) -> list[dict[str, Any]]:
    """Rows of one environment: the tests' counts, or why there are none."""
    where, tests = SCENARIOS[names[0]][0], [SCENARIOS[name][1] for name in names]
    if where not in ("", TESTBED) and (reason := unsupported(where)):
        return [{"killed": name, "skipped": reason} for name in names]
    python = make(where) if where not in ("", TESTBED) else Path(sys.executable)
    command: list[str | Path] = [python, "-m", "pytest"]
    if where == TESTBED and "ENVFARM_TESTBED" not in os.environ:
        command = [ROOT / "k8s" / "testbed" / "test-farm.sh", python]
    report.unlink(missing_ok=True)
    done = subprocess.run(
        [*command, "-q", "-rs", "-p", "no:cacheprovider", *tests], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {FILE: str(report)},
    )  # fmt: skip
    said = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
    return [row(name, [one for one in said if one["killed"] == name], done) for name in names]


def row(name: str, said: list[dict[str, Any]], done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Of the test that killed `name`, among those of one run."""
    if said:
        return {"killed": name, **{k: sum(one[k] for one in said) for k in Counts.__dataclass_fields__}}
    lines = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()
    if done.returncode == 0 and (reasons := [found[1] for line in lines if (found := _SKIPPED.search(line))]):
        return {"killed": name, "skipped": reasons[-1]}
    return {"killed": name, "failed": lines[-1] if done.returncode else f"the test said nothing of its counts: {lines[-1]}"}


def together(names: list[str]) -> list[list[str]]:
    """One run each, but one for all that need a test bed, which takes minutes to set up."""
    bed = [name for name in names if SCENARIOS[name][0] == TESTBED]
    return [[name] for name in names if name not in bed] + ([bed] if bed else [])


def table(rows: list[dict[str, Any]]) -> Table:
    """For people."""
    out = Table("killed -9", "episodes finished", "lost", "stored or trained twice", "counted as reward 0", "processes left",
                "shared memory left", "boxes left")  # fmt: skip
    for row in rows:
        if why := row.get("skipped") or row.get("failed"):
            out.add_row(row["killed"], f"{'skipped' if 'skipped' in row else 'FAILED'}: {why}")
        else:
            out.add_row(row["killed"], *(str(row[k]) for k in Counts.__dataclass_fields__))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *SCENARIOS], metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows, console = [], Console(width=None if sys.stdout.isatty() else 160)
    with tempfile.TemporaryDirectory() as folder:
        for names in together(given.names or list(SCENARIOS)):
            console.print(f"killing: {', '.join(names)}", style="dim")
            rows += run(names, Path(folder) / "counts")
    console.print(table(rows))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    bad = [r for r in rows if "failed" in r or any(r.get(k) for k in Counts.__dataclass_fields__ if k != "finished")]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
