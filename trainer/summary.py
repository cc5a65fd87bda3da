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
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rollout.evaluate import NO_FIGURE, EvalResult, paired
from trainer.checkpoint import write_atomically
from trainer.freshness import show_freshness


class Evaluation(msgspec.Struct, kw_only=True):
    """One policy, played on every split."""

    stage: str
    checksum: str  # of its weights
    splits: dict[str, EvalResult]
    opponents: dict[str, str] = {}  # policy -> checksum, of who sat beside it


def save_evaluation(run_dir: Path, evaluation: Evaluation) -> None:
    write_atomically(_path(run_dir, evaluation.stage), msgspec.json.encode(evaluation))


def load_evaluation(run_dir: Path, stage: str) -> Evaluation | None:
    """None where that policy was not evaluated yet."""
    path = _path(run_dir, stage)
    return msgspec.json.decode(path.read_bytes(), type=Evaluation) if path.exists() else None


def _path(run_dir: Path, stage: str) -> Path:
    return run_dir / "evaluations" / f"{stage}.json"


def summarize(evaluations: Mapping[str, Evaluation], extra: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `summary.json`: `stages`, `paired` (the last policy minus each one before it that met the same
    opponents: others are no pair) and `extra`."""
    names = list(evaluations)
    out: dict[str, Any] = {
        "stages": {n: {split: r.to_json() for split, r in e.splits.items()} for n, e in evaluations.items()},
        "paired": {},
    }
    for before in names[:-1]:
        if evaluations[before].opponents != evaluations[names[-1]].opponents:
            continue
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
    """The last screen; it fits 80 columns."""
    stages, logger = summary["stages"], summary.get("logging_agent")
    splits = list(dict.fromkeys(s for row in stages.values() for s in row))
    table = _table("Success, with 95 % intervals", "policy", *splits)
    if logger:
        cells = (text_of(logger) if s == logger.get("split") else "" for s in splits)
        table.add_row("[dim]logging agent[/]", *cells)
    for stage, row in stages.items():
        table.add_row(stage, *(text_of(row[s]) if s in row else "" for s in splits))
    console.print(table)
    _show_environments(console, stages, splits)
    _show_paired(console, summary["paired"])
    show_freshness(console, summary.get("asynchronous", {}))
    seconds = {k: v for k, v in summary["wall_s"].items() if isinstance(v, int | float)}
    console.print("Wall time: " + ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items()))
    if summary.get("report"):
        console.print(f"Report: {summary['report']}", soft_wrap=True)


def _show_environments(console: Console, stages: Mapping[str, Any], splits: list[str]) -> None:
    table = _table("By environment", "environment", "split", *stages)
    for env in dict.fromkeys(env for row in stages.values() for s in row.values() for env in s["by_env"]):
        for split in splits:
            parts = [row.get(split, {}).get("by_env", {}).get(env) for row in stages.values()]
            table.add_row(env, split, *("" if p is None else share_of(p) for p in parts))
    console.print(table)


def _show_paired(console: Console, differences: Mapping[str, Any]) -> None:
    """Where it counts: on instances that were not trained on. The other splits stand in the JSON."""
    envs = list(dict.fromkeys(e for d in differences.values() for row in d.values() for e in row.get("by_env", {})))
    for split in ("heldout", "real"):
        rows = {name: d[split] for name, d in differences.items() if split in d}
        if rows:
            table = _table(f"Differences on {split}, instance by instance", "", "all", *envs)
            for name, row in rows.items():
                parts = [row.get("by_env", {}).get(e) for e in envs]
                table.add_row(
                    name.replace("_minus_", " - "), difference_of(row), *("" if p is None else difference_of(p) for p in parts)
                )
            console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def text_of(row: Mapping[str, Any]) -> str:
    if not row["episodes"]:
        return NO_FIGURE
    return f"{row['success']:.3f} [{row['ci95'][0]:.2f}, {row['ci95'][1]:.2f}]"


def share_of(row: Mapping[str, Any]) -> str:
    """Shorter: half the interval's width behind the share."""
    return f"{row['success']:.2f} ±{(row['ci95'][1] - row['ci95'][0]) / 2:.2f}" if row["episodes"] else NO_FIGURE


def difference_of(row: Mapping[str, Any]) -> str:
    return f"{row['mean']:+.3f} ±{(row['ci95'][1] - row['ci95'][0]) / 2:.3f}" if row["episodes"] else NO_FIGURE
