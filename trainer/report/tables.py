"""Success by stage, split and environment, the gap, paired differences, and the sentences on top that say what they mean.

All figures are those of `summary.json`; nothing is counted again. What was not measured is said to be so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.report.data import RunData
from trainer.report.statistics import difference

OVERALL = "all environments"


def figures(data: RunData) -> list[dict[str, Any]]:
    """Flat rows `{"stage", "split", "env", "success", "low", "high", "episodes", "reward", "turns", "malformed"}`."""
    rows = []
    for stage in data.evaluated:
        for split, part in data.summary["stages"][stage].items():
            for env, cell in {OVERALL: part, **part["by_env"]}.items():
                if cell["episodes"]:
                    rows.append({
                        "stage": stage, "split": split, "env": env, "success": cell["success"], "low": cell["ci95"][0],
                        "high": cell["ci95"][1], "episodes": cell["episodes"], "reward": cell.get("reward"),
                        "turns": cell.get("turns"), "malformed": cell.get("malformed"),
                    })  # fmt: skip
    return rows


def logger_row(data: RunData) -> dict[str, Any] | None:
    """The logging agent's own success, where the run had one."""
    agent = data.summary.get("logging_agent")
    if not agent or not agent["episodes"]:
        return None
    cells = {OVERALL: agent, **agent["by_env"]}

    def shown(cell: Mapping[str, Any]) -> dict[str, Any]:
        low, high = cell["ci95"]
        return {"success": cell["success"], "low": low, "high": high, "episodes": cell["episodes"]}

    return {"split": agent.get("split", ""), "cells": {env: shown(cell) for env, cell in cells.items()}}


def not_counted(data: RunData) -> list[dict[str, Any]]:
    """Evaluated episodes that ended by faults, in no figure: `{"stage", "split", "stops": {reason: count}}`."""
    return [
        {"stage": stage, "split": split, "stops": part["not_ok"]}
        for stage in data.evaluated
        for split, part in data.summary["stages"][stage].items()
        if part.get("not_ok")
    ]


def gaps(data: RunData) -> list[dict[str, Any]]:
    """Train minus every other split, per stage and environment, with the interval of two independent shares."""
    table = {(r["stage"], r["split"], r["env"]): r for r in figures(data)}
    rows = []
    for stage in data.evaluated:
        for env in (OVERALL, *data.envs):
            train = table.get((stage, "train", env))
            for split in data.splits:
                other = table.get((stage, split, env))
                if split == "train" or train is None or other is None:
                    continue
                mean, low, high = difference(_solved(train), train["episodes"], _solved(other), other["episodes"])
                rows.append({
                    "stage": stage, "split": split, "env": env, "mean": mean, "low": low, "high": high,
                    "train": train["success"], "other": other["success"], "episodes": other["episodes"],
                })  # fmt: skip
    return rows


def _solved(row: Mapping[str, Any]) -> int:
    return round(row["success"] * row["episodes"])


def paired_rows(data: RunData) -> list[dict[str, Any]]:
    """`{"pair", "split", "env", "mean", "low", "high", "episodes"}`; pairs that no instance was played by are left out."""
    rows = []
    for pair, splits in data.summary.get("paired", {}).items():
        for split, whole in splits.items():
            for env, cell in {OVERALL: whole, **whole.get("by_env", {})}.items():
                if cell["episodes"]:
                    rows.append({
                        "pair": pair.replace("_minus_", " − "), "key": pair, "split": split, "env": env, "mean": cell["mean"],
                        "low": cell["ci95"][0], "high": cell["ci95"][1], "episodes": cell["episodes"],
                    })  # fmt: skip
    return rows


