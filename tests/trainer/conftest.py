"""A run file over the toy environment that is small enough to be trained, killed and resumed within seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

TOYS = Path(__file__).resolve().parents[1] / "toy"

RUN_FILE = """\
envfarm: 1
run: lamp
seed: 3
environments: [{id: toy/lamp-v0, setting: {rung: 0, perturb: off}}]
policies:
  learner:
    model: {init: {vocab: 300, width: 32, layers: 1, heads: 2, kv_heads: 1, head_dim: 16, ffn: 48, max_len: 384}}
    trainable: true
engine: {kind: torch, max_in_flight: 32, threads: 1}
workers: 1
sampling: {temperature: 1.0, max_tokens: 12}
stages:
  - imitation:
      logs: {policy: {scripted: {oracle: {random: 0.2}}}, episodes: 48}
      until: validation_flat
      steps: 56
      batch: 16
      lr: 0.01
      check: 8
  - {offline: {algorithm: filtered_bc, steps: 8, batch: 16}}
  - {online: {algorithm: grpo, group: 4, batch: 16, steps: 4, lr: 0.003, dynamic_sampling: {rounds: 2}, discount: 0.9}}
evaluate: {splits: [train, heldout], episodes: 16, every: 2, curve: {validation: 8}}
"""


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy environments, found by id."""
    monkeypatch.setenv("ENVFARM_PATH", str(TOYS))
    return TOYS


@pytest.fixture
def run_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes the run file, with pieces of its text replaced."""

    def write(*replacements: tuple[str, str], name: str = "run.yaml") -> Path:
        text = RUN_FILE
        for old, new in replacements:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / name
        path.write_text(text)
        return path

    return write
