"""`make faults`: what is lost when something dies, in one table. Every row is a test that kills it for real.

    python -m tests.faults [--json FILE] [NAME...]

A test reports what it counted with `record`; here the tests are run, each in the environment that it needs, and their
counts become the table. A test that fails, or that reports nothing, is a row that says so, and exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
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


def record(killed: str, counts: Counts) -> None:
    """Say what was counted after `killed` died; only `make faults` listens."""
    if path := os.environ.get(FILE):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"killed": killed, **asdict(counts)}) + "\n")


def segments() -> set[str]:
    """Names in /dev/shm: compare two moments."""
    folder = Path("/dev/shm")
    return {p.name for p in folder.iterdir()} if folder.is_dir() else set()


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
}
"""What is killed -> (the environment of `tests.venvs`, empty for this one; the test)."""


def run(name: str, report: Path) -> dict[str, Any]:
    """One row: the test's counts, or why there are none."""
    venv, test = SCENARIOS[name]
    if venv and (reason := unsupported(venv)):
        return {"killed": name, "skipped": reason}
    python = make(venv) if venv else Path(sys.executable)
    report.unlink(missing_ok=True)
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", test], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {FILE: str(report)},
    )  # fmt: skip
    lines = report.read_text().splitlines() if report.exists() else []
    if done.returncode != 0 or not lines:
        last = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()[-1]
        return {"killed": name, "failed": last if done.returncode else f"the test said nothing of its counts: {last}"}
    rows = [json.loads(line) for line in lines]
    return {"killed": name, **{k: sum(r[k] for r in rows) for k in Counts.__dataclass_fields__}}


def table(rows: list[dict[str, Any]]) -> Table:
    """For people."""
    out = Table("killed -9", "episodes finished", "lost", "stored or trained twice", "counted as reward 0", "processes left",
                "shared memory left")  # fmt: skip
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
        for name in given.names or SCENARIOS:
            console.print(f"killing: {name}", style="dim")
            rows.append(run(name, Path(folder) / "counts"))
    console.print(table(rows))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    bad = [r for r in rows if "failed" in r or any(r.get(k) for k in Counts.__dataclass_fields__ if k != "finished")]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
