"""Curves: success and reward while learning, with intervals, and what training itself looked like.

The horizontal axis counts optimizer steps over all stages, one stage after the other. A training point pools the groups
of the last few steps; its interval is that of the mean over groups, since the episodes of a group share an instance.
An evaluation point's interval is Wilson's for success, and that of the mean for rewards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rollout.evaluate import wilson
from trainer.report.data import Played, RunData
from trainer.report.statistics import mean_interval

WINDOWS = (1, 5, 15)
"""Steps that a training point pools; the page lets the reader choose."""

ALL = "all"

Point = list[float | int | None]
"""x, y, low, high, n."""


def stage_bands(data: RunData) -> list[dict[str, Any]]:
    """Where each stage lies on the horizontal axis: `{"name", "from", "to"}`."""
    steps: dict[str, int] = defaultdict(int)
    for row in data.metrics:
        steps[row["stage"]] = max(steps[row["stage"]], row["step"])
    bands, start = [], 0
    for stage in data.stages:
        bands.append({"name": stage, "from": start, "to": start + steps[stage]})
        start += steps[stage]
    return bands


def learning_curves(data: RunData) -> dict[str, Any]:
    """Series by measure ("success", "reward") and environment ("all" is every one together)."""
    bands = stage_bands(data)
    start = {b["name"]: b["from"] for b in bands}
    end = {b["name"]: b["to"] for b in bands}
    evaluated = [p for p in data.played if p.ok and p.phase[0] in ("eval", "curve")]
    trained = [p for p in data.played if p.ok and p.phase[0] == "training" and p.phase[1] in start]
    series: list[dict[str, Any]] = []
    for env in (ALL, *data.envs):
        for measure in ("success", "reward"):
            for split in data.splits:
                mine = _of(evaluated, env, split)
                points = _evaluations(mine, measure, start, end)
                if points:
                    series.append({"env": env, "measure": measure, "kind": "eval", "name": split, "points": points})
            for window in WINDOWS:
                points = _training(_of(trained, env), measure, start, window)
                if points:
                    named = {"env": env, "measure": measure, "kind": "training", "name": "training"}
                    series.append({**named, "window": window, "points": points})
    return {"bands": bands, "envs": [ALL, *data.envs], "windows": list(WINDOWS), "series": series}


def _of(played: Iterable[Played], env: str, split: str | None = None) -> list[Played]:
    return [p for p in played if env in (ALL, p.env) and split in (None, p.split)]


def _evaluations(played: Sequence[Played], measure: str, start: dict[str, int], end: dict[str, int]) -> list[Point]:
    by_x: dict[int, list[Played]] = defaultdict(list)
    for p in played:
        kind, stage = p.phase
        if stage in start:
            by_x[end[stage] if kind == "eval" else start[stage] + p.step].append(p)
    return [_evaluation_point(x, by_x[x], measure) for x in sorted(by_x)]


def _evaluation_point(x: int, played: Sequence[Played], measure: str) -> Point:
    if measure == "success":
        solved = sum(p.success for p in played)
        return [x, _short(solved / len(played)), *map(_short, wilson(solved, len(played))), len(played)]
    return [x, *map(_short, mean_interval([p.reward for p in played])), len(played)]


def _training(played: Sequence[Played], measure: str, start: dict[str, int], window: int) -> list[Point]:
    """One point per step with groups, pooling those of the `window` steps that end there, within the stage."""
    groups: dict[tuple[str, int], dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for p in played:
        groups[p.stage, p.step][p.group, p.seat].append(float(p.success) if measure == "success" else p.reward)
    points: list[Point] = []
    for stage, step in sorted(groups, key=lambda key: (start[key[0]], key[1])):
        pooled = [v for s in range(step - window + 1, step + 1) for v in groups.get((stage, s), {}).values()]
        mean, low, high = mean_interval([sum(v) / len(v) for v in pooled])
        episodes = sum(map(len, pooled))
        points.append([start[stage] + step, *map(_short, (mean, low, high)), episodes])
    return points


HEALTH = {
    "loss": ("Training loss", "as the stage defines it; imitation: nats per token"),
    "validation": ("Validation loss", "nats per token on logged instances that are not imitated"),
    "mismatch_mean": ("Engine vs trainer, mean", "|difference of logprobs| per trained token, on equal weights"),
    "mismatch_p99": ("Engine vs trainer, 99th percentile", "of the trained tokens in the step"),
    "mismatch_max": ("Engine vs trainer, largest", "of any trained token in the step"),
    "zero_variance": ("Groups without a signal", "their members agree; share of the groups drawn"),
    "groups_drawn": ("Groups drawn", "for one step, redrawn ones included"),
    "staleness_max": ("Staleness", "optimizer steps between the oldest trained token and the update"),
    "wasted_share": ("Withheld tokens", "too old to be trained on; share of those that carried a signal"),
    "kl": ("KL from the acting policy", "k3 estimate per trained token"),
    "clipped": ("Clipped tokens", "share of trained tokens"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "lr": ("Learning rate", ""),
    "tokens": ("Trained tokens", "in one step"),
    "turns": ("Turns per episode", "training episodes"),
    "malformed": ("Malformed replies per episode", "training episodes"),
    "not_ok": ("Episodes not counted", "ended by faults of the environment or the machine; never trained on"),
    "rollout_s": ("Seconds acting", "per step"),
    "train_s": ("Seconds updating", "per step"),
}
"""What is drawn, of what stands in metrics.jsonl: key -> (title, explanation)."""


SHARES = ("zero_variance", "clipped", "wasted_share")


def health(data: RunData) -> list[dict[str, Any]]:
    """Small charts, one for each stage and known number that the run wrote, over the steps of the stage:
    `{"stage", "key", "title", "note", "share", "points": [[x, y], ...]}`."""
    points: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for row in data.metrics:
        if row["kind"] == "validation" and row.get("loss") is not None:
            points[row["stage"], "validation"].append([row["step"], _short(row["loss"])])
    for stage in data.stages:
        rows = sorted((r for r in data.metrics if r["stage"] == stage and r["kind"] == "train"), key=lambda r: r["step"])
        for before, row in zip([{}, *rows], rows, strict=False):
            for key, value in _numbers(row, before).items():
                points[stage, key].append([row["step"], _short(value)])
    return [
        {"stage": stage, "key": key, "title": title, "note": note, "share": key in SHARES, "points": points[stage, key]}
        for stage in data.stages
        for key, (title, note) in HEALTH.items()
        if points[stage, key]
    ]


def _numbers(row: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, float]:
    """One row as it is drawn. Seconds are sums over the whole run there; a step's own need the row before."""
    out = {}
    for key in HEALTH:
        value = row.get(key)
        if not isinstance(value, int | float):
            continue
        if key == "zero_variance":
            value = value / row["groups_drawn"] if row.get("groups_drawn") else 0.0
        if key.endswith("_s"):
            if before.get("step") != row["step"] - 1 or not isinstance(before.get(key), int | float):
                continue
            value -= before[key]
        out[key] = value
    return out


def _short(value: float | None) -> float | None:
    """Five digits are more than a chart can show."""
    return None if value is None else float(f"{value:.5g}")
