"""The run file of the page about vLLM, as it is written there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.trainer.test_resume import ROOT, finish
from trainer.metrics import read

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


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
