"""What was learned, in figures: success by stage, split and environment, and paired differences between policies.

Every policy plays the same instances, so differences are taken instance by instance: their interval is far narrower
than that of two unrelated samples. `summary.json` is the machine's copy of the last screen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from rollout.evaluate import EvalResult, paired
from trainer.checkpoint import write_atomically


class Evaluation(msgspec.Struct, kw_only=True):
    """One policy, played on every split."""

    stage: str
    checksum: str  # of its weights
    splits: dict[str, EvalResult]


def save_evaluation(run_dir: Path, evaluation: Evaluation) -> None:
    write_atomically(_path(run_dir, evaluation.stage), msgspec.json.encode(evaluation))


def load_evaluation(run_dir: Path, stage: str) -> Evaluation | None:
    """None where that policy was not evaluated yet."""
    path = _path(run_dir, stage)
    return msgspec.json.decode(path.read_bytes(), type=Evaluation) if path.exists() else None


def _path(run_dir: Path, stage: str) -> Path:
    return run_dir / "evaluations" / f"{stage}.json"


def summarize(evaluations: Mapping[str, Evaluation], extra: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `summary.json`: `stages`, `paired` (the last policy minus each one before it) and `extra`."""
    names = list(evaluations)
    out: dict[str, Any] = {
        "stages": {n: {split: r.to_json() for split, r in e.splits.items()} for n, e in evaluations.items()},
        "paired": {},
    }
    for before in names[:-1]:
        last, other = evaluations[names[-1]].splits, evaluations[before].splits
        differences = {split: paired(last[split], other[split]).to_json() for split in last if split in other}
        out["paired"][f"{names[-1]}_minus_{before}"] = differences
    out["checksums"] = {n: e.checksum for n, e in evaluations.items()}
    return out | dict(extra)


def write_summary(run_dir: Path, summary: Mapping[str, Any]) -> Path:
    path = run_dir / "summary.json"
    write_atomically(path, (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode())
    return path


def show(console: Console, summary: Mapping[str, Any]) -> None:
    """The last screen."""
    stages, logger = summary["stages"], summary.get("logging_agent")
    splits = list(dict.fromkeys(s for row in stages.values() for s in row))
    table = Table("policy", *splits, title="Success, with 95 % intervals", title_justify="left")
    if logger:
        shown = {s: text_of(logger) if s == logger.get("split") else "" for s in splits}
        table.add_row("[dim]logging agent[/]", *(shown[s] for s in splits))
    for stage, row in stages.items():
        table.add_row(stage, *(text_of(row[s]) if s in row else "" for s in splits))
    console.print(table)
    envs = list(dict.fromkeys(env for row in stages.values() for s in row.values() for env in s["by_env"]))
    table = Table("environment", "split", *stages, title="By environment", title_justify="left")
    for env in envs:
        for split in splits:
            cells = [
                text_of(row[split]["by_env"][env]) if env in row.get(split, {}).get("by_env", {}) else ""
                for row in stages.values()
            ]
            table.add_row(env, split, *cells)
    console.print(table)
    _show_paired(console, summary["paired"])
    seconds = {k: v for k, v in summary["wall_s"].items() if isinstance(v, int | float)}
    console.print("Wall time: " + ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items()))
    if summary.get("report"):
        console.print(f"Report: {summary['report']}")


def _show_paired(console: Console, differences: Mapping[str, Any]) -> None:
    if not differences:
        return
    table = Table("difference", "split", "all", "by environment", title="Paired on the same instances", title_justify="left")
    for name, splits in differences.items():
        for split, row in splits.items():
            parts = "  ".join(f"{env} {difference_of(part)}" for env, part in row["by_env"].items())
            table.add_row(name.replace("_", " "), split, difference_of(row), parts)
    console.print(table)


def text_of(row: Mapping[str, Any]) -> str:
    if not row["episodes"]:
        return "none"
    return f"{row['success']:.3f} [{row['ci95'][0]:.3f}, {row['ci95'][1]:.3f}] n={row['episodes']}"


def difference_of(row: Mapping[str, Any]) -> str:
    if not row["episodes"]:
        return "none"
    if row["episodes"] < 2:
        return f"{row['mean']:+.3f}"
    return f"{row['mean']:+.3f} ±{(row['ci95'][1] - row['ci95'][0]) / 2:.3f}"
