"""An environment of one folder outside the repository goes through every command, from an unrelated working directory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """\
envfarm: 1
run: away
environments: [{id: stranger-v0, setting: {perturb: off}}]
policies:
  learner:
    model: {init: {vocab: 300, width: 32, layers: 1, heads: 2, kv_heads: 1, head_dim: 16, ffn: 48, max_len: 512}}
    trainable: true
engine: {kind: torch, max_in_flight: 16, threads: 1}
workers: 1
sampling: {temperature: 1.0, max_tokens: 8}
stages:
  - imitation: {logs: {policy: {scripted: {oracle: {random: 0.3}}}, episodes: 16}, steps: 8, batch: 8}
  - {online: {group: 4, batch: 8, steps: 2}}
evaluate: {splits: [train, heldout], episodes: 8}
"""


@pytest.mark.slow
@pytest.mark.parametrize("python", [True, pytest.param(False, marks=pytest.mark.box)], ids=["python", "yaml only"])
def test_every_command_works_on_an_environment_from_elsewhere(tmp_path: Path, python: bool) -> None:
    def envfarm(*arguments: str, stdin: str = "", code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from envfarm.cli import main; main()", *arguments],
            cwd=tmp_path, input=stdin, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == code, f"{arguments}: {done.stdout[-1500:]}\n{done.stderr[-1500:]}"
        return done.stdout

    made = tmp_path / "elsewhere" / "stranger"
    envfarm("new", str(made), *([] if python else ["--no-python"]))
    at = ("--env-path", str(made.parent))
    listed = {row["id"] for row in json.loads(envfarm(*at, "list", "--json"))}
    [name] = [i for i in listed if "stranger" in i]
    findings = json.loads(envfarm(*at, "check", name, "--episodes", "2", "--contents", "40", "--json"))
    assert {f["check"] for f in findings} == {"schema", "api", "seeds", "isolation", "oracle", "floor", "distinct"}
    assert all(f["ok"] for f in findings)
    assert "actions" in envfarm(*at, "play", name, stdin="?\n!\nq\n")
    envfarm(*at, "rollout", "--env", name, "--policy", "oracle", "--episodes", "4", "--out", "stored")
    envfarm(*at, "replay", "stored")
    (tmp_path / "run.yaml").write_text(RUN.replace("stranger-v0", name))
    envfarm(*at, "train", "run.yaml")
    summary = json.loads((tmp_path / "runs/away/summary.json").read_text())
    assert set(summary["stages"]) == {"untrained", "imitation", "rl"}
    assert "rl_minus_imitation" in summary["paired"]
    envfarm(*at, "report", "runs/away")
    assert (tmp_path / "runs/away/report.html").stat().st_size > 10_000
