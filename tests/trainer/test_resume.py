"""A run that is killed again and again ends where the one that was left alone ends: same weights, nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from envfarm.errors import RunFileError
from rollout.run import read_run
from rollout.store import Store
from tests.faults import Counts, record
from trainer.checkpoint import Checkpoints, RunLock, RunState, meaning
from trainer.metrics import read
from trainer.run import RunFile
from trainer.stages import begin

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-c", "from envfarm.cli import main; main()", "train", "--no-report"]

KILL_AFTER = [
    r"log episodes: 12/48",  # logs half played
    r"imitation: 35/",  # between two checkpoints
    r"evaluate imitation: 4/",
    r"offline: 3/8",
    r"rl: 1/4",
    r"rl: 3/4",
]
"""Lines of the trainer's output; SIGKILL follows at once, in the middle of whatever comes next."""


def start(run_file: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, str(run_file), "--output", str(out)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
    )  # fmt: skip


def finish(run_file: Path, out: Path) -> dict[str, Any]:
    process = start(run_file, out)
    output, _ = process.communicate(timeout=480)
    assert process.returncode == 0, output
    return json.loads((out / "summary.json").read_text())


def kill_after(run_file: Path, out: Path, line: str) -> int:
    """How many processes were left; there is none, or this fails."""
    process = start(run_file, out)
    assert process.stdout is not None
    seen = []
    for text in process.stdout:
        seen.append(text)
        if line in text:
            break
    else:
        pytest.fail(f"the run ended before {line!r}:\n{''.join(seen)}")
    family = psutil.Process(process.pid).children(recursive=True)
    assert family, "workers were at work"
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    left = len(psutil.wait_procs(family, timeout=20)[1])
    assert not left, "a worker outlived its trainer"
    return left


def trained_slots(store: Path) -> Counter[tuple[str, int, int, int]]:
    with Store.open(store) as opened:
        return Counter((e.stage, e.step, e.index, e.member) for e in opened.episodes(ok=True))


@pytest.mark.slow
def test_killed_at_every_stage_it_ends_with_the_same_weights(run_file: Callable[..., Path], tmp_path: Path, toys: Path) -> None:
    file = run_file()
    undisturbed = finish(file, tmp_path / "undisturbed")
    left = sum(kill_after(file, tmp_path / "killed", line) for line in KILL_AFTER)
    killed = finish(file, tmp_path / "killed")

    assert killed["checksums"] == undisturbed["checksums"]
    assert len(set(killed["checksums"].values())) == 4, "every stage changed the weights"
    assert killed["stages"] == undisturbed["stages"] and killed["paired"] == undisturbed["paired"]
    assert killed["incarnations"] == len(KILL_AFTER) + 1
    assert killed["counters"] == undisturbed["counters"], "no token was counted, hence trained on, twice"
    slots = trained_slots(tmp_path / "killed" / "store")
    assert slots == trained_slots(tmp_path / "undisturbed" / "store"), "each slot was filled once, none is missing"
    assert max(slots.values()) == 1
    missing = trained_slots(tmp_path / "undisturbed" / "store") - slots
    twice = sum(n - 1 for n in slots.values()) + (killed["counters"] != undisturbed["counters"])
    record("trainer", Counts(len(slots), lost=missing.total(), twice=twice, zeroed=0, processes=left))
    for key in ("loss", "success"):
        assert series(tmp_path / "killed", key) == series(tmp_path / "undisturbed", key)


def series(run_dir: Path, key: str) -> list[tuple[str, int, str, float]]:
    return sorted((r["stage"], r["step"], r["kind"], r[key]) for r in read(run_dir) if key in r)


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_leaves_no_process_and_no_directory(
    run_file: Callable[..., Path], tmp_path: Path, toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    process = start(run_file(), tmp_path / "out")
    assert process.stdout is not None
    next(line for line in process.stdout if "imitation: 16/" in line)
    family = psutil.Process(process.pid).children(recursive=True)
    for _ in range(5):  # as impatient people do: what the first began is not broken into
        process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait() == 130 and "the same command goes on from the last checkpoint" in rest, rest
    assert "Traceback" not in rest
    assert family and not psutil.wait_procs(family, timeout=20)[1]
    assert list(scratch.iterdir()) == []
    found = Checkpoints(tmp_path / "out").latest()
    assert found is not None and found[0].stage == 2, "the logs and the untrained policy's evaluation are done with"


def test_a_second_trainer_is_refused_and_names_the_first(run_file: Callable[..., Path], tmp_path: Path, toys: Path) -> None:
    file = run_file()
    with RunLock(tmp_path / "out"):
        second = subprocess.run(
            [*COMMAND, str(file), "--output", str(tmp_path / "out")], capture_output=True, text=True, cwd=ROOT
        )
    assert second.returncode == 2 and f"another trainer (pid {os.getpid()})" in second.stderr, second.stderr
    assert "Traceback" not in second.stderr and not (tmp_path / "out" / "store").exists()


def test_a_run_that_is_refused_before_its_first_episode_leaves_nothing(
    run_file: Callable[..., Path], tmp_path: Path, toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = run_file(
        ("{id: toy/lamp-v0, setting: {rung: 0, perturb: off}}", "{id: coding/shell-v0}"), ("workers: 1", "backend: docker")
    )
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    command = [*COMMAND, str(file), "--output", str(tmp_path / "runs" / "out")]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert refused.returncode == 2 and "no Docker engine answers at unix:///" in refused.stderr, refused.stderr
    assert not (tmp_path / "runs").exists()


def test_a_run_directory_of_another_run_file_is_refused(run_file: Callable[..., Path], tmp_path: Path, toys: Path) -> None:
    first, _ = read_run(run_file(), RunFile)
    other, _ = read_run(run_file(("seed: 3", "seed: 4")), RunFile)
    checkpoints = Checkpoints(tmp_path / "out")
    assert begin(first, tmp_path / "out", checkpoints).incarnation == 0
    checkpoints.commit(RunState(run_hash=meaning(first.model_dump(mode="json"))), None)
    assert begin(first, tmp_path / "out", checkpoints).incarnation == 1
    with pytest.raises(RunFileError, match="another run file"):
        begin(other, tmp_path / "out", checkpoints)


def test_a_file_in_place_of_a_run_directory_is_refused(run_file: Callable[..., Path], toys: Path) -> None:
    file = run_file()
    with (
        pytest.raises(RunFileError, match=r"run\.yaml cannot be this run's directory: File exists; give another `output`"),
        RunLock(file),
    ):
        pass
    assert file.read_text().startswith("envfarm: 1"), "it is left as it was"


def test_a_checkpoint_that_was_not_finished_does_not_count(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    checkpoints.commit(RunState(run_hash="r", step=1), None)
    checkpoints.commit(RunState(run_hash="r", step=2), lambda folder: write(folder / "w", "sum"))
    draft = tmp_path / "checkpoints" / ".00000002.4711"
    draft.mkdir()
    (draft / "state.json").write_text("half")
    checkpoints.sweep()
    found = checkpoints.latest()
    assert found is not None and (found[0].step, found[0].checksum) == (2, "sum")
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000001"]


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return text
