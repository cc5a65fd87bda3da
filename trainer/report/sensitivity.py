"""What costs how much: success by the value of each axis and each perturbation channel, from evaluation episodes.

Every policy is evaluated on the same instances, so bins are made once per environment and hold for all policies. An
axis is ranked by the share of success's variance that its bins explain beyond chance. A p value is Holm's, over the
axes and channels of the same environment; axes are not independent of splits, so "all splits" mixes in what differs
between them otherwise.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from trainer.report.data import Played, RunData
from trainer.report.statistics import chance_p, difference, explained, holm

MOST_VALUES = 7
"""More distinct numbers than these are cut into quantile bins; of more distinct words the rarer ones are pooled."""
QUANTILE_BINS = 4
FEWEST = 8
"""Episodes that a bin needs before it may be called best or worst."""
ALL = "all"


@dataclass(frozen=True)
class Factor:
    """One axis or channel of one environment, cut into bins."""

    name: str
    kind: str  # "axis" or "channel"
    labels: tuple[str, ...]
    bin_of: Callable[[Any], int]  # of a value; a value that is absent is `None`
    unseen: tuple[bool, ...]  # the bin's values never came up in the train split


def sensitivity(data: RunData) -> list[dict[str, Any]]:
    """Per environment: its factors, and for each (stage, split) their counts and ranking.

    `{"env", "fixed": [names], "factors": [{"name", "kind", "labels", "unseen"}],
      "results": [{"stage", "split", "rows": [{"factor": index, "counts": [[n, solved], ...], ...}]}]}`
    """
    out = []
    for env in data.envs:
        played = [p for p in data.played if p.ok and p.env == env and p.phase[0] == "eval" and p.phase[1] in data.evaluated]
        if not played:
            continue
        found, fixed = factors(played)
        results = []
        for stage in data.evaluated:
            acted = [p for p in played if p.phase[1] == stage]
            for split in (ALL, *data.splits):
                rows = _rank(found, [p for p in acted if split in (ALL, p.split)])
                results.append({"stage": stage, "split": split, "rows": rows})
        described = [{"name": f.name, "kind": f.kind, "labels": list(f.labels), "unseen": list(f.unseen)} for f in found]
        out.append({"env": env, "fixed": fixed, "factors": described, "results": results})
    return out


def factors(played: Sequence[Played]) -> tuple[list[Factor], list[str]]:
    """Those that vary in these episodes, and the names of those that do not (or too much to be compared)."""
    found, fixed = [], []
    for kind, values_of in (("axis", lambda p: p.params), ("channel", lambda p: p.perturbation)):
        for name in dict.fromkeys(name for p in played for name in values_of(p)):
            factor = _factor(name, kind, [(values_of(p).get(name), p.split == "train") for p in played])
            if factor is None:
                fixed.append(name)
            else:
                found.append(factor)
    return found, fixed


def _factor(name: str, kind: str, values: Sequence[tuple[Any, bool]]) -> Factor | None:
    """None where there is one value only, or nearly every episode has a word of its own."""
    distinct = Counter(label_of(v) for v, _ in values)
    if len(distinct) < 2:
        return None
    present = [v for v, _ in values if v is not None]
    if len(distinct) > MOST_VALUES and all(_is_number(v) for v in present):
        labels, bin_of = _quantiles(present, absent=len(present) < len(values))
    elif len(distinct) > max(MOST_VALUES, len(values) // 4):
        return None
    else:
        labels, bin_of = _words(distinct, [v for v, _ in values])
    trained = {bin_of(v) for v, in_train in values if in_train}
    known = bool(trained)
    return Factor(name, kind, labels, bin_of, tuple(known and i not in trained for i in range(len(labels))))


def _words(distinct: Counter[str], values: Sequence[Any]) -> tuple[tuple[str, ...], Callable[[Any], int]]:
    numbers = {label_of(v): float(v) for v in values if _is_number(v)}
    kept = [word for word, _ in distinct.most_common(MOST_VALUES if len(distinct) > MOST_VALUES + 1 else MOST_VALUES + 1)]
    kept.sort(key=lambda w: (w not in numbers, numbers.get(w, 0.0), w))
    rest = len(distinct) - len(kept)
    labels = (*kept, *([f"{rest} others"] if rest else []))
    places = {word: i for i, word in enumerate(kept)}
    return labels, lambda value: places.get(label_of(value), len(kept))


def _quantiles(present: Sequence[Any], *, absent: bool) -> tuple[tuple[str, ...], Callable[[Any], int]]:
    edges = np.unique(np.quantile(np.array(present, float), np.linspace(0, 1, QUANTILE_BINS + 1)))
    whole = all(isinstance(v, int) for v in present)
    bounds = [(float(a), float(b)) for a, b in pairwise(edges)]
    labels = [_range(a, b, whole=whole, first=i == 0) for i, (a, b) in enumerate(bounds)] + (["absent"] if absent else [])

    def bin_of(value: Any) -> int:
        if value is None:
            return len(bounds)
        return min(max(int(np.searchsorted(edges, float(value), side="left")) - 1, 0), len(bounds) - 1)

    return tuple(labels), bin_of


def _range(low: float, high: float, *, whole: bool, first: bool) -> str:
    """Bins are open at the low end, the first one is closed."""
    if whole:
        start = int(low) if first and low == int(low) else int(np.floor(low)) + 1
        return f"{start} to {int(np.floor(high))}" if start < int(np.floor(high)) else f"{start}"
    return f"{low:.3g} to {high:.3g}"


def label_of(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, str):
        return value if len(value) <= 48 else value[:47] + "…"
    if isinstance(value, float) and not isinstance(value, bool):
        return f"{value:.4g}"
    return label_of(json.dumps(value, sort_keys=True, default=str, ensure_ascii=False))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rank(found: Sequence[Factor], played: Sequence[Played]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for index, factor in enumerate(found):
        bins: dict[int, list[bool]] = defaultdict(list)
        values_of = (lambda p: p.params) if factor.kind == "axis" else (lambda p: p.perturbation)
        for p in played:
            bins[factor.bin_of(values_of(p).get(factor.name))].append(p.success)
        counts = [(len(bins[i]), sum(bins[i])) for i in range(len(factor.labels))]
        if sum(n > 0 for n, _ in counts) > 1:
            rows.append({"factor": index, "counts": [list(c) for c in counts], "explained": explained(counts), **_spread(counts)})
    adjusted = holm([chance_p([(n, s) for n, s in row["counts"]]) for row in rows])
    for row, chance in zip(rows, adjusted, strict=True):
        row["p"] = float(f"{chance:.3g}")
        row["explained"] = round(row["explained"], 4)
    return sorted(rows, key=lambda r: (-r["explained"], -(r["cost"] or [0.0])[0]))


def _spread(counts: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The best and the worst bin, and their difference with its interval: `cost` is null where bins are too small."""
    large = [i for i, (n, _) in enumerate(counts) if n >= FEWEST]
    if len(large) < 2:
        return {"best": None, "worst": None, "cost": None}
    best = max(large, key=lambda i: counts[i][1] / counts[i][0])
    worst = min(large, key=lambda i: counts[i][1] / counts[i][0])
    (n1, s1), (n2, s2) = counts[best], counts[worst]
    return {"best": best, "worst": worst, "cost": [round(v, 4) for v in difference(s1, n1, s2, n2)]}


def findings(found: Sequence[dict[str, Any]], stage: str, *, most: int = 6) -> list[str]:
    """The costs that chance does not explain, for the last policy over all splits, as sentences."""
    clear = [
        (row["explained"], _finding(env, row))
        for env in found
        for result in env["results"]
        if (result["stage"], result["split"]) == (stage, ALL)
        for row in result["rows"]
        if row["p"] < 0.05 and row["cost"] is not None
    ]
    return [text for _, text in sorted(clear, key=lambda t: -t[0])[:most]]


def _finding(env: dict[str, Any], row: dict[str, Any]) -> str:
    factor = env["factors"][row["factor"]]
    (n1, s1), (n2, s2) = row["counts"][row["best"]], row["counts"][row["worst"]]
    mean, low, high = row["cost"]
    return (
        f"{env['env']}, {factor['name']}: {s1 / n1:.2f} at {factor['labels'][row['best']]}, {s2 / n2:.2f} at "
        f"{factor['labels'][row['worst']]} (costs {mean:.2f} [{low:.2f}, {high:.2f}])"
    )
