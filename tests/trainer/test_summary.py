"""The summary's shape is what scripts read; its figures come from evaluations on the same instances."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from rollout.evaluate import EvalResult, Outcome
from trainer.metrics import Metrics, read
from trainer.summary import Evaluation, load_evaluation, save_evaluation, show, summarize, write_summary


def result(split: str, successes: list[bool]) -> EvalResult:
    outcomes = [
        Outcome(env=f"{'ab'[i % 2]}-v0", key=f"{split}/{i}", success=s, reward=float(s), turns=2, stop="terminated", malformed=0)
        for i, s in enumerate(successes)
    ]
    return EvalResult(split, "learner", outcomes)


def evaluation(stage: str, *successes: bool) -> Evaluation:
    return Evaluation(stage=stage, checksum=stage, splits={s: result(s, list(successes)) for s in ("train", "heldout")})


def test_the_last_policy_is_compared_with_each_one_before() -> None:
    made = {
        "imitation": evaluation("imitation", False, True, False, False),
        "offline": evaluation("offline", True, True, False, False),
        "rl": evaluation("rl", True, True, True, False),
    }
    summary = summarize(made, {"wall_s": {"install": None, "train": 1.0, "eval": 2.0}})
    heldout = summary["stages"]["rl"]["heldout"]
    assert (heldout["success"], heldout["episodes"], heldout["by_env"]["a-v0"]["success"]) == (0.75, 4, 1.0)
    assert heldout["ci95"][0] < 0.75 < heldout["ci95"][1]
    assert set(summary["paired"]) == {"rl_minus_imitation", "rl_minus_offline"}
    difference = summary["paired"]["rl_minus_imitation"]["heldout"]
    assert (difference["mean"], difference["episodes"], difference["by_env"]["b-v0"]["mean"]) == (0.5, 4, 0.0)
    assert summary["paired"]["rl_minus_offline"]["heldout"]["mean"] == 0.25
    assert summary["wall_s"]["eval"] == 2.0


def test_policies_that_met_other_opponents_are_no_pair() -> None:
    made = {n: evaluation(n, True, False) for n in ("untrained", "imitation", "rl")}
    for name, rival in (("untrained", "a"), ("imitation", "b"), ("rl", "b")):
        made[name].opponents = {"rival": rival}
    assert list(summarize(made, {})["paired"]) == ["rl_minus_imitation"]


def test_the_last_screen_shows_every_stage_the_logging_agent_and_the_differences(tmp_path: Path) -> None:
    made = {"imitation": evaluation("imitation", False, True), "rl": evaluation("rl", True, True)}
    agent = result("train", [True, False]).to_json()
    extra = {"wall_s": {"install": 61.0, "train": 1.0, "eval": 2.0}, "logging_agent": agent, "report": "runs/x/report.html"}
    summary = summarize(made, extra)
    text = io.StringIO()
    show(Console(file=text, width=80), summary)
    for shown in ("logging agent", "0.500", "rl - imitation", "+0.500", "a-v0", "runs/x/report.html", "61 s"):
        assert shown in text.getvalue(), shown
    assert json.loads(write_summary(tmp_path, summary).read_text()) == json.loads(json.dumps(summary))


def test_an_evaluation_comes_back_from_disk(tmp_path: Path) -> None:
    made = evaluation("rl", True, False)
    save_evaluation(tmp_path, made)
    assert load_evaluation(tmp_path, "rl") == made and load_evaluation(tmp_path, "offline") is None


def test_metrics_made_again_replace_those_of_the_killed_run(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.write("rl", 1, 1, {"loss": 0.5})
    metrics.write("rl", 2, 2, {"loss": 0.4, "bad": float("nan")})
    metrics.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "rl", "step": 3, "numb')
    metrics = Metrics(tmp_path)
    metrics.write("rl", 2, 2, {"loss": 0.3})
    metrics.write("rl", 2, 2, {"success": 1.0}, kind="curve/heldout")
    metrics.close()
    rows = read(tmp_path)
    assert [(r["step"], r["kind"], r.get("loss")) for r in rows] == [
        (1, "train", 0.5),
        (2, "train", 0.3),
        (2, "curve/heldout", None),
    ]


def test_tensorboard_reads_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = Metrics(tmp_path)
    for step in range(3):
        metrics.write("rl", step, step, {"loss": step / 2, "note": "text is left to JSON"})
    metrics.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("rl/train/loss")] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    with pytest.raises(KeyError):
        events.Scalars("rl/train/note")