def headline(data: RunData) -> dict[str, Any]:
    """Sentences and cards for the top of the page: `{"sentences": [...], "cards": [{"label", "value", "note"}]}`."""
    if not data.evaluated:
        return {"sentences": ["No policy of this run was evaluated yet."], "cards": []}
    final, split = data.evaluated[-1], _target(data)
    row = data.summary["stages"][final].get(split)
    sentences, cards = [], []
    if row is not None and row["episodes"]:
        sentences.append(_what_was_learned(data, final, split, row))
        cards.append(_card(f"{split}, {final}", f"{row['success']:.3f}", _span(*row["ci95"]), row["episodes"]))
    for before in _compared_with(data, final):
        cell = data.summary["paired"][f"{final}_minus_{before}"].get(split)
        if cell is not None and cell["episodes"] > 1:
            sentences.append(_compared(before, split, cell))
            cards.append(_card(f"{final} − {before}, paired", f"{cell['mean']:+.3f}", _signed(*cell["ci95"]), cell["episodes"]))
    gap = next((g for g in gaps(data) if (g["stage"], g["split"], g["env"]) == (final, split, OVERALL)), None)
    if gap is not None:
        sentences.append(_gap_sentence(gap, split))
        cards.append(_card(f"gap: train − {split}", f"{gap['mean']:+.3f}", _signed(gap["low"], gap["high"])))
    real = data.summary["stages"][final].get("real")
    if real and real["episodes"]:
        cards.append(_card(f"real, {final}", f"{real['success']:.3f}", _span(*real["ci95"]), real["episodes"]))
    else:
        sentences.append("Success on real instances was not measured: this run evaluated no split of that name.")
        cards.append(_card("real", "not measured", "no such split was evaluated"))
    return {"sentences": sentences, "cards": cards}


def _card(label: str, value: str, note: str, episodes: int = 0) -> dict[str, str]:
    return {"label": label, "value": value, "note": f"{note} · n = {episodes}" if episodes else note}


def _target(data: RunData) -> str:
    """The split that the page is about: held-out where there is one."""
    return "heldout" if "heldout" in data.splits else data.splits[-1]


def _compared_with(data: RunData, final: str) -> list[str]:
    """The stages before the last that a reader asks for first."""
    before = [s for s in data.evaluated if s != final and f"{final}_minus_{s}" in data.summary.get("paired", {})]
    trained = [s for s in before if s != "untrained"]
    return trained or before


def _what_was_learned(data: RunData, final: str, split: str, row: Mapping[str, Any]) -> str:
    envs = ", ".join(f"{env} {cell['success']:.2f}" for env, cell in row["by_env"].items())
    text = (
        f"After {final}, the policy solves {row['success']:.3f} {_span(*row['ci95'])} of {row['episodes']} {split} "
        f"instances of {_count(len(row['by_env']), 'environment')} ({envs})"
    )
    first = data.summary["stages"][data.evaluated[0]].get(split)
    if data.evaluated[0] != final and first and first["episodes"]:
        text += f"; {_name(data.evaluated[0])} it solved {first['success']:.3f} {_span(*first['ci95'])}"
    return text + "."


def _compared(before: str, split: str, cell: Mapping[str, Any]) -> str:
    low, high = cell["ci95"]
    verdict = "a gain" if low > 0 else "a loss" if high < 0 else "not told apart from no change"
    text = f"Against {before}, on the same {split} instances (paired): {cell['mean']:+.3f} {_signed(low, high)}, {verdict}"
    parts = cell.get("by_env", {})
    if len(parts) > 1:
        up = [e for e, c in parts.items() if c["ci95"][0] > 0]
        down = [e for e, c in parts.items() if c["ci95"][1] < 0]
        told = [f"{w} beyond its interval in {', '.join(names)}" for w, names in (("up", up), ("down", down)) if names]
        text += f" ({'; '.join(told) or 'no single environment moves beyond its interval'})"
    return text + "."


def _gap_sentence(gap: Mapping[str, Any], split: str) -> str:
    verdict = "larger than chance" if gap["low"] > 0 else "below zero" if gap["high"] < 0 else "not told apart from none"
    return f"The gap between train and {split} is {gap['mean']:+.3f} {_signed(gap['low'], gap['high'])}: {verdict}."


def _span(low: float, high: float) -> str:
    return f"[{low:.3f}, {high:.3f}]"


def _signed(low: float, high: float) -> str:
    return f"[{low:+.3f}, {high:+.3f}]"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _name(stage: str) -> str:
    return stage if stage == "untrained" else f"after {stage}"
