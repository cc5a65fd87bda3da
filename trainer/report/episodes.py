"""How episodes went, whatever their outcome: lengths, stop reasons, time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from trainer.report.data import Played, RunData

ALL = "all"
MOST_BARS = 24
"""Lengths beyond these many different ones are binned."""


def phases(data: RunData) -> list[tuple[str, list[Played]]]:
    """Episodes by who acted and why, in the order of the run; what counts curves is left to the curves."""
    found: dict[tuple[str, str], list[Played]] = defaultdict(list)
    for p in data.played:
        found[p.phase].append(p)
    order = [("logs", "")]
    for stage in data.stages:
        order += [("training", stage), ("eval", stage)]
    return [(phase_name(*phase), found[phase]) for phase in order if phase in found]


def phase_name(kind: str, stage: str) -> str:
    return {"logs": "logs", "training": f"{stage}, training"}.get(kind, f"{stage}, {'evaluation' if kind == 'eval' else kind}")


def lengths_and_stops(data: RunData) -> list[dict[str, Any]]:
    """Per phase and environment: histograms of turns and sampled tokens (ok episodes), and stops (all)."""
    out = []
    for name, played in phases(data):
        for env in (ALL, *data.envs):
            mine = [p for p in played if env in (ALL, p.env)]
            if mine:
                fine = [p for p in mine if p.ok]
                out.append({
                    "phase": name, "env": env, "episodes": len(mine), "turns": histogram([p.turns for p in fine]),
                    "tokens": histogram([p.tokens for p in fine if p.tokens]),
                    "stops": [[str(s), n, s.ok] for s, n in Counter(p.stop for p in mine).most_common()],
                })  # fmt: skip
    return out


def histogram(values: Sequence[int]) -> dict[str, Any]:
    """`{"bars": [[low, high, count], ...], "median", "most"}`; bounds are inclusive."""
    if not values:
        return {"bars": [], "median": None, "most": None}
    low, high = min(values), max(values)
    width = max(1, -(-(high - low + 1) // MOST_BARS))
    counted = Counter((v - low) // width for v in values)
    bars = [[low + i * width, low + (i + 1) * width - 1, counted[i]] for i in range((high - low) // width + 1)]
    return {"bars": bars, "median": float(np.median(values)), "most": high}


def timing(data: RunData) -> list[dict[str, Any]]:
    """Per phase: episodes and the mean seconds of one. Episodes overlap, so sums would exceed the wall clock."""
    rows = []
    for name, played in phases(data):
        fine = [p for p in played if p.ok]
        if fine:
            means = {
                k: float(np.mean([p.timings.get(k) or 0.0 for p in fine])) for k in ("queue_s", "engine_s", "env_s", "total_s")
            }
            rows.append({
                "phase": name, "episodes": len(played), "not_ok": len(played) - len(fine), "turns": _mean(p.turns for p in fine),
                "tokens": sum(p.tokens for p in fine), **means,
            })  # fmt: skip
    return rows


def wall_times(data: RunData) -> list[tuple[str, float]]:
    """What the whole run took, by kind of work, in seconds."""
    wall = data.summary.get("wall_s", {})
    parts = [(k, v) for k, v in wall.get("parts", {}).items() if isinstance(v, int | float)]
    if isinstance(wall.get("install"), int | float):
        parts.insert(0, ("install", wall["install"]))
    return parts


def errors(data: RunData, *, most: int = 8) -> list[dict[str, Any]]:
    """What ended episodes that do not count, most frequent first."""
    counted = Counter((p.env, str(p.stop), p.error[:300]) for p in data.played if not p.ok)
    return [{"env": env, "stop": stop, "error": error, "count": n} for (env, stop, error), n in counted.most_common(most)]


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
