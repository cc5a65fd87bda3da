# ruff: noqa: E501 - one case per line reads better than a wrapped table
"""Run files that cannot work are refused with their place, what was found and what to do; exit code 2 through the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from envfarm.errors import RunFileError
from envfarm.registry import default_registry
from rollout.run import read_run
from trainer.run import RunFile
from trainer.run_check import check

GOOD = "algorithm: grpo, group: 4"


def rival(entry: str) -> tuple[str, str]:
    """The change that adds a second policy."""
    return "policies:\n", f"policies:\n  rival: {entry}\n"


def seating(seats: str) -> tuple[str, str]:
    """The change that says who sits where in evaluations."""
    return "every: 2", f"every: 2, seats: {{toy/lamp-v0: [{seats}]}}"


CASES = [
    ("unknown environment", ("toy/lamp-v0", "toy/lump-v0"), r"run\.yaml:4:21: .*toy/lump-v0.*toy/lamp-v0"),
    ("unknown key", ("until:", "untill:"), r"run\.yaml:\d+:7: unknown key 'untill' \(did you mean 'until'"),
    ("no trainable policy", ("trainable: true", "trainable: false"), r"exactly one policy with `trainable: true`; found none"),
    ("unknown model", ("model: {init: {vocab: 300, width: 32, layers: 1, heads: 2, kv_heads: 1, head_dim: 16, ffn: 48, max_len: 384}}", "model: tinny"), r"run\.yaml:7:\d+: no model 'tinny' \(did you mean 'tiny'"),
    ("bad sizes", ("heads: 2, kv_heads: 1", "heads: 3, kv_heads: 2"), r"run\.yaml:7:\d+: .*multiple"),
    ("unknown size", ("ffn: 48", "fnn: 48"), r"run\.yaml:7:\d+: .*fnn"),
    ("unknown engine", ("kind: torch", "kind: toch"), r"run\.yaml:9:16: no engine 'toch' \(did you mean 'torch'"),
    ("engine that only evaluates", ("kind: torch", "kind: openai"), r"run\.yaml:9:16: training needs an engine with token_ids, logprobs"),
    ("real split in logs", ("episodes: 48}", "episodes: 48, split: real}"), r"run\.yaml:\d+:\d+: the split 'real' measures the gap"),
    ("real split online", (GOOD, GOOD + ", split: real"), r"the split 'real' measures the gap"),
    ("unknown split", ("[train, heldout]", "[train, hold]"), r"run\.yaml:\d+:28: toy/lamp-v0 has no split 'hold'"),
    ("batch and group", ("group: 4, batch: 16", "group: 4, batch: 18"), r"batch \(18 episodes\) must be a multiple of group \(4\)"),
    ("group beyond the engine", ("max_in_flight: 32", "max_in_flight: 2"), r"group of 4 does not fit"),
    ("filtered sampling", ("temperature: 1.0", "temperature: 1.0, top_p: 0.9"), r"online training samples from the whole distribution"),
    ("from a stage that is not there", (GOOD, GOOD + ", from: ofline"), r"no stage 'ofline' \(did you mean 'offline'"),
    ("offline without logs", ("      logs: {policy: {scripted: {oracle: {random: 0.2}}}, episodes: 48}\n", ""), r"imitation needs logs"),
    ("logs by a model", ("policy: {scripted: {oracle: {random: 0.2}}}", "policy: learner"), r"logs are played by a scripted policy"),
    ("two kinds in one stage", ("  - {offline: {", "  - {online: {}, offline: {"), r"exactly one of `imitation`, `offline`, `online`"),
    ("an unknown seat", ("workers: 1", "workers: 1\nseats: {toy/lamp-v0: {agnet: learner}}"), r"no role 'agnet'"),
    ("a seat without a known policy", ("workers: 1", "workers: 1\nseats: {toy/lamp-v0: {agent: learnr}}"), r"run\.yaml:11:30: no policy 'learnr'"),
    ("a version of no stage", rival("{version: learner@imitatoin}"), r"run\.yaml:6:\d+: no stage 'imitatoin' \(did you mean 'imitation'"),
    ("a version beyond the end", rival("{version: learner@69}"), r"would never act: all stages together make at most 68 updates"),
    ("a frozen model that is no folder", rival("{model: tiny}"), r"run\.yaml:6:\d+: a model that is not trained is a folder"),
    ("a server without a model", rival("{engine: {kind: openai, base_url: 'http://127.0.0.1:1'}}"), r"needs `base_url` and `model`"),
    ("an evaluation's unknown seat", seating("{agnet: self}"), r"no role 'agnet' \(did you mean 'agent'"),
    ("an evaluation's unknown policy", seating("{agent: selv}"), r"no policy 'selv' \(did you mean 'self'"),
    ("an unknown rung", ("rung: 0", "rung: 9"), r"run\.yaml:4:\d+: .*rung"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_run_file_that_cannot_work_is_refused(
    change: tuple[str, str], message: str, run_file: Callable[..., Path], toys: Path
) -> None:
    with pytest.raises(RunFileError, match=message) as refused:
        run, source = read_run(run_file(change), RunFile)
        check(run, source, default_registry())
    assert refused.value.location is not None and refused.value.exit_code == 2


def test_the_run_file_of_the_tests_is_fine(run_file: Callable[..., Path], toys: Path) -> None:
    run, source = read_run(run_file(), RunFile)
    specs = check(run, source, default_registry())
    assert list(specs) == ["toy/lamp-v0"]
    assert [name for name, _ in run.named_stages()] == ["imitation", "offline", "rl"]


def test_stages_of_one_kind_are_numbered(run_file: Callable[..., Path], toys: Path) -> None:
    again = "evaluate:", "  - {online: {batch: 16, from: imitation}}\nevaluate:"
    run, source = read_run(run_file(again), RunFile)
    check(run, source, default_registry())
    assert [name for name, _ in run.named_stages()] == ["imitation", "offline", "rl", "rl-2"]


def test_an_evaluation_without_the_learner_is_refused(run_file: Callable[..., Path], toys: Path) -> None:
    run, source = read_run(run_file(rival("{scripted: random}"), seating("{agent: rival}")), RunFile)
    with pytest.raises(RunFileError, match="the learner 'learner' sits in no seat here"):
        check(run, source, default_registry())


@pytest.mark.parametrize("what", ["untrained", "imitation", "rl", "0", "68"])
def test_every_version_that_comes_to_be_may_be_named(what: str, run_file: Callable[..., Path], toys: Path) -> None:
    run, source = read_run(run_file(rival(f"{{version: learner@{what}}}")), RunFile)
    assert check(run, source, default_registry())


@pytest.mark.parametrize("example", sorted((Path(__file__).parents[2] / "examples").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_examples_fit_together(example: Path) -> None:
    run, source = read_run(example, RunFile)
    assert check(run, source, default_registry())
