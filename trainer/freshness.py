"""How old the tokens were that asynchronous stages trained on, and how long their episodes: counted, summed up, shown.

Both belong together. Staleness says what overlapping costs, lengths say whether it favours anybody: where those trained
on are shorter than those dispatched, the bound or the window holds back the long ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rollout.types import Episode, Group
from trainer.groups import Batch
from trainer.metrics import read
from trainer.run import RunFile


class LengthCounts:
    """The learner's sampled tokens per episode, of episodes as they finish and of those that are trained on."""

    def __init__(self, learner: str):
        self._learner = learner
        self._finished: Counter[int] = Counter()

    def finished(self, group: Group) -> None:
        self._finished.update(self._bins(group.episodes))

    def of(self, batch: Batch) -> dict[str, float]:
        """A step's numbers: counts by power of two (`lengths/trained/64`: 33 to 64 tokens) of what it trained on and of
        what finished since the step before, and the share of tokens that were withheld."""
        used = {row.episode_id for row in batch.rows}
        trained = Counter(self._bins(e for e in batch.episodes if e.id in used))
        seen, self._finished = self._finished, Counter()
        tokens = sum(row.trained for row in batch.rows)
        out = {f"lengths/trained/{b}": float(n) for b, n in sorted(trained.items())}
        out |= {f"lengths/dispatched/{b}": float(n) for b, n in sorted(seen.items())}
        return out | {"wasted_share": batch.withheld / max(batch.withheld + tokens, 1)}

    def _bins(self, episodes: Iterable[Episode]) -> Iterable[int]:
        return (1 << max(sampled_tokens(e, self._learner) - 1, 0).bit_length() for e in episodes if e.ok)


def sampled_tokens(episode: Episode, policy: str) -> int:
    return sum(sum(n.mask) for n in episode.nodes if episode.seats[n.seat].policy == policy)


def summed_up(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Over the steps of a stage, as `metrics.jsonl` has them: tokens by age, episodes by length, the share withheld."""
    rows = list(rows)
    trained, withheld = (sum(r.get(k, 0.0) for r in rows) for k in ("tokens", "withheld_tokens"))
    return {
        "staleness": _counts(rows, "staleness/"),
        "lengths_trained": _counts(rows, "lengths/trained/"),
        "lengths_dispatched": _counts(rows, "lengths/dispatched/"),
        "wasted_share": withheld / max(trained + withheld, 1.0),
    }


def _counts(rows: Iterable[Mapping[str, Any]], prefix: str) -> dict[str, int]:
    found: Counter[int] = Counter()
    for row in rows:
        found.update({int(k.removeprefix(prefix)): int(v) for k, v in row.items() if k.startswith(prefix)})
    return {str(k): found[k] for k in sorted(found)}


def asynchronous_stages(run: RunFile, run_dir: Path) -> dict[str, Any]:
    """What `summary.json` says of asynchronous stages under `asynchronous`; nothing where there are none."""
    names = [name for name, entry in run.named_stages() if entry.online is not None and entry.online.asynchronous]
    if not names:
        return {}
    rows = [row for row in read(run_dir) if row["kind"] == "train"]
    return {"asynchronous": {name: summed_up(r for r in rows if r["stage"] == name) for name in names}}


def show_freshness(console: Console, stages: Mapping[str, Any]) -> None:
    """On the last screen: a histogram of ages, and of lengths beside it."""
    for name, told in stages.items():
        table = Table(
            title=f"{name}: tokens by age, {told['wasted_share']:.1%} too old", title_justify="left", box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )  # fmt: skip
        for column in ("updates old", "trained tokens", "share"):
            table.add_column(column)
        for age, tokens in told["staleness"].items():
            table.add_row(age, f"{tokens:,}", *bar(tokens, told["staleness"]))
        console.print(table)
        table = Table(title=f"{name}: episodes by length", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in ("tokens", "dispatched", "trained on"):
            table.add_column(column)
        for most in told["lengths_dispatched"]:
            shares = (bar(told[k].get(most, 0), told[k])[0] for k in ("lengths_dispatched", "lengths_trained"))
            table.add_row(f"to {most}", *shares)
        console.print(table)


def bar(count: int, counts: Mapping[str, int], width: int = 20) -> tuple[str]:
    """A share, drawn and written."""
    share = count / max(sum(counts.values()), 1)
    return (f"{'█' * round(share * width):<{width}} {share:5.1%}",)
